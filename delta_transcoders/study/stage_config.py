"""What a stage's configuration comes to, without the slow imports: which folders it reads and writes.

`train.py` and `evaluate.py` read the same files in the same order; they also check every value, which is not
done here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from delta_transcoders.command import defaults_beside, find_config, nearest, read_yaml, set_option
from delta_transcoders.study.study_file import SCRIPTS, Stage

OPTIONS = ("model", "data", "trainer", "task", "subsets", "stage", "seed_everything")
"""What options of a stage begin with."""

NOT_RESULTS = ("logger", "default_root_dir", "enable_progress_bar")
"""Options of the trainer without a part in what a stage writes."""

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

    Raises:
        ValueError: a configuration that is no YAML, refers to what is not there, or names no output; an
            option that no stage has.
    """

    def __init__(self, stage: Stage, texts: Mapping[str, str]) -> None:
        self.checkpoints: Path | None = None
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
        if stage.run == "train" and trainer.get("enable_checkpointing") is not False:
            self.checkpoints = _logs(trainer) / "checkpoints"


def _resolved(stage: Stage, texts: Mapping[str, str]) -> dict:
    config: dict = {"task": None, "subsets": None, "stage": Path(stage.config).stem}
    for file in (str(defaults_beside(stage.config)), stage.config, stage.task):
        if file in texts:
            config = _merged(config, yaml.safe_load(texts[file]))
        elif file and Path(find_config(file)).is_file():
            config = _merged(config, read_yaml(find_config(file)))
    config |= {"study": stage.study, "seed_everything": stage.seed}
    for option, value in stage.options.items():
        if (first := option.partition(".")[0]) not in OPTIONS:
            raise ValueError(f"{stage.label} has no option {option}; {nearest(first, OPTIONS)}")
        set_option(config, option, value)
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{stage.config}: {str(error).splitlines()[0]}") from None


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
    return Path(args.get("save_dir", "."), str(args.get("name", "")), str(args.get("version", "")))


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
