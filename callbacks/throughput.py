"""Training speed in TensorBoard."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class TokensPerSecond(Callback):
    """Logs `train/tokens_per_second` over all ranks, for batches with an `attention_mask` [B, T]."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()
        self._tokens = 0
        self._step = trainer.global_step

    on_validation_end = on_train_start

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict,
        batch_idx: int,
    ) -> None:
        # Added up where the batch is; to read it, the host would wait for the device at every step.
        self._tokens = self._tokens + batch["attention_mask"].sum()
        # At the steps that Lightning logs, once each where batches accumulate.
        if (
            trainer.global_step != self._step
            and trainer.global_step % trainer.log_every_n_steps == 0
        ):
            tokens = int(self._tokens) * trainer.world_size
            rate = tokens / (time.perf_counter() - self._since)
            pl_module.log("train/tokens_per_second", rate)
            self.on_train_start(trainer, pl_module)
