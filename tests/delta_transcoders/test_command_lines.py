"""Every `python -m` command line says what it is for, before anything that takes seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "delta_transcoders").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
SLOW = {
    "torch",
    "transformers",
    "transformer_lens",
    "lightning",
    "matplotlib",
    "huggingface_hub",
}


def test_the_command_lines_were_found():
    assert {"delta_transcoders.export", "delta_transcoders.report.ranking"} < set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_slow(name):
    code = (
        "import runpy, sys\nsys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({name!r}, run_name='__main__')\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        f"imported = {SLOW} & set(sys.modules)\nassert not imported, imported"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
