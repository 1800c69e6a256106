"""When a stage's output may take the place of an earlier one."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from torch import Tensor, nn

from delta_transcoders import files

say = logging.getLogger("delta_transcoders").info


@contextmanager
def stage_output(trainer: Trainer, path: str | Path) -> Iterator[Path]:
    """`files.new_output` for rank zero of a trainer; a `fast_dev_run` is written and thrown away."""
    with files.new_output(path, keep=not trainer.fast_dev_run) as folder:
        yield folder
    say_written(trainer, path)


def check_measured(table: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to write a table of a model that computes no numbers.

    Raises:
        ValueError: names the first row whose cross-entropy is not finite.
    """
    for row in table:
        if row["n_tokens"] and not math.isfinite(row["mean_ce"]):
            where = f"layer {row['layer']}, " if row["layer"] else ""
            raise ValueError(
                f"the cross-entropy of {row['condition']} ({where}subset {row['subset']}) is "
                f"{row['mean_ce']}, and so nothing is written: do the weights hold NaN?"
            )


def say_written(trainer: Trainer, path: str | Path) -> None:
    what = "fast_dev_run, nothing is kept in" if trainer.fast_dev_run else "written:"
    say(f"  {what} {path}")


def check_trained(trainer: Trainer, model: nn.Module) -> None:
    """Refuse to write a model that no step has trained, or that has diverged.

    Raises:
        ValueError: no step was taken; a weight is NaN or infinite, names it.
    """
    if trainer.global_step == 0:
        raise ValueError(
            "no step was trained, and so nothing is written: raise --trainer.max_steps"
        )
    check_finite(model.named_parameters())


def check_finite(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """
    Raises:
        ValueError: a weight is NaN or infinite; names it.
    """
    for name, parameter in parameters:
        if not parameter.isfinite().all():
            raise ValueError(
                f"the training has diverged ({name} is not finite), and so nothing is written: lower lr"
            )
