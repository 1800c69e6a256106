"""A choice that every optimizer has to make."""

from __future__ import annotations

from typing import Literal

from lightning import Trainer


def fused(trainer: Trainer) -> Literal[True] | None:
    """An optimizer's option `fused`: True, but torch's own choice under mixed precision.

    A fused optimizer unscales gradients inside its step, so that Lightning's mixed precision can neither
    clip them nor show them unscaled to `on_before_optimizer_step`.
    """
    return None if str(trainer.precision).endswith("mixed") else True
