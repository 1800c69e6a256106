"""How much memory a run took."""

from __future__ import annotations

import logging
import resource
import sys

import torch
from lightning import Callback, LightningModule, Trainer

say = logging.getLogger("delta_transcoders").info


class PeakMemory(Callback):
    """Says at the end what torch had allocated at most on the GPU, or how large the process was."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            peak, where = torch.cuda.max_memory_allocated(device), f"on {device}"
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            where = "of the process"
        if trainer.is_global_zero:
            say(f"  peak memory {where}: {peak / 1e6:,.0f} MB")
