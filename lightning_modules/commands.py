"""What `train.py` and `evaluate.py` do, and `delta-transcoders`, which has every command under one name."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from delta_transcoders.command import (
    config_files,
    defaults_beside,
    nearest,
    preflight,
    read_yaml,
    run,
)
from delta_transcoders.study.public_base import check_base

if TYPE_CHECKING:
    from lightning_modules.cli import StudyCLI

PROGRAM = "delta-transcoders"

MODULES = {
    "study": "delta_transcoders.study",
    "check": "delta_transcoders.study.check",
    "inspect": "delta_transcoders.inspector.command",
    "serve": "delta_transcoders.inspector.serve",
    "export": "delta_transcoders.export",
    "publish": "delta_transcoders.publish",
    "import": "delta_transcoders.import_dictionaries",
    "graph": "delta_transcoders.features.circuit_tracer_graph",
    "answer": "delta_transcoders.report.answer",
    "summary": "delta_transcoders.report.summary",
    "report": "delta_transcoders.report.html",
    "features": "delta_transcoders.pages.feature_pages",
    "comparisons": "delta_transcoders.report.comparisons",
    "ranking": "delta_transcoders.report.ranking",
    "feature-curve": "delta_transcoders.report.feature_curve",
    "sweep-summary": "delta_transcoders.report.sweep_summary",
}
"""Commands that `python -m` runs under another name."""

OVERVIEW = f"""usage: {PROGRAM} COMMAND [OPTIONS]    ({PROGRAM} COMMAND --help explains one)

  study          run what is not done of a study, stage by stage
  check          is everything there for a study, does it fit together, and what will it take
  train          train one stage
  evaluate       measure one stage, or capture its activations
  inspect        answer one prompt with and without a study's delta, or parts of it
  serve          the same in a browser, on this machine alone
  export         write dictionaries for other tools, or parts of a study, with a model card; push them
  publish        everything that studies trained as one hub repository, with cards
  import         read other tools' dictionaries
  graph          label a delta's nodes in a graph of circuit-tracer's, and give it their examples
  answer         print what a study found, on one screen
  summary        print all tables of a study
  report         write a study's page of results
  features       write the pages of its features, to look at each
  comparisons    compare an experiment's conditions, paired over examples and seeds
  ranking        print which features of a delta matter
  feature-curve  print how few of them are enough
  sweep-summary  sum up a sweep's Experiment 1

Configurations named configs/... are the package's own where there is no such file."""


def _checked(program: str, name: str, summary: str, args: Sequence[str]) -> list[str]:
    """What `preflight` returns, after a look at the base that the configurations refer to."""
    args = preflight(program, name, summary, args)
    files = config_files(args)
    defaults = [defaults_beside(file) for file in files[:1] if defaults_beside(file).is_file()]
    configs = [read_yaml(file) for file in (*defaults, *files)]
    later = [
        file for file, held in zip(files, configs[len(defaults) :], strict=True) if "model" in held
    ]
    if not defaults and later and files[0] not in later:
        raise ValueError(f"{files[0]} is no stage's configuration: give it after {later[0]}")
    check_base(files[0] if files else name, configs, args, "add `--config configs/MODEL/base.yaml`")
    return args


def train(args: Sequence[str] | None = None, program: str = "python train.py") -> StudyCLI:
    """Fit the configured module on the configured data; returns the CLI with trainer, model and data.

    Args:
        args: the command line after the program; the process's own where None.
        program: how the user calls it.
    """
    args = list(sys.argv[1:] if args is None else args)
    args = _checked(program, "train", "Train one stage.", args)
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


def evaluate(args: Sequence[str] | None = None, program: str = "python evaluate.py") -> StudyCLI:
    """Test (or predict with) the configured module; arguments and result as those of `train`."""
    args = list(sys.argv[1:] if args is None else args)
    args = _checked(program, "evaluate", "Measure one stage, or capture its activations.", args)
    from lightning.pytorch.utilities.model_helpers import is_overridden

    from lightning_modules.cli import StudyCLI

    cli = StudyCLI(args)
    if cli.config.ckpt_path is not None:
        raise ValueError(
            f"--ckpt_path {cli.config.ckpt_path}: only training resumes; evaluations read the folders "
            "that it wrote"
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


def main() -> None:
    """Entry point of `delta-transcoders`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("train", "evaluate"):
        # `sys.argv` stays: further processes of a distributed run are started from it.
        stage = {"train": train, "evaluate": evaluate}[name]
        run(lambda: stage(sys.argv[2:], f"{PROGRAM} {name}"), is_stage=True)
    elif name in MODULES:
        sys.argv[:2] = [f"{PROGRAM} {name}"]
        runpy.run_module(MODULES[name], run_name="__main__")
    else:
        run(lambda: _overview(name))


def _overview(name: str) -> None:
    if name not in ("-h", "--help"):
        hint = nearest(name, [*MODULES, "train", "evaluate"])
        raise ValueError(f"there is no command {name!r}; {hint}")
    print(OVERVIEW)


if __name__ == "__main__":  # as a study starts it
    sys.argv[0] = PROGRAM
    main()
