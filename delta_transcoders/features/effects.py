"""Effects and attributions of single features, from the folders that rank them (`ranking.csv`)."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delta_transcoders.features.feature import Effect
from delta_transcoders.files import check_version, read_json

NAMES = ("ranking", "effects")
"""Stages that rank features; where both measured the same, the later one, which looks at fewer, counts."""
FORMAT_VERSION = 1
INFO_NAME = "ranking.json"
REMAKE = "rank the features anew with `python evaluate.py --config …/ranking.yaml`"
Key = tuple[int, int]
"""Layer and number of a feature."""


def beside(folder: str | Path, info: Mapping[str, Any]) -> list[Path]:
    """Finished rankings of the same delta beside a folder of feature statistics.

    Args:
        info: of the statistics, `features.json`.

    Raises:
        ValueError: a damaged `ranking.json`, or one of another version; names it.
    """
    found = [Path(folder).parent / name for name in NAMES]
    return [
        path for path in found if (path / "done.json").is_file() and _is_of(read_info(path), info)
    ]


def read_rankings(
    folders: Sequence[str | Path], info: Mapping[str, Any]
) -> tuple[dict[Key, list[Effect]], dict[Key, dict[str, dict[str, float]]]]:
    """Effects, and attributions by name and subset, of every feature that was ablated.

    Args:
        info: of the statistics of the features that are asked for, `features.json`.

    Raises:
        FileNotFoundError: no ranking in a folder.
        ValueError: a ranking of another delta or version, or a damaged file; names it.
    """
    effects: dict[Key, dict[tuple[str, str, str], Effect]] = defaultdict(dict)
    attributions: dict[Key, dict[str, dict[str, float]]] = defaultdict(dict)
    for folder in folders:
        if not _is_of(ranked := read_info(folder), info):
            raise ValueError(
                f"{folder} ranks the features of {ranked['delta']}, not of {info.get('delta')} as it is now: "
                f"{REMAKE}"
            )
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
            raise ValueError(f"{path} is damaged ({error!r}); {REMAKE}") from error
    return {key: list(found.values()) for key, found in effects.items()}, dict(attributions)


def read_info(folder: str | Path) -> dict[str, Any]:
    """`ranking.json`: `delta`, its folder or hub id, and `delta_fingerprints`, by layer, in later ones.

    Raises:
        FileNotFoundError: no ranking in the folder.
        ValueError: another version, or a damaged file; names it.
    """
    path = Path(folder) / INFO_NAME
    info = read_json(path, "no ranking there; `python evaluate.py` with a ranking.yaml writes it")
    if not isinstance(info.get("delta"), str):
        raise ValueError(f"{path} is damaged (it names no delta); {REMAKE}")
    check_version(path, info.get("format_version", 1), FORMAT_VERSION, REMAKE)
    return info


def _is_of(ranked: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Whether what is ranked are the features that statistics are of: by tensors of the layers that both
    have, or by the delta's folder where one of them names no tensors."""
    theirs, ours = (d.get("delta_fingerprints", {}) for d in (ranked, info))
    if theirs and ours:
        both = theirs.keys() & ours.keys()
        return bool(both) and all(theirs[layer] == ours[layer] for layer in both)
    return "delta" in info and Path(ranked["delta"]).resolve() == Path(info["delta"]).resolve()


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
