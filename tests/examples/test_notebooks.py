"""Notebooks run from top to bottom, and are kept without what they printed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from delta_transcoders.features.files import write_features
from delta_transcoders.features.synthetic import synthetic_features

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


def write_effects(folder: Path) -> None:
    """L1F3 with the largest attribution, although another feature costs more when it is dropped."""
    folder.mkdir()
    (folder / "ranking.json").write_text(json.dumps({"format_version": 1, "delta": "delta"}))
    (folder / "done.json").write_text("{}")
    (folder / "ranking.csv").write_text(
        "layer,feature,ablation,subset,n_examples,dce,dce_ci_low,dce_ci_high,ig_target\n"
        "0,1,dropped,ask,9,0.5,0.4,0.6,0.1\n"
        "0,1,dropped,echo,9,0.5,0.4,0.6,0.1\n"
        "1,3,dropped,ask,9,0.1,0,0.2,-0.4\n"
        "1,3,dropped,echo,9,0.1,0,0.2,nan\n"
    )


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


@pytest.mark.parametrize("with_features", [False, True, "and effects"])
def test_the_delta_is_looked_at_attached_and_scaled(dictionaries, tmp_path, with_features):
    study = dictionaries
    if with_features:
        study = tmp_path / "study"
        shutil.copytree(dictionaries, study)
        write_features(study / "features", synthetic_features(2, 6), {"delta": "delta"})
    if with_features == "and effects":
        write_effects(study / "effects")
    done = run(EXAMPLES / "look_at_a_delta.ipynb", study)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "d6_p0.5 at layers [0, 1]"
    for condition in ("raw", "no_delta", "full"):
        assert sum(line.startswith(f"{condition} ") for line in lines) >= 2
    assert [line.split()[0] for line in lines if line.startswith("alpha_")] == [
        f"alpha_{alpha}" for alpha in ("0", "0.25", "0.5", "0.75", "1", "1.5")
    ]
    if with_features:
        strongest = max(synthetic_features(2, 6), key=lambda feature: feature.maximum).name
        chosen = "L1F3" if with_features == "and effects" else strongest
        assert lines[1] == f"looking at {chosen}"
        assert lines[-1].startswith(f"without {chosen} ")
    else:
        assert lines[1].endswith(
            f"configs/tiny/features.yaml --study {study}` makes them in a minute"
        )
        assert lines[-1].startswith("without L1F")


def test_cells_share_their_names_and_run_in_the_notebooks_folder(tmp_path):
    (tmp_path / "beside").touch()
    cells = ("import os\nx = 1", "print(x + 1, os.path.exists('beside'))")
    assert run(notebook(tmp_path, *cells)).stdout == "2 True\n"


def test_a_failing_cell_fails(tmp_path):
    done = run(notebook(tmp_path, "print('one')", "assert 1 == 2"))
    assert done.returncode and done.stdout == "one\n" and "assert 1 == 2" in done.stderr
