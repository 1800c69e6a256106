"""What a study's folders say of the study, for the cards of its exports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transcoders.files import DONE, check_version
from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.hub import is_hub_id, portable_name, split_hub_id, split_layer
from delta_transcoders.report.columns import whole_model
from delta_transcoders.report.formatting import cell_text
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.smollm2 import origin
from delta_transcoders.tasks.task import DESCRIPTION_VERSION

if TYPE_CHECKING:
    from delta_transcoders.dictionaries.files.shared_dictionaries import SharedBase


@dataclass(frozen=True)
class TaskDescription:
    """What cards say of the task that a model was finetuned on: the fields of `finetune/data/task.json`.

    A card says nothing where a field is missing; other fields of the file are left alone.

    Attributes:
        title: what the finetuned model does, to begin a title with: "Declines harmful requests".
        description: whole sentences on what it was finetuned to do.
        subsets: by subset, which examples it holds: "requests of other kinds".
        measures: by measure, when its verdict is true: "the text holds the target".
        tags: the task's own tags for the hub.
        prompt: an example as the tokenizer gets it, with its newline or chat template.
        limitations: whole sentences.
    """

    title: str = ""
    description: str = ""
    subsets: Mapping[str, str] = field(default_factory=dict)
    measures: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()
    prompt: str = "Hello, world"
    limitations: Sequence[str] = ()


@dataclass(frozen=True)
class Study:
    """What a study's folder says of itself.

    Attributes:
        base: hub id of the model that was finetuned; None where it is known as a local folder only.
        base_model: the same, or else the folder's name; None where nothing is known.
        base_name: the same for reading.
        base_origin: whole sentences on where its weights are from, where its folder says so.
        base_config: of the model that was trained in this study; empty where none was.
        base_is_own: the model that was finetuned was trained in this study.
        lora: how it was finetuned.
        deltas: each layer's `config.json`.
        dtype: that the activations were captured in of the deltas' model, which its fingerprint depends on;
            None where the study has no capture of that model.
        measured: whether the study's tables are of these deltas.
    """

    run: Path
    base: str | None
    base_model: str | None
    base_name: str
    base_origin: str
    base_config: dict[str, Any]
    base_is_own: bool
    lora: str
    deltas: list[dict[str, Any]]
    dtype: str | None
    measured: bool
    task: TaskDescription

    def table(self, name: str) -> list[dict[str, str]]:
        path = self.run / name / "metrics.csv"
        return read_metrics(path) if path.is_file() else []

    def table_of_deltas(self, name: str) -> list[dict[str, str]]:
        """Rows of these deltas' configuration, and those without any."""
        keys = {key: self.deltas[0][key] for key in ("d_new", "percentile", "target")}
        wanted = {key: cell_text(value) for key, value in keys.items()}
        return [
            row
            for row in (self.table(name) if self.measured else [])
            if row["condition"] == "raw" or all(row[k] == value for k, value in wanted.items())
        ]

    def behaviour_of_deltas(self, alpha: float | None = None) -> list[dict[str, str]]:
        """With the most layers replaced: Experiment 2A, or the rows of 2B at one weight of the delta."""
        rows = self.table_of_deltas("exp2a" if alpha is None else "exp2b")
        whole = whole_model(row["layer"] for row in rows)
        if alpha is None:
            return [row for row in rows if row["layer"] in ("", whole)]
        rows = [row for row in rows if whole and row["layer"] == whole]
        return [row for row in rows if row["alpha"] and float(row["alpha"]) == alpha]

    def fingerprint(self, cache: str) -> str | None:
        """Of the model whose activations are in the study's folder `cache`."""
        if cache == "activations" and self.measured and self.deltas:
            return self.deltas[0]["model_fingerprint"]
        return _manifest(self.run / cache).get("model_fingerprint")

    def base_to_load(self) -> str:
        """The base model, for code that a reader runs."""
        if self.base_origin and not self.base:
            return f"models/{self.base_model}"
        return self.base or "FOLDER_OF_THE_BASE_MODEL"

    def composition(self) -> dict[str, Any]:
        """What the text consists of that base dictionaries were trained on, where it was collected so."""
        return _read_json(self.run / "base_text/composition.json")

    def floors(self) -> list[dict[str, str]]:
        """What base dictionaries and single neurons reconstruct in the base model, by layer."""
        rows = [row for name in ("base_floor_text", "base_floor") for row in self.table(name)]
        return [row for row in rows if row["layer"].isdecimal() and row["fvu"] not in ("", "nan")]

    def base_source(self) -> str:
        """Where the bases of the deltas are to be had."""
        file = self.deltas[0].get("base_file")
        source = split_layer(portable_name(self.deltas[0]["base_id"], file), file)[0]
        return source if split_hub_id(source) else "FOLDER_OF_THE_BASE_DICTIONARIES"

    def delta_on(self, base: SharedBase) -> dict[str, Any]:
        """`config.json` of a delta that was trained on a base dictionary of this study; empty without one."""
        name = f"base_transcoders/{base.trained_file}"
        return next((config for config in self.deltas if base_of_delta(config) == name), {})

    def examples(self) -> dict[tuple[str, str], int]:
        """How many examples each split has of each subset (or label, in files that name none)."""
        counts: Counter[tuple[str, str]] = Counter()
        for split in ("train", "validation", "evaluation"):
            path = _data_folder(self.run) / f"{split}.jsonl"
            lines = list(text_lines(path)) if path.is_file() else []
            rows = [parse_json(line, f"{path}, line {number}") for number, line in lines]
            names = sorted(row.get("subset") or row.get("label", "") for row in rows)
            counts.update((split, name) for name in names)
        return dict(counts)


def read_study(run: Path, deltas: Path, base_model: str | None) -> Study:
    """
    Args:
        deltas: folder of `layer_L`, which need not be there.
        base_model: hub id of the model that was finetuned, where the study used a local copy.
    """
    adapter = _read_json(run / "finetune/adapter/adapter_config.json")
    own = run / "base_model/config.json"
    brought = models_of(run)
    trained = adapter.get("base_model_name_or_path") or _recorded_base(run)
    name = base_model or brought.get("base_model") or trained
    base = name if is_hub_id(name) else None
    base_config = _read_json(own)
    # What the stage `base_model` has made; anything else there is the user's.
    is_trained = _read_json(own.with_name(DONE)).get("kind") == "BaseModelTraining"
    base_is_own = is_trained and Path(name).name in ("base_model", "")
    lora = "a finetune that this study's folder does not describe"
    if brought:
        lora = f"`{portable_name(brought['finetuned_model'])}`, brought to this study"
    if adapter:
        modules = ", ".join(sorted(adapter["target_modules"]))
        lora = f"LoRA (rank {adapter['r']}, alpha {adapter['lora_alpha']}) on {modules}"
    if base_is_own:
        base_name = "tiny Gemma 2 (trained from scratch in the same study)"
    elif base or not name:
        base_name = f"`{base}`" if base else "language model"
    else:
        base_name = f"`{Path(name).name}`{'' if origin(trained) else ' (a local folder)'}"
    configs = delta_configs(deltas)
    captured = _manifest(run / "activations")
    is_captured = configs and captured.get("model_fingerprint") == configs[0]["model_fingerprint"]
    path = run / ("configs/task.json" if brought else "finetune/data/task.json")
    described = _read_json(path)
    remake = "finetune anew with `python train.py --config …/lora.yaml`"
    version = described.get("format_version", DESCRIPTION_VERSION)
    check_version(path, version, DESCRIPTION_VERSION, remake)
    known = [name.name for name in fields(TaskDescription) if name.name in described]
    return Study(
        run=run,
        base=base,
        base_model=portable_name(name) if name else None,
        base_name=base_name,
        base_origin=origin(trained) if trained else "",
        base_config=base_config,
        base_is_own=base_is_own,
        lora=lora,
        deltas=configs,
        dtype=captured.get("model_dtype") if is_captured else None,
        measured=deltas.resolve() == (run / "delta").resolve(),
        task=TaskDescription(**{name: described[name] for name in known}),
    )


def delta_configs(deltas: Path) -> list[dict[str, Any]]:
    """Each layer's `config.json` of a folder of deltas, as far as there are any."""
    layers = {
        int(p.parent.name.removeprefix("layer_")): p for p in deltas.glob("layer_*/config.json")
    }
    return [_read_json(path) for _, path in sorted(layers.items())]


def _recorded_base(run: Path) -> str:
    """The base model that a study was given, where its finetune does not say it."""
    stages = _read_json(run / "study.json").get("stages", {})
    outputs = stages.get("base_model", {}).get("done", {}).get("outputs", {})
    return next((output for output in outputs if "${study}" not in output), "")


def base_of_delta(delta: Mapping[str, Any]) -> str:
    return portable_name(delta["base_id"], delta.get("base_file"))


def models_of(run: Path) -> dict[str, Any]:
    """The models and dictionaries that somebody brought to a study; empty for one that trained its own."""
    return _read_json(run / "configs/models.json")


def _data_folder(run: Path) -> Path:
    """Of the study's examples."""
    return run / ("examples" if models_of(run) else "finetune/data")


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    return parse_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}


def _manifest(cache: Path) -> dict[str, Any]:
    return _read_json(cache / "manifest.json").get("meta", {})
