"""What a study reads that it does not make: models, dictionaries, datasets, files of examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delta_transcoders.command import set_option
from delta_transcoders.study.check.before import missing, there
from delta_transcoders.study.plan import Graph, Step
from delta_transcoders.study.public_base import used_keys
from delta_transcoders.study.study_file import SCRIPTS, read_configs

MODELS = ("model", "base_model", "finetuned_model")
DICTIONARIES = "base_transcoders"
FILES = ("jsonl", "copy_file", "replies")
FINETUNE = "datamodules.finetune_data.FinetuneData"
"""The data that make a task's examples; other stages read what these wrote."""


@dataclass(frozen=True)
class Source:
    """
    Attributes:
        kind: `model`, `dictionaries`, `dataset` or `file`.
        name: folder, hub id or path.
        options: what gives another one, as in `--all.base.model`: one of each stage that reads it.
        maker: the stage that makes it; empty for what is brought.
        dtype: of a model's weights in the stages.
    """

    kind: str
    name: str
    options: tuple[str, ...]
    maker: str = ""
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def given_as(self, value: str) -> str:
        """What to type for another one.

        >>> Source("model", "a/b", ("--x.model", "--y.base_model")).given_as("DIR")
        '--x.model DIR --y.base_model DIR'
        """
        return " ".join(f"{option} {value}" for option in self.options)


@dataclass(frozen=True)
class DictionaryUse:
    """A stage that puts dictionaries beside a base model, and which of the set it takes.

    Attributes:
        which: `width`, `files`, `percentile`, as of `dictionaries.bases.load_base`.
        layers: those that are asked for; all of the set where None.
        site, leading: of the capture; those of the model's family where None.
    """

    base_model: str
    dictionaries: str
    which: tuple[tuple[str, Any], ...]
    layers: tuple[int, ...] | None
    dtype: str
    site: str | None
    leading: int | None


def stages_with_options(graph: Graph) -> list[Step]:
    return [step for step in graph.steps.values() if step.stage.run in SCRIPTS]


def sources_of(graph: Graph) -> list[Source]:
    """All of them, each once, in the order in which the stages read them.

    What the study's own stages make in a pass is not among them.
    """
    found: dict[tuple[str, str], Source] = {}
    first = {step.stage.label for step in (*there(graph), *missing(graph))}
    for step in stages_with_options(graph):
        values = step.config.values
        for key, value in values.items():
            kind = _kind(key, value, values)
            if kind is None or (kind, value) in found:
                continue
            maker = graph.maker(value) if kind != "dataset" else ""
            if maker and maker not in first:
                continue
            options = _options(graph, kind, value)
            found[kind, value] = Source(kind, value, options, maker, dtype_of(values))
    return list(found.values())


def _options(graph: Graph, kind: str, name: str) -> tuple[str, ...]:
    """What gives all stages another source: of a public model's study what says it to all of them at once."""
    shared = {"model": "model", "dictionaries": "transcoders"}.get(kind)
    steps, options = stages_with_options(graph), []
    for step in steps:
        values = step.config.values
        for key, value in values.items():
            if value != name or _kind(key, value, values) != kind:
                continue
            if shared in used_keys(read_configs(step.stage, graph.study.texts)):
                options.append(f"--all.base.{shared}")
                continue
            alike = [s.config.values for s in steps if s.stage.name == step.stage.name]
            is_of_all = all(
                of.get(key) == name for of in alike
            )  # then the name goes to each of them
            options.append(f"--{step.stage.name if is_of_all else step.stage.label}.{key}")
    return tuple(dict.fromkeys(options))


def _kind(key: str, value: Any, values: Mapping[str, Any]) -> str | None:
    """
    >>> _kind("model.models.raw", "a/b", {}), _kind("data.jsonl", "x.jsonl", {}), _kind("model.lr", 1, {})
    ('model', 'file', None)
    """
    if not isinstance(value, str):
        return None
    *parents, last = key.split(".")
    if last in MODELS or parents[-1:] == ["models"]:
        return "model"
    if last == DICTIONARIES:
        return "dictionaries"
    if last == "copy_dataset":
        is_used = values.get("data.class_path") == FINETUNE
        is_used &= values.get(f"{'.'.join(parents)}.copy_source") == "hub"
        return "dataset" if is_used else None
    return "file" if last in FILES else None


def dtype_of(values: Mapping[str, Any]) -> str:
    """Of the weights of a stage's models."""
    return values.get("model.dtype") or values.get("data.model_dtype") or "float32"


def dictionary_uses(graph: Graph) -> list[DictionaryUse]:
    """Those of sets that are brought; a set that the study trains fits by its making."""
    uses = {}
    for step in stages_with_options(graph):
        values = step.config.values
        source = values.get(f"data.{DICTIONARIES}")
        if source is None or graph.maker(source):
            continue
        capture = graph.steps.get(graph.maker(str(values.get("data.cache"))))
        captured = capture.config.values if capture else {}
        layers = values.get("data.layers") or captured.get("model.layers")
        which = {
            "width": values.get("data.width"),
            "files": values.get("data.base_files"),
            "percentile": (values.get("data.percentiles") or [0.5])[0],
        }
        use = DictionaryUse(
            values["data.base_model"],
            source,
            tuple(which.items()),
            tuple(layers) if layers else None,
            dtype_of(values),
            captured.get("model.hook_site"),
            captured.get("model.leading"),
        )
        uses[use] = None
    return list(uses)


def task_of(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """`class_path` and `init_args` of the task that a stage's data are given.

    >>> task_of({"data.task.class_path": "a.B", "data.task.n": 1, "data.seed": 0})
    {'class_path': 'a.B', 'init_args': {'n': 1}}
    >>> task_of({"data.task": "a.B"}), task_of({"data.seed": 0})
    ({'class_path': 'a.B', 'init_args': {}}, None)
    """
    if isinstance(values.get("data.task"), str):
        return {"class_path": values["data.task"], "init_args": {}}
    prefix = "data.task."
    given = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    if "class_path" not in given:
        return None
    spec: dict[str, Any] = {"class_path": given.pop("class_path"), "init_args": {}}
    for key, value in given.items():
        set_option(spec, key, value)
    return spec
