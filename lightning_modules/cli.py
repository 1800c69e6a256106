"""The command line of a stage: module, data and trainer from YAML and options."""

from __future__ import annotations

import difflib
import glob
import pydoc
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.latest_curves import LatestCurves
from callbacks.progress import StageProgress
from callbacks.stop_on_signal import EndTogether, StopOnSignal
from delta_transcoders import console
from delta_transcoders.command import config_files, defaults_beside, with_home
from delta_transcoders.files import check_output
from delta_transcoders.study.public_base import PublicBase
from delta_transcoders.tasks.task import Task
from lightning_modules.language_model import LanguageModelTraining
from lightning_modules.outputs import kind_of

_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_UNKNOWN = re.compile(
    r"(?:Option|.* does not accept option) '(.+?)'|unrecognized arguments: --([^ =]+)"
)
_GIVEN = re.compile(r"Given value: (?:NestedArg\(key='.*', val=)?'?(.*?)'?\)?$")
_TYPE = re.compile(r"<class '(?:\w+\.)*(\w+)'>|typing\.")
_WRONG_TYPE = re.compile(r"Expected an? ((?:(?! but ).)+?)(?:\. Got value: (.*))?")
_OUT_OF_RANGE = re.compile(
    r"Not of type (\w+): (?:(?:(\S+) )?does not conform to restriction (v.*)|.*: '(.*)')"
)

_SAYS_NOTHING = ("Does not validate", "Subtypes", "Errors", "Given", "Expected a path but")


def one_line(message: str, known: Iterable[str] = ()) -> str:
    """What a message of jsonargparse comes down to: the option, its value, and what is expected.

    Of a union's alternatives it keeps the first that is more than "not of this type".

    Args:
        message: of jsonargparse, or of our own.
        known: options of the parser; of them or the class's own, an unknown option names the nearest.

    >>> one_line('Parser key "n": Not of type PositiveInt: 0 does not conform to restriction v>0')
    '--n is 0, expected >0'
    >>> one_line("Option 'sede' is not accepted", ["seed", "study"])
    "there is no option 'sede'; did you mean 'seed'?"
    >>> one_line('Parser key "a": Expected a Literal[1, 2]. Got value: 3')
    '--a is 3, expected 1, 2'
    """
    keys, owner, expected, problem, value = [], None, [], [], None
    for line in (line.strip().removeprefix("- ") for line in message.splitlines()):
        while key := _KEY.match(line):
            keys.append(key[1])
            line = line[key.end() :]
        if line.startswith("Problem with given class_path"):
            if problem or expected:
                break
            owner = line.split("'")[1]
            line = line.partition("':")[2].strip()
        if given := _GIVEN.match(line):
            value = value or given[1]
            break
        if line.startswith("Subclass types expect"):
            break
        if found := _WRONG_TYPE.fullmatch(line):
            expected.append(_TYPE.sub(r"\1", found[1]))
            value = found[2] or value
        elif found := _OUT_OF_RANGE.fullmatch(line):
            expected.append((found[3] or "").replace("v", "") or found[1])
            value = found[2] or found[4] or value
        elif line and not line.startswith(_SAYS_NOTHING):
            problem.append(line)
    option, text = f"--{'.'.join(keys)}", " ".join(problem)
    if unknown := _UNKNOWN.match(text):
        return _no_such_option(unknown[unknown.lastindex], owner, known)
    if expected and not problem:
        names = (re.sub(r"^Literal\[(.*)\]$", r"\1", name) for name in expected)
        meant = [name for name in names if name != "NoneType"]
        return f"{option} is {value}, expected {' or '.join(meant)}"
    return f"{option}: {text}" if keys else text


def _no_such_option(name: str, owner: str | None, known: Iterable[str]) -> str:
    if owner:
        parser = LightningArgumentParser()
        parser.add_class_arguments(pydoc.locate(owner), fail_untyped=False)
        known = [action.dest for action in parser._actions]
    leaf = name.rpartition(".")[2]
    near = difflib.get_close_matches(leaf, {option.rpartition(".")[2] for option in known}, n=1)
    where = f"{owner.rpartition('.')[2]} has" if owner else "there is"
    hint = f"; did you mean {near[0]!r}?" if near else " (--print_config lists all)"
    return f"{where} no option {name!r}{hint}"


def expand_home(value: Any) -> Any:
    """A configuration with `~` spelt out wherever a text starts with it: no shell has seen a YAML file.

    >>> expand_home({"a": ["~/x", 1]})["a"] == [f"{Path.home()}/x", 1]
    True
    """
    if isinstance(value, str):
        return with_home(value)
    if isinstance(value, Namespace):
        return Namespace({key: expand_home(part) for key, part in vars(value).items()})
    if isinstance(value, dict):
        return {key: expand_home(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(expand_home(part) for part in value)
    return value


def check_checkpoint(path: str, module: LightningModule, datamodule: LightningDataModule) -> None:
    """Refuse what the module cannot go on from; warn of options that have changed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or not a checkpoint of this kind of module; names both kinds. Nothing but
            tensors and plain values is unpickled.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Checkpoint file not found: {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        kind = checkpoint["hyper_parameters"]["_class_path"]
    except Exception as error:  # damaged files end in a dozen kinds of them
        raise ValueError(
            f"the checkpoint {path} cannot be read: damaged, or not a file that training wrote"
        ) from error
    ours = f"{type(module).__module__}.{type(module).__qualname__}"
    if kind != ours:
        raise ValueError(f"the checkpoint {path} is of {kind}, this configuration trains {ours}")
    given = {"model": module.hparams, "data": datamodule.hparams}
    saved = {
        "model": checkpoint["hyper_parameters"],
        "data": checkpoint.get("datamodule_hyper_parameters", {}),
    }
    other = [
        f"--{part}.{name} {saved[part][name]!r} → {given[part][name]!r}"
        for part in given
        for name in sorted(given[part].keys() & saved[part].keys())
        if not name.startswith("_") and name != "output" and given[part][name] != saved[part][name]
    ]
    if other:
        rank_zero_warn(
            f"{path} was trained with other options, and this run goes on with its own: {', '.join(other)}",
            category=console.StudyWarning,
        )


class StudyParser(LightningArgumentParser):
    """Reports an error in one line, without the usage of every option of the trainer."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser: jsonargparse handles its errors
            super().error(message, ex)
        raise ValueError(one_line(message, [action.dest for action in self._actions])) from ex


class StudyCLI(LightningCLI):
    """LightningCLI without a subcommand, for any module and data; `${study}` works in every value."""

    def __init__(self, args: Sequence[str]) -> None:
        files = config_files(args)
        names = [Path(file).stem for file in files if Path(file) != defaults_beside(file)]
        self.stage = names[0] if names else ""
        defaults = [glob.escape(str(defaults_beside(file))) for file in files[:1]]
        super().__init__(
            args=list(args),
            run=False,
            parser_class=StudyParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"parser_mode": "omegaconf+", "default_config_files": defaults},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--study", type=str, default="runs/tiny", help="folder of the study")
        parser.add_argument(
            "--stage", type=str, default=self.stage, help="the stage's name in the logs"
        )
        parser.add_class_arguments(PublicBase, "base", instantiate=False)
        # Data that need it say `task: ${task}`, and make it there.
        parser.add_subclass_arguments(Task, "task", required=False, instantiate=False)
        parser.add_argument(
            "--subsets", type=list[str] | None, default=None, help="what is measured"
        )
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="checkpoint to resume from"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        # Without the warning that `args` were given.
        self.config = expand_home(parser.parse_args(args))
        console.to_file(self.config.trainer.default_root_dir or self.config.study)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ValueError(one_line(str(error))) from error
        self._check_shared_options()
        self._check_precision()
        self._check_outputs()
        self._check_strategy()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        given = config.callbacks or []
        callbacks = [EndTogether(), *(given if isinstance(given, list) else [given])]
        if config.logger is False or config.logger == []:  # it refuses to run without one
            callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
        if config.enable_progress_bar is not False:
            callbacks.append(StageProgress())
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        trainer.callbacks.append(StopOnSignal())  # after Lightning has put checkpoints last
        if self.config.ckpt_path is None:
            trainer.callbacks.append(LatestCurves(trainer))
        return trainer

    def _check_shared_options(self) -> None:
        """Refuse module and data that were told different things: the logger could not say which."""
        model, data = self.model.hparams, self.datamodule.hparams
        for name in sorted(k for k in model.keys() & data.keys() if not k.startswith("_")):
            if model[name] != data[name]:
                raise ValueError(
                    f"--model.{name} is {model[name]!r} and --data.{name} {data[name]!r}, expected the "
                    "same: give both"
                )

    def _check_precision(self) -> None:
        """Only language models are trained in another precision than float32.

        Dictionaries would be rounded, and models run in another dtype than the one written down with what was
        measured: `--model.dtype` is the option for that.
        """
        precision = self.trainer.precision
        if precision != "32-true" and not isinstance(self.model, LanguageModelTraining):
            raise ValueError(
                f"--trainer.precision is {precision!r}, expected 32-true: dictionaries are trained in "
                "float32 and models are measured in the dtype of their own option (--model.dtype)"
            )

    def _check_outputs(self) -> None:
        """Refuse a folder that cannot be written, now and not when hours of work are to be saved."""
        outputs = {c.output: c.output_kind for c in self.trainer.callbacks if hasattr(c, "output")}
        if "output" in self.model.hparams:
            outputs[self.model.hparams.output] = kind_of(self.model)
        logs = {self.trainer.log_dir, *(logger.save_dir for logger in self.trainer.loggers)}
        for output, kind in outputs.items():
            check_output(output, kind)
            for folder in filter(None, logs):
                if Path(folder).resolve().is_relative_to(Path(output).resolve()):
                    raise ValueError(
                        f"the logs would go to {folder}, inside of the output {output}, which is replaced as "
                        "a whole: give one of them another folder"
                    )

    def _check_strategy(self) -> None:
        """Refuse a strategy whose processes do not each hold the whole module, unless it says it can."""
        strategy, ok = self.trainer.strategy, ["ddp"]
        if getattr(self.model, "can_be_sharded", False):
            ok.append("fsdp")
        kinds = {"ddp": DDPStrategy, "fsdp": FSDPStrategy}
        popen = getattr(strategy, "_start_method", "popen") == "popen"
        if not (
            isinstance(strategy, (SingleDeviceStrategy, *(kinds[name] for name in ok))) and popen
        ):
            raise ValueError(
                f"--trainer.strategy {type(strategy).__name__} does not work for "
                f"{type(self.model).__name__}: use auto or {' or '.join(ok)}"
            )
