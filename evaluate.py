"""Evaluate any stage: `python evaluate.py --config configs/tiny/behaviour.yaml [--key value ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from delta_transcoders.command import preflight, run


def main(args: Sequence[str] | None = None):
    """Test (or predict with) the configured module; returns the CLI with trainer, model and data.

    Args:
        args: the command line after `evaluate.py`; the process's own where None.
    """
    args = list(sys.argv[1:] if args is None else args)
    preflight("evaluate", __doc__, args)
    from lightning.pytorch.utilities.model_helpers import is_overridden

    from lightning_modules.cli import StudyCLI

    cli = StudyCLI(args)
    if cli.config.ckpt_path is not None:
        raise ValueError(
            f"--ckpt_path {cli.config.ckpt_path}: only train.py resumes; evaluate.py reads the folders that "
            "training wrote"
        )
    for name in ("limit_test_batches", "limit_predict_batches"):
        limit = getattr(cli.trainer, name)  # 1.0 is all of them, 1 is one batch
        if (isinstance(limit, int) or limit != 1.0) and not cli.trainer.fast_dev_run:
            raise ValueError(
                f"--trainer.{name} would leave examples out of the result: give the data fewer "
                "(--data.n_per_subset, --data.n_train)"
            )
    if is_overridden("predict_step", cli.model):
        # Each prediction is written as it comes; all of them together would not fit into memory.
        cli.trainer.predict(cli.model, cli.datamodule, return_predictions=False)
    else:
        # Not verbose: the modules write tables of their own, and hundreds of lines would bury them.
        cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return cli


if __name__ == "__main__":
    run(main, is_stage=True)
