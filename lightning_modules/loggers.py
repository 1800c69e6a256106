"""Writing to whatever loggers a trainer has: several, one, or none."""

from __future__ import annotations

from collections.abc import Mapping

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def log_scalars(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Scalars at the present step, past Lightning's own bookkeeping.

    Thousands of `self.log` calls would cost more than the step whose numbers they are.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)


def tensorboards(trainer: Trainer) -> list[SummaryWriter]:
    """Writers for figures, texts and histograms, which other loggers have no common word for."""
    if not trainer.is_global_zero:
        return []
    return [of.experiment for of in trainer.loggers if isinstance(of, TensorBoardLogger)]
