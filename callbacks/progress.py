"""A stage's progress in a few plain lines."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from delta_transcoders import console

SECONDS_BETWEEN_LINES = 20
WIDTH = 110


class StageProgress(ProgressBar):
    """How far a stage is, with the metrics meant for a progress bar.

    On a terminal one line is written over; elsewhere (a file) lines stay and come seldom, and after each
    validation. Where a study runs the stage, the line goes when it has ended, and lines that would stay go to
    its `console.txt`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._started = self._shown = time.monotonic()
        self._n_batches = 0

    def disable(self) -> None:  # Lightning does so on all ranks but the first
        self._enabled = False

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._show_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._show_step(trainer, at_once=True)

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._show_batch(sum(trainer.num_test_batches))

    def on_predict_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._show_batch(sum(trainer.num_predict_batches))

    def _show_step(self, trainer: Trainer, at_once: bool = False) -> None:
        if self._is_time(at_once):
            metrics = (f"{k} {float(v):.4g}" for k, v in trainer.progress_bar_metrics.items())
            total = f"{trainer.estimated_stepping_batches:,}"
            self._show(f"step {trainer.global_step:,} of {total}", ", ".join(metrics))

    def _show_batch(self, total: float) -> None:
        self._n_batches += 1
        if self._is_time(at_once=self._n_batches == total):
            self._show(f"batch {self._n_batches:,} of {total:,}")

    def _is_time(self, at_once: bool) -> bool:
        wait = 0.2 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        return self._enabled and (at_once or time.monotonic() - self._shown > wait)

    def _show(self, *parts: str) -> None:
        self._shown = time.monotonic()
        minutes, seconds = divmod(round(self._shown - self._started), 60)
        line = "  " + " · ".join(filter(None, (f"{minutes}:{seconds:02d}", *parts)))
        if sys.stderr.isatty():
            print(f"\r{line:<{WIDTH}}", end="", file=sys.stderr, flush=True)
        elif console.in_study():
            logging.getLogger(__name__).info(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._enabled and sys.stderr.isatty():
            end = f"\r{'':<{WIDTH}}\r" if console.in_study() else "\n"
            print(end, end="", file=sys.stderr, flush=True)
