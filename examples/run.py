"""Run a notebook's code cells in order, without Jupyter: `python examples/run.py FILE.ipynb`.

The cells become one script that runs in the notebook's folder; an error's traceback ends in it. A notebook
here is plain Python, without `%` and `!` commands.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def script(notebook: Path) -> str:
    """The code cells one after the other, each under a comment with its number."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(f"# code cell {n} of {notebook.name}\n{c}" for n, c in enumerate(code, 1))


def main() -> int:
    notebook = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{notebook.stem}.py"
        path.write_text(script(notebook) + "\n", encoding="utf-8")
        return subprocess.run([sys.executable, str(path)], cwd=notebook.parent).returncode


if __name__ == "__main__":
    raise SystemExit(main())
