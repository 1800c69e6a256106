"""Writing to whatever loggers a trainer has: several, one, or none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import NamedTuple

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

SUFFIX = ".within"
"""How the event files of runs within a logger's own end, by which `LatestCurves` knows them."""
RESULT = "result"
"""The run that holds a stage's row of TensorBoard's HPARAMS."""


class Point(NamedTuple):
    """A number in a run within a logger's own."""

    run: str
    tag: str
    step: int
    value: float


def log_scalars(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Scalars at the present step, past Lightning's own bookkeeping.

    Thousands of `self.log` calls would cost more than the step whose numbers they are.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)


def log_elsewhere(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Scalars at the present step, for all loggers but TensorBoard."""
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.log_metrics(dict(values), step=trainer.global_step)


def boards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The first process's TensorBoard loggers, which alone can show runs within a run."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def tensorboards(trainer: Trainer) -> list[SummaryWriter]:
    """Writers for figures, texts and histograms, which other loggers have no common word for."""
    return [board.experiment for board in boards(trainer)]


def run_within(board: TensorBoardLogger, name: str) -> SummaryWriter:
    """The writer of another run, in a folder below the logger's own."""
    folder = re.sub(r"^\.+|[^\w.@+-]", "_", name)  # conditions and subsets have any names
    return SummaryWriter(os.path.join(board.log_dir, folder), filename_suffix=SUFFIX)


def write_points(trainer: Trainer, points: Iterable[Point]) -> None:
    """Curves that are whole, for TensorBoard; a point without a run is in the logger's own."""
    by_run: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: (point.tag, point.step)):
        by_run.setdefault(point.run, []).append(point)
    for board in boards(trainer):
        for run, ours in by_run.items():
            with run_within(board, run) if run else nullcontext(board.experiment) as writer:
                for point in ours:
                    writer.add_scalar(point.tag, point.value, point.step)


def log_result(
    trainer: Trainer,
    settings: Mapping[str, float | str | None],
    results: Mapping[str, float],
    configuration: str = "",
) -> None:
    """A row of TensorBoard's HPARAMS.

    It stands in a run of its own and describes no experiment: TensorBoard would take the columns of one
    stage's description for those of all, and makes them itself from what such runs hold.

    Args:
        settings: what was chosen; None is left out.
        results: what came of it, as `hp/NAME`.
        configuration: of a sweep.
    """
    _, start, end = hparams(dict(settings), {})
    for board in boards(trainer):
        with run_within(board, f"{configuration}_{RESULT}" if configuration else RESULT) as writer:
            for name, value in results.items():
                writer.add_scalar(f"hp/{name}", value, 0)
            for summary in (start, end):
                writer.file_writer.add_summary(summary)


class Runs:
    """Curves of configurations that are trained at once: TensorBoard has a run for each.

    Other loggers have the run's name before the curve's. A run without a name is the logger's own.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], SummaryWriter] = {}

    def writers(self, trainer: Trainer, run: str) -> list[SummaryWriter]:
        if not run:
            return tensorboards(trainer)
        for board in boards(trainer):
            if (board.log_dir, run) not in self._open:
                self._open[board.log_dir, run] = run_within(board, run)
        return [self._open[board.log_dir, run] for board in boards(trainer)]

    def log(self, trainer: Trainer, run: str, values: Mapping[str, float]) -> None:
        if not run:
            log_scalars(trainer, values)
            return
        log_elsewhere(trainer, {f"{run}/{name}": value for name, value in values.items()})
        for writer in self.writers(trainer, run):
            for name, value in values.items():
                writer.add_scalar(name, value, trainer.global_step)

    def close(self) -> None:
        for writer in self._open.values():
            writer.close()
        self._open.clear()
