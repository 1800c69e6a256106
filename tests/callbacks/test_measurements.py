"""What is measured of a run."""

import json
from types import SimpleNamespace

import pytest
import torch

from callbacks import measurements
from callbacks.measurements import Measurements


@pytest.fixture
def clock(monkeypatch):
    """Moves only when it is told to."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(measurements.time, "perf_counter", lambda: clock.now)
    return clock


TRAINER = SimpleNamespace(
    is_global_zero=True, strategy=SimpleNamespace(root_device=torch.device("cpu"))
)


def test_a_training(clock, tmp_path):
    measures = Measurements(str(tmp_path / "m.json"))
    for seconds in (9.0, 1.0, 2.0, 6.0):
        measures.on_train_batch_start()
        clock.now += seconds
        measures.on_train_batch_end(TRAINER)
    measures.on_validation_start()
    clock.now += 3.0
    measures.on_validation_end(TRAINER, None)
    measures.teardown(TRAINER, None, "fit")
    found = json.loads((tmp_path / "m.json").read_text())
    assert found.pop("peak_bytes") > 1e8
    assert found == {
        "batches": 4,
        "batch_seconds": 2.0,
        "validations": 1,
        "validation_seconds": 3.0,
        "loop_seconds": 0.0,
        "peak_device_bytes": None,
    }


def test_an_evaluation(clock, tmp_path):
    measures = Measurements(str(tmp_path / "m.json"))
    clock.now = 5.0
    for _ in range(2):
        measures.on_test_batch_start()
        clock.now += 2.0
    measures.on_test_end(TRAINER, None)
    measures.teardown(TRAINER, None, "test")
    found = json.loads((tmp_path / "m.json").read_text())
    assert (found["loop_seconds"], found["batches"], found["batch_seconds"]) == (4.0, 0, 0.0)
