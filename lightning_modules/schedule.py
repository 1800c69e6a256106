"""How long a training is, for learning rates that follow a schedule to its end."""

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
