"""Train any stage: `python train.py --config configs/tiny/lora.yaml [--key value ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from delta_transcoders.command import preflight, run


def main(args: Sequence[str] | None = None):
    """Fit the configured module on the configured data; returns the CLI with trainer, model and data.

    Args:
        args: the command line after `train.py`; the process's own where None.
    """
    args = list(sys.argv[1:] if args is None else args)
    preflight("train", __doc__, args)
    from lightning_modules.cli import StudyCLI, check_checkpoint

    cli = StudyCLI(args)
    if cli.config.ckpt_path is not None:
        if not getattr(cli.model, "resumable", True):
            raise ValueError(
                f"{type(cli.model).__name__} cannot go on from a checkpoint; run it anew"
            )
        check_checkpoint(cli.config.ckpt_path, cli.model, cli.datamodule)
    # Our own checkpoints hold random states too, more than tensors.
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
    return cli


if __name__ == "__main__":
    run(main, is_stage=True)
