"""One run's curves in one folder of logs."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class LatestCurves(Callback):
    """Removes TensorBoard's files of an earlier run once this one begins: both would be drawn as one curve.

    Args:
        trainer: of this run, before it logs anything.
    """

    def __init__(self, trainer: Trainer) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        self.earlier = [p for b in boards for p in Path(b.log_dir).glob("events.out.tfevents.*")]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for path in self.earlier:
                path.unlink(missing_ok=True)

    on_test_start = on_train_start
