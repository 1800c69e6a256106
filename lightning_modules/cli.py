"""The command line of `train.py` and `evaluate.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value",
)


def one_line(message: str) -> str:
    """What a message of jsonargparse comes down to, without the alternatives that nobody meant.

    >>> one_line("Errors:\\n  - no file 'a'\\n  - Expected a <class 'NoneType'>\\nGiven value: b")
    "no file 'a'"
    """
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line.removeprefix("- ") for line in lines if not line.startswith(_NOISE))


class StudyParser(LightningArgumentParser):
    """Reports an error in one line, without the usage of every option of the trainer."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser: jsonargparse handles its errors
            super().error(message, ex)
        raise ValueError(one_line(message)) from ex


class StudyCLI(LightningCLI):
    """LightningCLI without a subcommand, for any module and data; `${study}` works in every value."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            args=list(args),
            run=False,
            parser_class=StudyParser,
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

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.config = parser.parse_args(args)  # without the warning that `args` were given

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ValueError(one_line(str(error))) from error
