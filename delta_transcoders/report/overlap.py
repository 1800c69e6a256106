"""Whether two seeds of an end-to-end delta write in the same subspaces:
`python -m delta_transcoders.report.overlap CURVE A B --output DIR`.

CURVE is a feature curve of A's deltas; A and B are folders that `EndToEndDelta` wrote. Their deltas of as
many features as the curve's N90 are compared, by `metrics.overlap`. `overlap.csv` has one row: n, the
overlap, and of the permutations their number, the mean, what 95 % of them stay below, and the share that the
overlap is above. Where no number of features suffices, or none is needed, there is nothing to compare, and
the overlap is nan.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from delta_transcoders.command import run
from delta_transcoders.files import finish_output, new_output
from delta_transcoders.metrics.overlap import Rows, permuted_overlaps, subspace_overlap
from delta_transcoders.report.tables import format_table, read_metrics, write_table

N_PERMUTATIONS = 1000
PERMUTED = ("permuted_mean", "permuted_95", "percentile")
COLUMNS = ("n", "overlap", "n_permutations", *PERMUTED)


def overlap_row(curve: Path, ours: Path, theirs: Path) -> dict[str, object]:
    """The row of `overlap.csv`; see the module.

    Raises:
        FileNotFoundError: no such curve, or no delta of so many features.
        ValueError: several curves, deltas of one seed, or of different models, sites or targets.
    """
    rows = read_metrics(curve / "n90.csv")
    if len(rows) > 1:
        raise ValueError(f"{curve} holds {len(rows)} curves: draw one alone")
    n = rows[0]["n90"]
    row = {"n": n, "n_permutations": N_PERMUTATIONS}
    if not n.isdecimal() or n == "0":
        return row | dict.fromkeys(("overlap", *PERMUTED), float("nan"))
    both = _decoder_rows(ours / f"n{n}", theirs / f"n{n}")
    overlap = subspace_overlap(*both)
    permuted = permuted_overlaps(*both, N_PERMUTATIONS, seed=0)
    return row | {
        "overlap": overlap,
        "permuted_mean": float(permuted.mean()),
        "permuted_95": float(np.quantile(permuted, 0.95)),
        "percentile": float((permuted < overlap).mean()),
    }


def _decoder_rows(*folders: Path) -> list[Rows]:
    """Of each delta, the rows that write anything."""
    from delta_transcoders.dictionaries.delta import load_deltas  # imports what takes seconds

    deltas = [load_deltas(folder) for folder in folders]
    configs = [{layer: config for layer, (_, _, config) in d.items()} for d in deltas]
    for name in ("model_fingerprint", "base_hash", "hook_site", "target"):
        found = [{layer: getattr(c, name) for layer, c in of.items()} for of in configs]
        if found[0] != found[1]:
            raise ValueError(
                f"{folders[0]} and {folders[1]} differ in {name}: {found[0]} and {found[1]}"
            )
    seeds = [next(iter(of.values())).seed for of in configs]
    if seeds[0] == seeds[1]:
        raise ValueError(
            f"{folders[0]} and {folders[1]} both have the seed {seeds[0]}: train one with --model.seed"
        )
    rows = [{layer: delta.W_dec.numpy() for layer, (_, delta, _) in of.items()} for of in deltas]
    return [{layer: w_FD[w_FD.any(axis=1)] for layer, w_FD in of.items()} for of in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("curve", type=Path, metavar="CURVE", help="e.g. runs/tiny/feature_curve_kl")
    parser.add_argument("ours", type=Path, metavar="A", help="e.g. runs/tiny/delta_kl")
    parser.add_argument("theirs", type=Path, metavar="B", help="of another seed")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    row = overlap_row(args.curve, args.ours, args.theirs)
    with new_output(args.output, "overlap") as folder:
        write_table(folder / "overlap.csv", COLUMNS, [row])
        finish_output(args.output)
    print(format_table(read_metrics(args.output / "overlap.csv"), COLUMNS))


if __name__ == "__main__":
    run(main)
