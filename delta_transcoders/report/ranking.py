"""Feature rankings and how stable they are: `python -m delta_transcoders.report.ranking FOLDER [OTHER ...]`.

Prints the first features of every list of FOLDER with their intervals, and measures the ranking twice:
between halves of the examples, and against each OTHER ranking, whose delta was trained on the same
model with another seed. Writes `FOLDER/stability.csv`.

Shapes: F features, E examples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from delta_transcoders.command import run
from delta_transcoders.features.effects import FORMAT_VERSION, INFO_NAME, read_info
from delta_transcoders.files import write_json, write_text
from delta_transcoders.report.columns import ranked_measures
from delta_transcoders.report.formatting import HOLDS_ZERO, number, table_number
from delta_transcoders.report.tables import format_table, read_metrics, write_table

PLACE = ("layer", "ablation", "subset")
STABILITY_COLUMNS = (
    "comparison",
    "layer",
    "ablation",
    "subset",
    "n_features",
    "n_distinct",
    "spearman",
    "spearman_low",
    "spearman_high",
    "spearman_even_odd",
    "cosine",
    "cosine_random",
)
Place = tuple[int, str, str]
"""Layer, ablation and subset: what one list of ranks is about."""


def write_ranking(
    folder: str | Path,
    rows: Sequence[dict],
    effects: Iterable[dict],
    delta: str,
    fingerprints: Mapping[int, str] | None = None,
) -> None:
    """Write `ranking.csv`, `effects.jsonl` and `ranking.json`.

    Args:
        rows: layer, feature, ablation, subset, rank, n_examples, mean_activation, density and measures. A
            measure has an interval (`…_ci_low`, `…_ci_high`) and `…_distinct`; features are ranked by the
            first, and by others in `rank_…`. `ig_…` are attributions.
        effects: each of the rows' layer, feature, ablation, subset and, under the name of the first measure,
            the change of every example, in the order of the examples.
        delta: folder or hub id of the deltas whose features these are.
        fingerprints: of the deltas' tensors, by layer; a delta may be trained anew in the same folder.
    """
    ends = ("", "_ci_low", "_ci_high", "_distinct")
    measures = [measure + end for measure in ranked_measures(rows[0]) for end in ends]
    columns = ["layer", "feature", "ablation", "subset", "rank", "n_examples"]
    columns += [*measures, "mean_activation", "density"]
    columns += [name for name in rows[0] if name.startswith(("ig_", "rank_"))]
    write_table(Path(folder) / "ranking.csv", columns, rows)
    lines = "".join(json.dumps(line) + "\n" for line in effects)
    write_text(Path(folder) / "effects.jsonl", lines)
    info = {"format_version": FORMAT_VERSION, "delta": delta}
    if fingerprints:
        info["delta_fingerprints"] = {str(layer): found for layer, found in fingerprints.items()}
    write_json(Path(folder) / INFO_NAME, info)


def read_effects(folder: str | Path) -> dict[Place, np.ndarray]:
    """Changes of the measure that features are ranked by, [F, E], by layer, ablation and subset.

    Raises:
        FileNotFoundError: no ranking in the folder.
        ValueError: a malformed line, or none; names it.
    """
    path = Path(folder) / "effects.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; `evaluate.py` with a ranking.yaml writes it")
    by_place: dict[Place, dict[int, list[float]]] = {}
    for line_number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            place, feature = tuple(row.pop(key) for key in PLACE), row.pop("feature")
            ((_, changes),) = row.items()
            by_place.setdefault(place, {})[feature] = changes
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {line_number}: not an effect of a feature ({error})"
            ) from error
    if not by_place:
        raise ValueError(f"{path} is empty; make the ranking anew")
    return {
        place: np.array([by_feature[feature] for feature in sorted(by_feature)])
        for place, by_feature in by_place.items()
    }


def _live(effects_FE: np.ndarray) -> np.ndarray:
    """Features that change anything: silent ones would agree with each other for no reason."""
    return effects_FE.any(axis=1).nonzero()[0]


def halves(folder: str | Path) -> list[dict]:
    """`STABILITY_COLUMNS` of every list: mean, least and largest ρ between halves of the examples.

    `n_distinct` features have an interval without 0 of the measure that they are ranked by; of features
    without any effect one in twenty would.
    """
    from delta_transcoders.metrics.feature_effects import split_half

    ranking = read_metrics(Path(folder) / "ranking.csv")
    measure = ranked_measures(ranking[0])[0]
    distinct = [
        (int(row["layer"]), row["ablation"], row["subset"])
        for row in ranking
        if row[f"{measure}_distinct"] == "true"
    ]
    rows = []
    for place, effects_FE in read_effects(folder).items():
        live = _live(effects_FE)
        correlations = split_half(effects_FE[live])
        rows.append(
            {
                "comparison": "halves",
                **dict(zip(PLACE, place, strict=True)),
                "n_features": len(live),
                "n_distinct": distinct.count(place),
                "spearman": float(correlations.mean()),
                "spearman_low": float(correlations.min()),
                "spearman_high": float(correlations.max()),
                "spearman_even_odd": float(correlations[0]),
            }
        )
    return rows


def across(folder: str | Path, other: str | Path) -> list[dict]:
    """`STABILITY_COLUMNS` of every list that both rankings have: their deltas' features, matched.

    Features are matched by their decoder rows; `cosine` is the matched pairs' mean, `cosine_random` that
    of a match with rows in random directions, which is what any two deltas would reach. `spearman` is
    between the matched features' mean effects. Silent features are left out.

    Raises:
        ValueError: deltas of different models, or no list in common; names both folders.
    """
    # Torch takes seconds to import, and the command's help needs none of it.
    from delta_transcoders.dictionaries.delta import load_delta, random_directions
    from delta_transcoders.hub import local_folder
    from delta_transcoders.metrics.feature_effects import match_rows, spearman

    ours, theirs = read_effects(folder), read_effects(other)
    common = [place for place in ours if place in theirs]
    if not common:
        raise ValueError(f"{folder} and {other} rank no layer, ablation and subset in common")
    deltas = [read_info(f)["delta"] for f in (folder, other)]
    folders = [local_folder(delta, ["layer_*/*"]) for delta in deltas]
    rows = []
    for place in common:
        layer = place[0]
        (a, a_config), (b, b_config) = (load_delta(d / f"layer_{layer}") for d in folders)
        if a_config.model_fingerprint != b_config.model_fingerprint:
            raise ValueError(
                f"{deltas[0]} and {deltas[1]} are deltas of different models: decoder rows can be "
                "compared only where both correct the same one"
            )
        live_a, live_b = _live(ours[place]), _live(theirs[place])
        if not (len(live_a) and len(live_b)):
            continue
        index_a, index_b, cosines = match_rows(a.W_dec[live_a], b.W_dec[live_b])
        random = random_directions(b, seed=layer).W_dec[live_b]
        means_a = ours[place][live_a[index_a]].mean(axis=1)
        means_b = theirs[place][live_b[index_b]].mean(axis=1)
        rows.append(
            {
                "comparison": str(other),
                **dict(zip(PLACE, place, strict=True)),
                "n_features": len(cosines),
                "spearman": spearman(means_a, means_b),
                "cosine": float(cosines.mean()),
                "cosine_random": float(match_rows(a.W_dec[live_a], random)[2].mean()),
            }
        )
    return rows


def top_table(folder: str | Path, top: int) -> str:
    """The first `top` features of every list, with their intervals."""
    rows = read_metrics(Path(folder) / "ranking.csv")
    chosen = [row for row in rows if int(row["rank"]) <= top]
    chosen.sort(key=lambda r: (r["subset"], r["ablation"], int(r["layer"]), int(r["rank"])))
    measures, shown = ranked_measures(rows[0]), []
    for row in chosen:
        line = {name: row[name] for name in ("subset", "ablation", "layer", "rank", "feature")}
        line |= {name: table_number(row, name, is_difference=True, decimals=4) for name in measures}
        line |= {name: number(row[name]) for name in ("mean_activation", "density")}
        shown.append(line)
    return format_table(shown, list(shown[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a ranking's folder, e.g. runs/tiny/ranking")
    parser.add_argument(
        "others", type=Path, nargs="*", help="rankings of deltas trained with other seeds"
    )
    parser.add_argument("--top", type=int, default=5, help="features to print of each list (5)")
    args = parser.parse_args()
    stability = halves(args.folder)
    for other in args.others:
        stability += across(args.folder, other)
    write_table(args.folder / "stability.csv", STABILITY_COLUMNS, stability)
    print(
        f"the first features of each list, changes with 95 % intervals; {HOLDS_ZERO}: the interval holds 0\n"
    )
    print(top_table(args.folder, args.top))
    shown = [
        {k: number(v) if isinstance(v, float) else str(v) for k, v in row.items()}
        for row in stability
    ]
    used = [c for c in STABILITY_COLUMNS if any(c in row for row in shown)]
    print(f"\nhow stable the lists are (silent features left out)\n\n{format_table(shown, used)}")


if __name__ == "__main__":
    run(main)
