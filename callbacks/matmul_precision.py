"""Faster products of float32 matrices, with inputs rounded."""

from __future__ import annotations

from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer


class MatmulPrecision(Callback):
    """`torch.set_float32_matmul_precision` while a training runs.

    Args:
        precision: `medium` rounds the inputs of products to bfloat16 on CPUs with AMX (Intel's since Sapphire
            Rapids) and to TF32 on CUDA, `high` to TF32 on CUDA alone. Weights, sums and everything else stay
            float32; other devices round nothing.
    """

    def __init__(self, precision: Literal["high", "medium"]) -> None:
        self.precision = precision
        self._before: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()  # there is no teardown

    def _restore(self) -> None:
        if self._before is not None:
            torch.set_float32_matmul_precision(self._before)
