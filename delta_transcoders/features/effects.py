"""Effects and attributions of single features, from the folders that rank them (`ranking.csv`)."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delta_transcoders.features.feature import Effect
from delta_transcoders.files import read_json

NAMES = ("ranking", "effects")
"""Stages that rank features; where both measured the same, the later one, which looks at fewer, counts."""
Key = tuple[int, int]
"""Layer and number of a feature."""


def beside(folder: str | Path, delta: str | None) -> list[Path]:
    """Finished rankings of the same delta beside a folder of feature statistics."""
    found = [Path(folder).parent / name for name in NAMES]
    return [path for path in found if (path / "done.json").is_file() and _delta_of(path) == delta]


def read_rankings(
    folders: Sequence[str | Path], delta: str | None
) -> tuple[dict[Key, list[Effect]], dict[Key, dict[str, dict[str, float]]]]:
    """Effects, and attributions by name and subset, of every feature that was ablated.

    Args:
        delta: folder or hub id of the deltas whose features are asked for.

    Raises:
        FileNotFoundError: no ranking in a folder.
        ValueError: a ranking of another delta, or a damaged table; names it.
    """
    effects: dict[Key, dict[tuple[str, str, str], Effect]] = defaultdict(dict)
    attributions: dict[Key, dict[str, dict[str, float]]] = defaultdict(dict)
    for folder in folders:
        if (found := _delta_of(folder)) != delta:
            raise ValueError(f"{folder} ranks the features of {found}, not of {delta}")
        path = Path(folder) / "ranking.csv"
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                key = int(row["layer"]), int(row["feature"])
                for effect in _effects(row):
                    effects[key][effect.ablation, effect.subset, effect.measure] = effect
                for name in row:
                    if name.startswith("ig_"):
                        attributions[key].setdefault(name, {})[row["subset"]] = _number(row[name])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error!r}); rank the features anew with `python evaluate.py`"
            ) from error
    return {key: list(found.values()) for key, found in effects.items()}, dict(attributions)


def _effects(row: dict[str, Any]) -> list[Effect]:
    measures = [name.removesuffix("_ci_low") for name in row if name.endswith("_ci_low")]
    return [
        Effect(
            ablation=row["ablation"],
            subset=row["subset"],
            measure=measure,
            value=_number(row[measure]),
            low=_number(row[f"{measure}_ci_low"]),
            high=_number(row[f"{measure}_ci_high"]),
            n_examples=int(row["n_examples"]),
        )
        for measure in measures
    ]


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan


def _delta_of(folder: str | Path) -> str:
    path = Path(folder) / "ranking.json"
    return read_json(path, "no ranking there; `python evaluate.py` with a ranking.yaml writes it")[
        "delta"
    ]
