"""What a stage's configuration comes to, without the slow imports: which folders it reads and writes.

`train.py` and `evaluate.py` read the same files in the same order; they also check every value, which is not
done here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from delta_transcoders.command import (
    arguments_of,
    nearest,
    set_option,
)
from delta_transcoders.study.public_base import PublicBase, check_base, check_values, used_keys
from delta_transcoders.study.study_file import SCRIPTS, Stage, read_configs

OPTIONS = ("model", "data", "trainer", "base", "task", "subsets", "stage", "seed_everything")
"""What options of a stage begin with."""

NOT_RESULTS = ("logger", "default_root_dir", "enable_progress_bar")
"""Options of the trainer without a part in what a stage writes."""

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class StageConfig:
    """The configuration of a stage, resolved.

    Args:
        texts: of configurations that are not written yet, by path.

    Attributes:
        values: by what a user would call them, as in `model.lr`; of a module its arguments.
        outputs: folders; of a module files too.
        reads: every text that may be a path, and a module's `reads`.
        checkpoints: folder of its checkpoints, where it has any.
        holds: folders beside its outputs that it writes into: its logs, and of a training its cache, to
            which it may add a target.

    Raises:
        ValueError: a configuration that is no YAML, refers to what is not there, or names no output; an
            option that no stage has, or that its class does not take.
    """

    def __init__(self, stage: Stage, texts: Mapping[str, str]) -> None:
        self.checkpoints: Path | None = None
        self.holds: list[str] = []
        if stage.run not in SCRIPTS:
            self.outputs, self.reads = list(stage.writes), list(stage.reads)
            self.values = {"arguments": list(stage.arguments)}
            return
        config = _resolved(stage, texts)
        trainer = config.get("trainer") or {}
        callbacks = [c for c in _list(trainer.get("callbacks")) if isinstance(c, dict)]
        parts = [config.get("model"), config.get("data"), *callbacks]
        given = [part.get("init_args") or {} for part in parts if isinstance(part, dict)]
        self.outputs = list(dict.fromkeys(args["output"] for args in given if args.get("output")))
        if not self.outputs:
            raise ValueError(f"{stage.config} names no output, so that {stage.label} is never done")
        self.reads = [
            text
            for args in given
            for key, value in args.items()
            if key != "output"
            for text in _texts(value)
        ]
        self.values = dict(
            _flat({key: config.get(key) for key in ("seed_everything", "model", "data")})
        )
        used = {key: value for key, value in trainer.items() if key not in NOT_RESULTS}
        self.values |= dict(_flat(used, "trainer"))
        # Of Lightning, and `console.txt`.
        self.holds += [str(_logs(trainer)), str(trainer.get("default_root_dir") or stage.study)]
        if stage.run == "train":
            if cache := self.values.get("data.cache"):
                self.holds.append(str(cache))
            if trainer.get("enable_checkpointing") is not False:
                self.checkpoints = _logs(trainer) / "checkpoints"


def _resolved(stage: Stage, texts: Mapping[str, str]) -> dict:
    config: dict = {"task": None, "subsets": None, "stage": Path(stage.config).stem}
    config["base"] = asdict(PublicBase())
    configs = read_configs(stage, texts)
    for over in configs:
        config = _merged(config, over)
    _check_shape(config, stage.label)
    options = [f"--{option}={value}" for option, value in stage.options.items()]
    check_base(stage.label, configs, options, "give `base: base.yaml` in the study file")
    config |= {"study": stage.study, "seed_everything": stage.seed}
    for option, value in stage.options.items():
        if (first := option.partition(".")[0]) not in OPTIONS:
            raise ValueError(f"{stage.label} has no option {option}; {nearest(first, OPTIONS)}")
        set_option(config, option, value)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{stage.config}: {str(error).splitlines()[0]}") from None
    _check_shape(resolved, stage.label)
    _check_names(resolved, stage.label)
    if resolved["base"]:
        check_values(stage.label, resolved["base"], used_keys(config))
    return resolved


def _classes(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Where a configuration names a class, by what options of it begin with."""
    yield from ((name, config[name]) for name in ("model", "data") if name in config)
    trainer = config.get("trainer") or {}
    for key in ("callbacks", "logger"):
        yield from ((f"trainer.{key}", part) for part in _list(trainer.get(key)))


def _check_shape(config: Mapping[str, Any], label: str) -> None:
    """
    Raises:
        ValueError: what must be `key: value` pairs is something else, or an output is no path.
    """
    for name in ("trainer", "base"):
        if not isinstance(config.get(name), dict | None):
            raise ValueError(f"{label}: {name} is {config[name]!r}, expected `key: value` pairs")
    for name, part in _classes(config):
        arguments = part.get("init_args", {}) if isinstance(part, dict) else {}
        is_name = part is None or isinstance(part, str | bool)
        if not (is_name or isinstance(part, dict)) or not isinstance(arguments, dict):
            raise ValueError(f"{label}: {name} is {part!r}, expected class_path and init_args")
        output = arguments.get("output", "x")
        if not (isinstance(output, str) and output.strip()):
            raise ValueError(f"{label}: {name}.output is {output!r}, expected a folder")


def _check_names(config: Mapping[str, Any], label: str) -> None:
    """
    Raises:
        ValueError: an argument that its class does not have; names the nearest.
    """
    given = [("trainer", TRAINER, config.get("trainer") or {})]
    given += [
        (name, part.get("class_path"), part.get("init_args", {}))
        for name, part in _classes(config)
        if isinstance(part, dict)
    ]
    for name, kind, arguments in given:
        known = arguments_of(kind) if isinstance(kind, str) else None
        for key in arguments if known is not None else ():
            if key not in known:
                short = kind.rpartition(".")[2]
                raise ValueError(
                    f"{label}: {short} has no option {name}.{key}; {nearest(key, known)}"
                )
    known = asdict(PublicBase())
    for key in config["base"] or ():
        if key not in known:
            raise ValueError(f"{label} has no option base.{key}; {nearest(key, known)}")


def _merged(under: Any, over: Any) -> Any:
    """One configuration over another; a class's arguments stay only where it is the same class."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    if under.get("class_path") != over.get("class_path", under.get("class_path")):
        return over
    return under | {key: _merged(under.get(key), value) for key, value in over.items()}


def _logs(trainer: Mapping) -> Path:
    """The folder that Lightning's first logger has for a run."""
    loggers = [c for c in _list(trainer.get("logger")) if isinstance(c, dict)]
    if not loggers:
        return Path(trainer.get("default_root_dir") or ".")
    args = loggers[0].get("init_args") or {}
    return Path(
        args.get("save_dir") or ".", str(args.get("name", "")), str(args.get("version", ""))
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names as on the command line, with values; `1e-3` is a number here, as it is there."""
    if isinstance(value, dict):
        for key, part in value.items():
            inner = name if key == "init_args" else f"{name}.{key}".lstrip(".")
            yield from _flat(part, inner)
    elif isinstance(value, str) and _NUMBER.fullmatch(value):
        yield name, float(value)
    else:
        yield name, value


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def path_of(text: str) -> str:
    """A text as a path that can be compared with others."""
    return os.path.abspath(os.path.expanduser(text))
