"""When a stage's output may take the place of an earlier one."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor, nn

from delta_transcoders import files

say = logging.getLogger("delta_transcoders").info


def kind_of(module: LightningModule) -> str:
    """Of the output that a module writes, see `files.check_output`."""
    return getattr(module, "output_kind", type(module).__name__)


@contextmanager
def stage_output(module: LightningModule) -> Iterator[Path]:
    """The folder for a module's output, on rank zero, in place at the end of the block."""
    with files.new_output(module.hparams.output, kind_of(module)) as folder:
        yield folder
        finish_output(module.trainer, module.hparams.output)


def finish_output(
    trainer: Trainer, path: str | Path, replaces: Collection[str] | None = None
) -> None:
    """`files.finish_output`, and a line that says so; a `fast_dev_run` is thrown away."""
    if trainer.fast_dev_run:
        files.discard_output(path)
    else:
        files.finish_output(path, replaces)
    what = "fast_dev_run, nothing is kept in" if trainer.fast_dev_run else "written:"
    say(f"  {what} {path}")


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
                f"{row['mean_ce']}, and so nothing is written: do the weights hold NaN, or does a source "
                "write it?"
            )


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


def check_finite(
    parameters: Iterable[tuple[str, Tensor]],
    problem: str = "the training has diverged, and so nothing is written: lower lr",
) -> None:
    """
    Raises:
        ValueError: a weight is NaN or infinite; says what problem that is, and names it.
    """
    for name, parameter in parameters:
        if not parameter.isfinite().all():
            raise ValueError(f"{problem} ({name} is not finite)")
