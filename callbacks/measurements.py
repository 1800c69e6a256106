"""How long a run's batches took, and how much memory: what a longer run is estimated from."""

from __future__ import annotations

import re
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from delta_transcoders.files import write_json


class Measurements(Callback):
    """Writes `file` at the end of a run.

    It holds `batches` (of training), `batch_seconds` (the median one's; the first is left out, which warms
    up), `validations` and `validation_seconds` (all of them together), `loop_seconds` (from the first batch
    of a test or prediction to its end), `peak_bytes` (the process's largest resident set) and
    `peak_device_bytes` (what torch had allocated at most on a GPU; null without one).

    Args:
        file: JSON.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._batches: list[float] = []
        self._validations = 0
        self._validation_seconds = self._loop_seconds = 0.0
        self._loop_began: float | None = None

    def on_train_batch_start(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        _wait(trainer)
        self._batches.append(time.perf_counter() - self._began)

    def on_validation_start(self, *args: Any) -> None:
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _wait(trainer)
        self._validations += 1
        self._validation_seconds += time.perf_counter() - self._validation_began

    def on_test_batch_start(self, *args: Any) -> None:
        self._loop_began = self._loop_began or time.perf_counter()

    on_predict_batch_start = on_test_batch_start

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _wait(trainer)
        if self._loop_began is not None:
            self._loop_seconds = time.perf_counter() - self._loop_began

    on_predict_end = on_test_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        device = trainer.strategy.root_device
        on_gpu = device.type == "cuda"
        found = {
            "batches": len(self._batches),
            "batch_seconds": statistics.median(self._batches[1:] or self._batches or [0.0]),
            "validations": self._validations,
            "validation_seconds": self._validation_seconds,
            "loop_seconds": self._loop_seconds,
            "peak_bytes": _peak(),
            "peak_device_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        }
        write_json(self._file, found)


def _peak() -> int:
    """Of this program alone: `getrusage` also counts what started it, and a check may hold a model."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


def _wait(trainer: Trainer) -> None:
    """For what a GPU still has to do."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
