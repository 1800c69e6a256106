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


def steps_of_phases(trainer: Trainer, n_phases: int) -> int:
    """Optimiser steps of each phase of a training that has equally long ones and judges each at its end.

    Raises:
        ValueError: the steps cannot be shared out equally, or a phase does not end with a validation.
    """
    total = total_steps(trainer)
    if total == 0 or total % n_phases:
        raise ValueError(
            f"the training has {total} steps, and there are {n_phases} phases of equally many: give a "
            f"--trainer.max_steps of {n_phases}, or a multiple of it"
        )
    if trainer.accumulate_grad_batches > 1:  # an epoch's last step is made of fewer batches
        raise ValueError(
            f"--trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}: phases count batches, "
            "so give a larger --data.batch_size (--model.gradient_checkpointing true saves memory)"
        )
    steps, every = total // n_phases, trainer.val_check_interval
    counts = isinstance(every, int) and trainer.check_val_every_n_epoch is None
    if not trainer.fast_dev_run and not (counts and steps % every == 0):
        raise ValueError(
            f"--trainer.val_check_interval is {every}: a phase has {steps} steps and must end with a "
            "validation; give a whole number that divides them, and check_val_every_n_epoch: null"
        )
    return steps


def warm_up_and_decay(step: int, total: int, warmup_steps: int, decay_fraction: float) -> float:
    """Share of the peak rate: up linearly from a tenth, and down to zero over the last share of the steps.

    >>> [warm_up_and_decay(step, 10, 2, 0.5) for step in (0, 1, 2, 5, 9)]
    [0.1, 0.55, 1.0, 1.0, 0.2]
    """
    decay = round(decay_fraction * total)
    warm = min(1.0, 0.1 + 0.9 * step / warmup_steps) if warmup_steps else 1.0
    return warm * min(1.0, (total - step) / decay) if decay else warm
