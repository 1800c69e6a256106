"""Identities: rows of result tables that must agree, whatever was found (`configs/tiny/expected.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.report.tables import read_metrics

LABELS = ("experiment", "layer", "subset", "condition", "alpha", "d_new", "percentile", "target")
"""Columns of result tables that say what a row is."""


class Checked(NamedTuple):
    """What came of a file of identities."""

    broken: list[str]
    n_held: int
    n_absent: int


def check_identities(study: Path, expected: Mapping[str, Sequence]) -> Checked:
    """Compare rows of result tables that must agree whatever was found.

    Args:
        expected: `same`, lists of rows, each `{table: exp2a, layer: all, condition: full}` (no layer: raw's),
            and `zero`, rows whose ΔCE and KL must be 0.

    Raises:
        ValueError: another key, or a table without such a row.
    """
    if unknown := set(expected) - {"same", "zero"}:
        raise ValueError(f"unknown key {min(unknown)!r}: expected same or zero")
    broken, n_held, n_absent = [], 0, 0
    rules = [*expected.get("same", ()), *([row] for row in expected.get("zero", ()))]
    for rule in rules:
        if not all((study / row["table"] / "metrics.csv").is_file() for row in rule):
            n_absent += 1
            continue
        first, *others = (_by_subset(study, row) for row in rule)
        found = [line for other in others for line in _differences(first, other)]
        if not others:
            found = _nonzero(first)
        broken += [f"{' = '.join(map(_named, rule))}: {line}" for line in found]
        n_held += not found
    return Checked(broken, n_held, n_absent)


def _named(row: Mapping[str, str]) -> str:
    return " ".join(row.values())


def _by_subset(study: Path, row: Mapping[str, str]) -> dict[str, dict[str, str]]:
    where = {"layer": row.get("layer", ""), "condition": row["condition"]}
    rows = read_metrics(study / row["table"] / "metrics.csv")
    found = {r["subset"]: r for r in rows if all(r[key] == value for key, value in where.items())}
    if not found:
        raise ValueError(f"{study}/{row['table']} has no row with {where}")
    return found


def _differences(first: Mapping[str, dict], other: Mapping[str, dict]) -> list[str]:
    found = []
    for subset in (subset for subset in first if subset in other):
        ours, theirs = first[subset], other[subset]
        for column in (c for c in ours if c not in LABELS and ours[c] and theirs.get(c)):
            a, b = float(ours[column]), float(theirs[column])
            # Greedy text turns where two tokens are as likely but for rounding.
            allowed = 0.01 if "_rate" in column else 1e-4 * max(1.0, abs(a))
            if abs(a - b) > allowed:
                found.append(f"{subset}: {column} {a:g} and {b:g}")
    return found


def _nonzero(rows: Mapping[str, dict]) -> list[str]:
    return [
        f"{subset}: {column} is {row[column]}"
        for subset, row in rows.items()
        for column in ("dce", "mean_kl")
        if abs(float(row[column])) > 1e-5
    ]
