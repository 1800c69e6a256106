"""A short form of `make signals`: stages as processes of their own, each ended in another phase."""

import shutil
import signal

import pytest

from benchmarks import signals_table
from benchmarks.signals_table import STAGES


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals") / "prepared"
    signals_table.prepare(folder)
    return folder


@pytest.mark.parametrize(
    ("stage", "phase", "signum"),
    [
        ("finetune", "fit", signal.SIGTERM),
        ("base_transcoders", "validation", signal.SIGINT),
        ("delta", "export", signal.SIGTERM),
        ("activations", "predict", signal.SIGKILL),
        ("exp2a", "test", signal.SIGINT),
    ],
)
def test_a_signal_ends_a_stage_in_order(prepared, tmp_path, stage, phase, signum):
    row = signals_table.interrupt(STAGES[stage], phase, signum, prepared, tmp_path)
    assert signals_table.problems(row) == []
    shutil.rmtree(tmp_path)
