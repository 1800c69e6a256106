"""The folder of a study: its tables, and what it says of its deltas, task, model and stages."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from delta_transcoders.files import read_json
from delta_transcoders.report.tables import read_metrics

T = TypeVar("T")
Row = dict[str, str]


class StudyFolder:
    """
    Attributes:
        study: the folder.
        damaged: what could not be read of parts that an answer can do without, see `attempt`.
    """

    def __init__(self, study: Path) -> None:
        self.study = study
        self.damaged: list[str] = []

    def attempt(self, make: Callable[[], T]) -> T | None:
        """What `make` reads of a part that an answer can do without; None where that is damaged, which
        `damaged` then names."""
        try:
            return make()
        except (KeyError, OSError, ValueError) as error:
            message = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            if message not in self.damaged:
                self.damaged.append(message)
            return None

    def table(self, path: str) -> list[Row]:
        """The rows of a CSV file of the study."""
        file = self.study / path
        # A table of nothing is its header, which `read_metrics` refuses.
        if not file.is_file() or len(file.read_text(encoding="utf-8").splitlines()) < 2:
            return []
        return read_metrics(file)

    @cached_property
    def deltas(self) -> list[dict[str, Any]]:
        """Each layer's config.json, in order of the layers."""
        found = [read_json(path) for path in self.study.glob("delta/layer_*/config.json")]
        return sorted(found, key=lambda config: config["layer"])

    @property
    def has_dictionaries(self) -> bool:
        """Whether the deltas correct dictionaries; the others learn what finetuning changed in the MLPs."""
        return {config.get("target") for config in self.deltas} != {"mlp_difference"}

    @cached_property
    def task(self) -> dict[str, Any]:
        """What the task says of itself (`Task.describe`)."""
        for path in ("finetune/data/task.json", "configs/task.json"):
            if (self.study / path).is_file():
                return read_json(self.study / path)
        return {}

    @cached_property
    def record(self) -> dict[str, Any]:
        """`study.json`; empty where no study file made the folder."""
        path = self.study / "study.json"
        return read_json(path) if path.is_file() else {}

    @property
    def done(self) -> dict[str, dict[str, Any]]:
        """Finished stages by name."""
        stages = self.record.get("stages", {})
        return {name: stage["done"] for name, stage in stages.items() if "done" in stage}

    @property
    def seed(self) -> int | None:
        seeds = [run.get("config", {}).get("seed_everything") for run in self.done.values()]
        return next((seed for seed in seeds if seed is not None), None)

    @cached_property
    def model(self) -> dict[str, Any]:
        """The finetuned model's config.json, with `n_parameters`; empty where it is no folder here."""
        stage = self.done.get("behaviour", {}).get("config", {})
        source = stage.get("model.models.raw") or "${study}/finetune/merged"
        folder = Path(str(source).replace("${study}", str(self.study)))
        if not (folder / "config.json").is_file():
            return {}
        weights = folder / "model.safetensors"
        found = {"n_parameters": _n_parameters(weights)} if weights.is_file() else {}
        return read_json(folder / "config.json") | found


def _n_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(math.prod(t["shape"]) for n, t in header.items() if n != "__metadata__")
