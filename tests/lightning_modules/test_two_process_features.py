"""Curves, removals and spillover: two processes, each with half of the prompts, find what one finds."""

import json
import os
import subprocess
import sys

import pytest
import torch

import evaluate
from delta_transcoders.report.tables import read_metrics

pytestmark = pytest.mark.slow

D_MODEL, N_LAYERS = 32, 2
QUICK = {"model.max_new_tokens": 4, "data.batch_size": 4, "data.n_per_subset": 5}
CURVE = {
    "model.grid": "[2, 4]",
    "model.correct": "{tool: valid_tool_format}",
    "model.n_random": 1,
    "model.steps": 2,
}
TABLES = {
    "feature_curve": ("metrics.csv", "curve.csv", "fidelity.csv", "n90.csv"),
    "removal": ("metrics.csv", "removal.csv"),
    "spillover_transplant": ("metrics.csv",),
}


@pytest.fixture(scope="module")
def one_and_two(study, random_delta, save_transplant, arguments, tmp_path_factory, pytestconfig):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    folder = tmp_path_factory.mktemp("features")
    deltas = {layer: random_delta(D_MODEL, 3, seed=layer, size=1.0) for layer in range(N_LAYERS)}
    models = study / "base_model", study / "finetune/merged"
    delta = save_transplant(folder / "n6", deltas, *models)
    options = {
        "feature_curve": QUICK | CURVE | {"model.deltas": f"[{delta}]"},
        "removal": QUICK | {"model.delta": delta, "model.n_draws": 2},
        "spillover_transplant": {
            "model.delta": delta,
            "data.n_per_subset": 5,
            "data.batch_size": 3,
        },
    }
    calls = {
        processes: [
            arguments(
                f"tiny/{name}.yaml",
                study,
                given | more | {"model.output": folder / processes / name},
            )
            for name, given in options.items()
        ]
        for processes, more in (
            ("one", {}),
            ("two", {"trainer.devices": 2, "trainer.strategy": "ddp"}),
        )
    }
    for args in calls["one"]:
        evaluate.main(args)
    script = folder / "two.py"  # Lightning starts it again for the second process
    script.write_text(f"import evaluate\nfor args in {calls['two']}:\n    evaluate.main(args)\n")
    subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return folder / "one", folder / "two"


def test_they_choose_the_same_features(one_and_two):
    one, two = (json.loads((f / "feature_curve/features.json").read_text()) for f in one_and_two)
    assert one == two


@pytest.mark.parametrize(
    ("stage", "table"), [(stage, table) for stage, tables in TABLES.items() for table in tables]
)
def test_they_write_the_same_tables(one_and_two, stage, table):
    one, two = (read_metrics(folder / stage / table) for folder in one_and_two)
    assert len(one) == len(two) > 0
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name, text in ours.items():
            try:
                expected = pytest.approx(float(text), rel=1e-3, abs=1e-5, nan_ok=True)
            except ValueError:
                assert theirs[name] == text, name
            else:
                assert float(theirs[name]) == expected, name
