"""A stranger's study file: what it says, and what can be refused before anything slow is imported."""

from __future__ import annotations

import inspect
import json
import os
import pydoc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from delta_transcoders.command import nearest
from delta_transcoders.files import read_json
from delta_transcoders.hub import check_hub_id, is_hub_id, local_folder, split_hub_id
from delta_transcoders.own_study.sizes import ModelSize
from delta_transcoders.tasks.examples import Examples, JudgeName
from delta_transcoders.tasks.paragraphs import Paragraphs
from delta_transcoders.tasks.task import Example, Task

NEEDED = ("base_model", "finetuned_model", "examples", "judge")
CHOICES = ("study", "seed", "dictionaries", "layers", "text", "dtype")
DTYPES = ("float32", "bfloat16")
TASK_OPTIONS = tuple(
    name for name in inspect.signature(Examples).parameters if name not in ("jsonl", "judge")
)
"""Options of `Examples`, which may stand beside `judge`."""
STAGES = {
    "model": "module",
    "split": "module",
    "behaviour": "evaluate",
    "activations": "evaluate",
    "delta": "train",
    "features": "evaluate",
    "exp1": "evaluate",
    "exp2a": "evaluate",
    "exp2b": "evaluate",
    "spillover": "evaluate",
    "corrections": "train",
    "controls": "evaluate",
    "ranking": "evaluate",
    "effects": "evaluate",
}
"""What runs each stage."""
WITH_OPTIONS = tuple(name for name in STAGES if name != "model")
"""Stages whose options stand under their name."""
ALL = "all"
"""Options of every stage."""


@dataclass(frozen=True)
class OwnStudy:
    """What a study file says, checked as far as that needs no model.

    Attributes:
        file: of the study, for messages.
        size: of the base model.
        is_adapter: whether `finetuned_model` is a PEFT adapter for `base_model`.
        dtype: of the models' weights; by their size where None.
        task: `class_path` and `init_args`, as a configuration has it.
        reading: the task without how answers are judged, which stages that do not judge need not know.
        loaded: the examples of `examples`.
        layers: those asked for.
        notes: lines to be shown before the plan.
        options: by stage, options as on its command line: `{"delta": {"model.lr": 1e-3}}`.
    """

    file: Path
    study: Path
    seed: int
    base_model: str
    finetuned_model: str
    is_adapter: bool
    size: ModelSize
    dictionaries: str | None
    examples: str
    task: dict[str, Any]
    reading: dict[str, Any]
    loaded: tuple[Example, ...]
    layers: tuple[int, ...]
    text: str | None
    dtype: str | None
    notes: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]

    @property
    def has_targets(self) -> bool:
        return any(example.target is not None for example in self.loaded)


class _Reader:
    """A study file's values by key; messages say file, line and key."""

    def __init__(self, content: Mapping[str, Any], file: Path) -> None:
        self.content, self.file = content, file

    def __call__(self, key: str, default: Any = None) -> Any:
        return self.content.get(key, default)

    def where(self, key: str) -> str:
        """
        >>> _Reader({}, Path("mine.yaml")).where("judge")
        'mine.yaml: judge'
        """
        text = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        lines = (n for n, line in enumerate(text.splitlines(), 1) if line.startswith(f"{key}:"))
        line = next(lines, None)
        return f"{self.file}{f', line {line}' if line else ''}: {key}"

    def text(self, key: str) -> str | None:
        value = self(key)
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise ValueError(f"{self.where(key)} is {value!r}, expected a path or a hub id")
        return value


def read_own_study(content: Mapping[str, Any], file: Path, study: Path, seed: int) -> OwnStudy:
    """What a study file says; see `own_study.expand`."""
    read = _Reader(content, file)
    _check_keys(read)
    base, base_config = _model(read, "base_model")
    if "adapter" in base_config:
        raise ValueError(
            f"{read.where('base_model')}: {base!r} holds an adapter (adapter_config.json): give the model "
            "that it goes on, alone in its folder"
        )
    size = _size(read, base, base_config["model"])
    finetuned, finetuned_config = _model(read, "finetuned_model")
    notes = []
    if "adapter" in finetuned_config:
        notes = _check_adapter(read, finetuned_config["adapter"], base)
    elif Path(base).expanduser().resolve() == Path(finetuned).expanduser().resolve():
        raise ValueError(
            f"{read.where('finetuned_model')} is base_model, {base!r}: give what was made of it"
        )
    examples, dictionaries = read.text("examples"), _dictionaries(read)
    used = {"base_model": base, "finetuned_model": finetuned, "examples": examples}
    _check_folder(read, study, used | ({"dictionaries": dictionaries} if dictionaries else {}))
    task, reading, loaded = _examples(read, examples)
    return OwnStudy(
        file=file,
        study=study,
        seed=seed,
        base_model=base,
        finetuned_model=finetuned,
        is_adapter="adapter" in finetuned_config,
        size=size,
        dictionaries=dictionaries,
        examples=examples,
        task=task,
        reading=reading,
        loaded=loaded,
        layers=_layers(read, size.n_layers),
        text=_text(read),
        dtype=read("dtype"),
        notes=tuple(notes),
        options={name: dict(read(name) or {}) for name in (*WITH_OPTIONS, ALL) if name in content},
    )


def _check_keys(read: _Reader) -> None:
    known = (*NEEDED, *CHOICES, *TASK_OPTIONS, *WITH_OPTIONS, ALL)
    for key in read.content:
        if key not in known:
            raise ValueError(f"{read.where(key)} is no key of a study file; {nearest(key, known)}")
    for key in NEEDED:
        if read(key) is None:
            raise ValueError(f"{read.file} has no {key}: a study of your own model needs it")
    if read("dtype") not in (None, *DTYPES):
        hint = nearest(str(read("dtype")), DTYPES)
        raise ValueError(f"{read.where('dtype')} is {read('dtype')!r}; {hint}")
    for key in (*WITH_OPTIONS, ALL):
        options = {} if read(key) is None else read(key)
        if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
            raise ValueError(
                f"{read.where(key)} is {read(key)!r}, expected options of the stage, as in "
                f"{key}: {{model.rows_per_pass: 16}}"
            )


def _check_folder(read: _Reader, study: Path, used: Mapping[str, str]) -> None:
    """Refuse a folder that a study would write among other things in.

    Args:
        used: what the study reads, by key.
    """
    folder, where = study.expanduser().resolve(), f"{read.where('study')}: {str(study)!r}"
    for key, source in used.items():
        path = Path(source).expanduser().resolve()
        if path == folder or path in folder.parents:
            raise ValueError(f"{where} lies in {key}, {source!r}: give a folder of its own")
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"{where}: {str(part)!r} is a file: give another folder")
    ours = (folder / "study.json", folder / "configs" / "checked.json")
    if folder.is_dir() and any(folder.iterdir()) and not any(path.is_file() for path in ours):
        raise ValueError(f"{where} holds other files and no study: give a new or an empty folder")


def _model(read: _Reader, key: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """A model's folder or hub id, and its configuration: `model`, `adapter` or both."""
    source = read.text(key)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            check_hub_id(source, "model folder")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{read.where(key)}: no folder {source!r} (as seen from {Path.cwd()}), and it is no hub id "
                "(owner/name)"
            ) from None
        try:
            folder = local_folder(source, ["config.json", "adapter_config.json"])
        except ConnectionError as error:
            raise ConnectionError(
                f"{read.where(key)}: no such folder as seen from {Path.cwd()}; {error}"
            ) from error
    names = {"model": "config.json", "adapter": "adapter_config.json"}
    found = {
        kind: read_json(folder / name) for kind, name in names.items() if (folder / name).is_file()
    }
    if not found:
        raise FileNotFoundError(
            f"{read.where(key)}: {source!r} has neither config.json nor adapter_config.json"
        )
    if len(found) == 2 and key == "finetuned_model":
        raise ValueError(
            f"{read.where(key)}: {source!r} holds a model and an adapter (config.json and "
            "adapter_config.json): give one of them, alone in its folder"
        )
    return _as_path(source), found


def _as_path(source: str) -> str:
    """A file or folder here so that it is told from a word: `base` is no input of a stage, `./base` is."""
    is_word = os.sep not in source and not Path(source).suffix
    return f"./{source}" if is_word and Path(source).exists() else source


def _size(read: _Reader, source: str, config: Mapping[str, Any]) -> ModelSize:
    from delta_transcoders.families import family_by_type

    where = f"{read.where('base_model')}: {source!r}"
    if config.get("quantization_config"):
        raise ValueError(
            f"{where} is quantized (quantization_config), and deltas are trained on whole weights: give the "
            "model that it was made of"
        )
    try:
        family_by_type(config.get("model_type"))
        return ModelSize.of(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_adapter(read: _Reader, adapter: Mapping[str, Any], base: str) -> list[str]:
    """Refuse an adapter that names another model; whether its weights fit is seen when it is read.

    Returns:
        A note where it may be another one.
    """
    where, of = read.where("finetuned_model"), adapter.get("base_model_name_or_path") or ""
    folders = [Path(source).expanduser() for source in (str(of), base)]
    are_others = all(f.is_dir() for f in folders) and not folders[0].samefile(folders[1])
    if (of and are_others) or (is_hub_id(str(of)) and is_hub_id(base) and of != base):
        raise ValueError(
            f"{where} is an adapter for {of}, and base_model is {base}: give base_model: {of}"
        )
    if adapter.get("peft_type") != "LORA":
        raise ValueError(
            f"{where} is an adapter of the type {adapter.get('peft_type')}, and only LORA is read here: "
            "merge it into its model, and give that"
        )
    if of and folders[0].resolve().name != folders[1].resolve().name:
        return [f"warning: the adapter says that its base is {of}, and base_model is {base}"]
    return []


def _layers(read: _Reader, n_layers: int) -> tuple[int, ...]:
    asked = read("layers", "all")
    if asked == "all":
        return tuple(range(n_layers))
    is_list = isinstance(asked, list) and asked != []
    if not is_list or any(not isinstance(n, int) or isinstance(n, bool) for n in asked):
        raise ValueError(
            f"{read.where('layers')} is {asked!r}, expected all, or numbers as in [0, 5]"
        )
    for layer in asked:
        if not 0 <= layer < n_layers:
            raise ValueError(
                f"{read.where('layers')}: there is no layer {layer}, base_model has {n_layers}, from 0"
            )
    return tuple(sorted(set(asked)))


def _dictionaries(read: _Reader) -> str | None:
    """Their folder or hub id; what they hold is seen later, by `checks.checked`."""
    source = read.text("dictionaries")
    if source is None:
        return None
    if not Path(source).expanduser().is_dir() and split_hub_id(source) is None:
        raise FileNotFoundError(
            f"{read.where('dictionaries')}: no folder {source!r} (as seen from {Path.cwd()}), and it is no "
            "hub id (owner/name)"
        )
    return _as_path(source)


def _text(read: _Reader) -> str | None:
    path = read.text("text")
    if path is not None:
        try:
            Paragraphs().read(path)
        except (OSError, ValueError) as error:
            raise type(error)(f"{read.where('text')}: {error}") from error
    return path and _as_path(path)


def _examples(
    read: _Reader, path: str
) -> tuple[dict[str, Any], dict[str, Any], tuple[Example, ...]]:
    """`task`, `reading` and `loaded` of a study."""
    judge, options = read("judge"), {key: read(key) for key in TASK_OPTIONS if key in read.content}
    if isinstance(judge, Mapping):
        if set(judge) - {"class_path", "init_args"} or "class_path" not in judge:
            raise ValueError(
                f"{read.where('judge')} is {dict(judge)!r}, expected {{class_path: …, init_args: {{…}}}}"
            )
        if options:
            raise ValueError(
                f"{read.where(next(iter(options)))} is for the ready judges: give it to the class, as one of "
                "its init_args"
            )
        name, options = judge["class_path"], judge.get("init_args") or {}
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise ValueError(
                f"{read.where('judge')} is {dict(judge)!r}, expected a text as class_path and a mapping as "
                "init_args"
            )
        if "jsonl" in options:
            raise ValueError(f"{read.where('judge')}: jsonl is the file's `examples`: leave it out")
    elif judge not in get_args(JudgeName):
        hint = nearest(str(judge), get_args(JudgeName))
        raise ValueError(f"{read.where('judge')} is {judge!r}; {hint}")
    else:
        _check_types(read, options)
        name, options = "delta_transcoders.tasks.examples.Examples", {"judge": judge} | options
    try:
        takes_file = "jsonl" in inspect.signature(_task_class(name)).parameters
        file = {"jsonl": path} if takes_file else {}
        spec = reading = {"class_path": name, "init_args": file | dict(options)}
        task = make_task(spec)
    except ValueError as error:
        raise ValueError(f"{read.where('judge')}: {error}") from error
    if not isinstance(judge, Mapping):
        kept = {key: options[key] for key in ("held_out", "evaluation_only") if key in options}
        # Any ready judge will do here; this one needs neither targets nor options.
        reading = {"class_path": name, "init_args": file | {"judge": "refusal"} | kept}
    try:
        loaded = _read_examples(task, path)
        for example in loaded:
            task.verdicts(example.target or "", example)
        return spec, reading, loaded
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{read.where('examples')}: no file {path!r} (as seen from {Path.cwd()})"
        ) from None
    except ValueError as error:
        raise ValueError(f"{read.where('examples')}: {error}") from error


def _read_examples(task: Task, path: str) -> tuple[Example, ...]:
    try:
        found = task.read(path)
    except (OSError, ValueError):
        raise
    except Exception as error:  # a user's own class may raise anything
        raise ValueError(f"{type(task).__name__}.read: {type(error).__name__}: {error}") from error
    is_mapping = isinstance(found, Mapping) and found
    if not is_mapping or not all(isinstance(example, Example) for example in found.values()):
        raise ValueError(
            f"{type(task).__name__}.read returns {found!r:.60}, expected {{line: Example}} of one or more"
        )
    return tuple(found.values())


def _check_types(read: _Reader, options: Mapping[str, Any]) -> None:
    """Refuse values that a configuration's parser would, or would read otherwise."""
    hints = get_type_hints(Examples.__init__)
    for key, value in options.items():
        if hints[key] is float:
            fits, expected = type(value) in (int, float), "a number"
        elif hints[key] == tuple[str, ...]:
            fits = isinstance(value, list) and all(isinstance(part, str) for part in value)
            expected = "a list of texts"
        else:
            fits, expected = isinstance(value, hints[key]), "a text"
        if not fits:
            raise ValueError(f"{read.where(key)} is {value!r}, expected {expected}")


def make_task(spec: Mapping[str, Any]) -> Task:
    """The task that a configuration's `class_path` and `init_args` say.

    Raises:
        ValueError: no such class, or options that it refuses; names it.
    """
    name = spec["class_path"]
    kind = _task_class(name)
    try:
        return kind(**spec.get("init_args", {}))
    except ValueError:
        raise
    except Exception as error:  # a user's own class may raise anything
        raise ValueError(
            f"{name} does not take {json.dumps(spec['init_args'], default=str)}: {error}"
        ) from error


def _task_class(name: str) -> type[Task]:
    try:
        kind = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error
    if not (inspect.isclass(kind) and issubclass(kind, Task)):
        raise ValueError(
            f"class_path {name!r} is no task: expected a subclass of delta_transcoders.tasks.task.Task, in a "
            "module that Python finds: one beside the study file is"
        )
    return kind
