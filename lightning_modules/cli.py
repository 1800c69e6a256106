"""The command line of `train.py` and `evaluate.py`."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class StudyCLI(LightningCLI):
    """LightningCLI without a subcommand, for any module and data; `${study}` works in every value."""

    def __init__(self, args: Sequence[str] | None) -> None:
        super().__init__(
            args=list(args) if args is not None else None,
            run=False,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"parser_mode": "omegaconf+"},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--study", type=str, default="runs/tiny", help="folder of the study")
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="checkpoint to resume from"
        )
