"""One run's curves in one folder of logs."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_modules.loggers import SUFFIX


class LatestCurves(Callback):
    """Removes TensorBoard's files of an earlier run once this one begins: both would be drawn as one curve.

    Those of the runs within it (`loggers.run_within`) go too, with their folders where nothing else is there.

    Args:
        trainer: of this run, before it logs anything.
    """

    def __init__(self, trainer: Trainer) -> None:
        folders = [Path(b.log_dir) for b in trainer.loggers if isinstance(b, TensorBoardLogger)]
        self.earlier = [p for folder in folders for p in folder.glob("events.out.tfevents.*")]
        self.within = [p for f in folders for p in f.glob(f"*/events.out.tfevents.*{SUFFIX}")]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for path in (*self.earlier, *self.within):
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in self.within}:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    on_test_start = on_train_start
