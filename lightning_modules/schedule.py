"""How long a training is, and learning rates that follow a schedule to its end."""

from __future__ import annotations

from lightning import Trainer


def total_steps(trainer: Trainer) -> int:
    """Optimiser steps of the whole training.

    Raises:
        ValueError: their number is not limited.
    """
    if trainer.max_steps == trainer.max_epochs == -1:
        raise ValueError(
            "the learning rate follows a schedule over all steps, and nothing says how many there are: give "
            "--trainer.max_steps or --trainer.max_epochs (max_time, beside it, still ends a training earlier)"
        )
    return trainer.estimated_stepping_batches


def warm_up_and_decay(step: int, total: int, warmup_steps: int, decay_fraction: float) -> float:
    """Share of the peak rate: up linearly from a tenth, and down to zero over the last share of the steps.

    >>> [warm_up_and_decay(step, 10, 2, 0.5) for step in (0, 1, 2, 5, 9)]
    [0.1, 0.55, 1.0, 1.0, 0.2]
    """
    decay = round(decay_fraction * total)
    warm = min(1.0, 0.1 + 0.9 * step / warmup_steps) if warmup_steps else 1.0
    return warm * min(1.0, (total - step) / decay) if decay else warm
