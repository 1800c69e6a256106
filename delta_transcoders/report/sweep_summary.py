"""One row per configuration of a sweep: `python -m delta_transcoders.report.sweep_summary FOLDER`.

Reads Experiment 1's `metrics.csv` in the folder and writes `summary.csv` and, over d_new × percentile, heat
maps of the mean cosine and the mean ΔCE, `plots/sweep_mean_cos.png` and `plots/sweep_mean_dce.png`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.files import record
from delta_transcoders.report.figures import heat_map
from delta_transcoders.report.formatting import number
from delta_transcoders.report.tables import format_table, read_metrics, write_table

COLUMNS = (
    "mean_dce_full",
    "max_dce_full",
    "mean_dce_base",
    "mean_cos_full",
    "mean_cos_base",
    "mean_l2_full",
    "mean_l2_base",
    "d_new",
    "percentile",
)
CONDITIONS = {"full": "full", "base": "no_delta"}
MEASURES = {"dce": "dce", "cos": "mean_cos", "l2": "mean_l2"}


def summarise(
    rows: Sequence[dict[str, str]], subsets: Sequence[str] | None = None
) -> list[dict[str, float]]:
    """A row of `COLUMNS` for each (d_new, percentile), ascending.

    Only single layers count, each with the same weight. Within a layer a subset weighs as many tokens as
    its targets have (`n_tokens`): its ΔCE is that of all target tokens together. `max_dce_full` is that
    of the worst layer.

    Args:
        rows: of `metrics.csv`.
        subsets: those that count; all where None.

    Raises:
        ValueError: a subset or a measure that is not there, or layers that differ between configurations.
    """
    found = {row["subset"] for row in rows}
    if missing := sorted(set(subsets or ()) - found):
        raise ValueError(
            f"no rows of the subset {missing[0]!r}; there are {', '.join(sorted(found))}"
        )
    used = [
        row
        for row in rows
        if row["layer"].isdecimal()
        and row["d_new"]
        and row["percentile"]
        and row["condition"] in CONDITIONS.values()
        and (subsets is None or row["subset"] in subsets)
    ]
    if not used:
        raise ValueError("no rows of single layers with d_new and percentile")
    everywhere = {_place(row) for row in used}
    summary = []
    for d_new, percentile in sorted({_configuration(row) for row in used}):
        mine = [row for row in used if _configuration(row) == (d_new, percentile)]
        if lacking := sorted(everywhere - {_place(row) for row in mine}):
            raise ValueError(
                f"d_new {d_new}, percentile {percentile:g} has no row with layer, subset and condition "
                f"{lacking[0]}, others have"
            )
        cells: dict[str, float] = {"d_new": d_new, "percentile": percentile}
        for name, condition in CONDITIONS.items():
            for measure, column in MEASURES.items():
                layers = _by_layer([r for r in mine if r["condition"] == condition], column)
                cells[f"mean_{measure}_{name}"] = math.fsum(layers) / len(layers)
                cells[f"max_{measure}_{name}"] = max(layers)
        summary.append({column: cells[column] for column in COLUMNS})
    return summary


def _configuration(row: dict[str, str]) -> tuple[int, float]:
    return int(row["d_new"]), float(row["percentile"])


def _place(row: dict[str, str]) -> tuple[str, str, str]:
    return row["layer"], row["subset"], row["condition"]


def _by_layer(rows: Sequence[dict[str, str]], column: str) -> list[float]:
    """The mean over subsets at each layer."""
    if not rows:
        raise ValueError(f"both conditions are needed: {' and '.join(CONDITIONS.values())}")
    means = []
    for layer in sorted({row["layer"] for row in rows}, key=int):
        mine = [row for row in rows if row["layer"] == layer]
        values = [float(row[column] or "nan") for row in mine]
        if any(math.isnan(value) for value in values):
            raise ValueError(f"layer {layer} has no {column}; was `reconstruction` switched on?")
        weights = [int(row["n_tokens"]) for row in mine]
        means.append(sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights))
    return means


def write_summary(folder: str | Path, subsets: Sequence[str] | None = None) -> list[dict]:
    """Write `summary.csv` and the heat maps beside a folder's `metrics.csv`; returns the rows."""
    path = Path(folder) / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; run Experiment 1 on a sweep first")
    summary = summarise(read_metrics(path), subsets)
    write_table(Path(folder) / "summary.csv", COLUMNS, summary)
    plots = Path(folder) / "plots"
    plots.mkdir(exist_ok=True)
    for column, title in (("mean_cos", "mean cosine"), ("mean_dce", "mean ΔCE")):
        figure = heat_map(summary, f"{column}_full", f"{title}, base + delta")
        path = plots / f"sweep_{column}.png"
        figure.savefig(path, dpi=120)
        record(path)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="Experiment 1's folder, e.g. runs/tiny/exp1_sweep"
    )
    parser.add_argument("--subsets", nargs="+", help="subsets to average over (all)")
    args = parser.parse_args()
    summary = write_summary(args.folder, args.subsets)
    labels = ("d_new", "percentile")
    rows = [{k: f"{v:g}" if k in labels else number(v) for k, v in r.items()} for r in summary]
    print(format_table(rows, COLUMNS))


if __name__ == "__main__":
    run(main)
