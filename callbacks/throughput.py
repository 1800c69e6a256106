"""Training speed in TensorBoard."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class TokensPerSecond(Callback):
    """Logs `train/tokens_per_second` over all ranks, for batches with an `attention_mask` [B, T]."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    on_validation_end = on_train_start

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._tokens = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict,
        batch_idx: int,
    ) -> None:
        self._tokens += int(batch["attention_mask"].sum())
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:
            seconds = time.perf_counter() - self._since
            rate = self._tokens * trainer.world_size / seconds
            pl_module.log("train/tokens_per_second", rate)
            self._restart()
