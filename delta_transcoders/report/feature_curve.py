"""The curve of correct answers and fidelity against the number of features:
`python -m delta_transcoders.report.feature_curve FOLDER ...` prints it, with each delta's N90.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.report.columns import rates
from delta_transcoders.report.formatting import number, table_number
from delta_transcoders.report.tables import format_table, read_metrics, write_table

FIDELITY = ("cos", "unexplained", "norm_ratio")
MORE_THAN = ">"
"""Before the largest number of a grid of which none is enough."""
ENDS = ("", "_ci_low", "_ci_high")
Row = dict[str, object]


def write_curve(
    folder: str | Path, rows: Sequence[Row], fidelity: Sequence[Row], n90: Sequence[Row]
) -> None:
    """Write `curve.csv`, `fidelity.csv` and `n90.csv`.

    Args:
        rows: delta, student, n, draw (None for the features with the largest attributions), subset,
            n_examples, rates, mean_kl; `share_of_finetuned` for subsets that the finetune is about,
            `side_change` and `intact` for side subsets. Means of the fidelity over the layers in which the
            delta writes anything are added to those without a draw.
        fidelity: delta, n, layer and `metrics.fidelity.Fidelity` of it.
        n90: of `n90_rows`.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    of_rates = [f"{rate}{end}" for rate in rates(names) for end in ENDS]
    measures = [f"{name}{end}" for name in ("share_of_finetuned", "side_change") for end in ENDS]
    columns = ["delta", "student", "n", "draw", "subset", "n_examples", *measures, "intact"]
    columns += [*of_rates, "mean_ce", "mean_kl", *FIDELITY]
    rows = [row | (_mean_fidelity(fidelity, row) if row["draw"] is None else {}) for row in rows]
    write_table(Path(folder) / "curve.csv", columns, rows)
    write_table(Path(folder) / "fidelity.csv", ["delta", "n", "layer", *FIDELITY], fidelity)
    columns = ["delta", "student", "n90", "n_features", "n_random_sufficient", "n_random"]
    write_table(Path(folder) / "n90.csv", [*columns, "n_layers", *FIDELITY], n90)


def n90_rows(rows: Sequence[Row], fidelity: Sequence[Row], enough: float) -> list[Row]:
    """The N90 of each delta: the fewest features with enough of the correct answers and all else intact.

    It is 0 where the delta's bias, or what it is added to, is enough. Where no number of features is, it
    reads `>128`, more than all there are, and what else there is is nan, with which no claim passes. Beside
    it: how many of the random sets of as many features would do; the fidelity there, its mean over the layers
    in which the delta writes anything, and their number.

    Args:
        rows, fidelity: of `write_curve`.
        enough: share of the finetuned model's correct answers, in each subset that has one.
    """
    found = []
    for delta in dict.fromkeys(row["delta"] for row in rows):
        ours = [row for row in rows if row["delta"] == delta]
        chosen = [row for row in ours if row["draw"] is None]
        does = _sufficient(chosen, enough)
        n90 = min((n for n, sufficient in does.items() if sufficient), default=None)
        row = {"delta": delta, "student": ours[0]["student"], "n90": n90, "n_features": max(does)}
        if n90 is None:
            absent = ("n_random_sufficient", "n_random", "n_layers", *FIDELITY)
            nothing = dict.fromkeys(absent, float("nan"))
            row |= nothing | {"n90": f"{MORE_THAN}{max(does)}"}
        else:
            drawn = [r for r in ours if r["draw"] is not None and r["n"] == n90]
            draws = dict.fromkeys(r["draw"] for r in drawn)
            sufficient = [
                _sufficient([r for r in drawn if r["draw"] == draw], enough)[n90] for draw in draws
            ]
            row |= {"n_random": len(draws), "n_random_sufficient": sum(sufficient)}
            row |= _mean_fidelity(fidelity, {"delta": delta, "n": n90})
        found.append(row)
    return found


def _mean_fidelity(fidelity: Sequence[Row], of: Row) -> Row:
    """Over the layers in which a delta of so many features writes anything, and their number."""
    layers = [f for f in fidelity if (f["delta"], f["n"]) == (of["delta"], of["n"])]
    written = [f for f in layers if f["norm_ratio"] > 0]
    return {"n_layers": len(written)} | {
        name: sum(f[name] for f in written) / len(written) if written else float("nan")
        for name in FIDELITY
    }


def _sufficient(rows: Sequence[Row], enough: float) -> dict[int, bool]:
    """By number of features, whether there are enough correct answers, and all side subsets are intact."""
    found: dict[int, bool] = {}
    for row in rows:
        # A share of no correct answers at all is nan, and not enough.
        sufficient = row.get("share_of_finetuned", enough) >= enough and row.get("intact", True)
        found[row["n"]] = found.get(row["n"], True) and bool(sufficient)
    return found


def curve_table(folder: str | Path) -> str:
    """What the features with the largest attributions do, with intervals, and their fidelity by layer."""
    rows = [row for row in read_metrics(Path(folder) / "curve.csv") if row["draw"] == ""]
    of_layers: dict[tuple[str, str], list[str]] = {}
    for row in read_metrics(Path(folder) / "fidelity.csv"):
        of_layers.setdefault((row["delta"], row["n"]), []).append(number(row["cos"]))
    shown = []
    for row in rows:
        line = {name: row[name] for name in ("delta", "student", "n", "subset")}
        for name in ("share_of_finetuned", "side_change"):
            line[name] = table_number(row, name)
        line |= {name: number(row[name]) for name in [*rates(row), "mean_kl"] if row[name]}
        shown.append(line | {"cos by layer": " ".join(of_layers[row["delta"], row["n"]])})
    return format_table(shown, list(dict.fromkeys(name for line in shown for name in line)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print feature curves and each delta's N90.")
    parser.add_argument("folders", type=Path, nargs="+", help="e.g. runs/tiny/feature_curve")
    for folder in parser.parse_args().folders:
        n90 = read_metrics(folder / "n90.csv")
        print(f"{folder}: N90, beside the fidelity there (mean over the layers written to)\n")
        shown = [
            {k: number(v) if k in FIDELITY else v or "–" for k, v in row.items()} for row in n90
        ]
        print(format_table(shown, list(n90[0])))
        print(f"\nchosen on half A of the wordings, scored on half B\n\n{curve_table(folder)}\n")


if __name__ == "__main__":
    run(main)
