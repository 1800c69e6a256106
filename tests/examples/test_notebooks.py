"""Notebooks run from top to bottom, and are kept without what they printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def run(notebook: Path, study: object = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "run.py"), str(notebook)],
        env=os.environ | {"STUDY": str(study), "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def notebook(folder: Path, *cells: str) -> Path:
    path = folder / "a.ipynb"
    written = [{"cell_type": "code", "source": [cell]} for cell in cells]
    path.write_text(json.dumps({"cells": [*written, {"cell_type": "markdown", "source": ["#"]}]}))
    return path


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_that_was_printed_is_kept(path):
    content = json.loads(path.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_the_delta_is_attached_and_its_features_are_shown(dictionaries):
    done = run(EXAMPLES / "attach_a_delta.ipynb", dictionaries)
    assert done.returncode == 0, done.stderr
    assert "d6_p0.5 at layers [0, 1]" in done.stdout
    for condition in ("raw", "no_delta", "alpha_0.5", "full"):
        assert sum(line.startswith(f"{condition} ") for line in done.stdout.splitlines()) >= 2
    assert "\nwithout feature " in done.stdout


def test_cells_share_their_names_and_run_in_the_notebooks_folder(tmp_path):
    (tmp_path / "beside").touch()
    cells = ("import os\nx = 1", "print(x + 1, os.path.exists('beside'))")
    assert run(notebook(tmp_path, *cells)).stdout == "2 True\n"


def test_a_failing_cell_fails(tmp_path):
    done = run(notebook(tmp_path, "print('one')", "assert 1 == 2"))
    assert done.returncode and done.stdout == "one\n" and "assert 1 == 2" in done.stderr
