"""From the records of single answers to the numbers of a table's row, with their intervals.

A record holds the wording of one example, sums over its tokens, in nats, and verdicts; a row is about the
records of one condition on one subset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from delta_transcoders.metrics.intervals import (
    paired_bootstrap,
    paired_bootstrap_ratio,
    paired_rates,
    wilson_of,
)

Record = dict[str, Any]
NAN = float("nan")


def ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """Σ numerators / Σ denominators; nan where those sum to 0.

    >>> ratio([(1.0, 2.0), (2.0, 2.0)]), ratio([])
    (0.75, nan)
    """
    columns = np.array(list(pairs), dtype=np.float64).reshape(-1, 2)
    numerator, denominator = columns.sum(axis=0)
    return float(numerator / denominator) if denominator else NAN


def measures_of(records: Sequence[Record]) -> list[str]:
    """The measures of a task's judge, in its order; none where nothing was judged."""
    return list(dict.fromkeys(name for r in records for name in r.get("measures", ())))


def judged(records: Sequence[Record], measure: str) -> list[bool]:
    """The verdicts of the records to which the measure applies."""
    verdicts = (record["measures"][measure] for record in records)
    return [verdict for verdict in verdicts if verdict is not None]


def behaviour_cells(records: Sequence[Record], measures: Sequence[str]) -> dict[str, float | int]:
    """Counts, mean cross-entropy, and the rate of each measure with its denominator and interval."""
    cells: dict[str, float | int] = {
        "n_examples": len(records),
        "n_tokens": sum(record["n_tokens"] for record in records),
        "mean_ce": ratio((record["nll"], record["n_tokens"]) for record in records),
    }
    for measure in measures:
        verdicts = judged(records, measure)
        successes, n = sum(verdicts), len(verdicts)
        wordings = [r["wording"] for r in records if r["measures"][measure] is not None]
        low, high = wilson_of(verdicts, wordings)
        name = f"{measure}_rate"
        cells |= {name: successes / n if n else NAN, f"{name}_ci_low": low, f"{name}_ci_high": high}
        cells[f"{measure}_n"] = n
    return cells


def intervention_cells(
    records: Sequence[Record], raw: Sequence[Record], opening: str | None
) -> dict[str, float]:
    """KL, log-probability of the opening, activity of the dictionaries, and ΔCE to raw with its interval.

    Args:
        raw: the untouched model's records of the same examples in the same order.
        opening: the task's `opening_column`, where it has an opening.
    """
    cells = {"mean_kl": ratio((r["kl"], r["n_tokens"]) for r in records)}
    if opening:
        cells[opening] = ratio((r[opening], 1) for r in records if r[opening] is not None)
    for kind in ("base", "delta"):
        active = [(r["active"][kind], r["n_replaced"]) for r in records if kind in r["active"]]
        cells[f"mean_abs_{kind}_acts"] = ratio((size, n) for (size, _), n in active)
        cells[f"l0_{kind}"] = ratio((number, n) for (_, number), n in active)
    return cells | interval("dce", _dce(records, raw))


def effect_cells(
    ablated: Sequence[Record],
    reference: Sequence[Record],
    measures: Sequence[str],
    opening: str | None,
) -> dict[str, float | bool]:
    """Ablated minus reference: mean changes over the same examples in the same order.

    Args:
        opening: the task's `opening_column`, where it has an opening.

    Returns:
        `d_<opening>` (nats), `dce` (nats per target token) and `d_<measure>_rate`, each with its paired
        interval `…_ci_low`, `…_ci_high` (a bootstrap's, or Newcombe's of a rate that changes nowhere)
        and `…_distinct`: whether the interval leaves out 0. What no example has (a measure that applies to
        none) is nan and not distinct.
    """

    def sides(value: Callable[[Record], float | None]) -> tuple[list, list, list]:
        """Both sides' values and the wordings of the examples that have both."""
        both = [(value(a), value(b), a["wording"]) for a, b in zip(ablated, reference, strict=True)]
        known = [row for row in both if None not in row]
        return tuple([row[i] for row in known] for i in range(3))

    estimates = {}
    if opening:
        ours, theirs, wordings = sides(lambda r: r[opening])
        estimates[f"d_{opening}"] = paired_bootstrap(ours, theirs, wordings=wordings)
    estimates["dce"] = _dce(ablated, reference)
    for measure in measures:
        found = sides(lambda r, measure=measure: r["measures"][measure])
        estimates[f"d_{measure}_rate"] = paired_rates(*found)
    cells: dict[str, float | bool] = {}
    for name, estimate in estimates.items():
        cells |= interval(name, estimate)
        cells[f"{name}_distinct"] = estimate[1] > 0 or estimate[2] < 0
    return cells


def _dce(records: Sequence[Record], reference: Sequence[Record]) -> tuple[float, float, float]:
    sides = [[r[key] for r in side] for side in (records, reference) for key in ("nll", "n_tokens")]
    return paired_bootstrap_ratio(*sides, wordings=[r["wording"] for r in records])


def interval(name: str, estimate: tuple[float, float, float]) -> dict[str, float]:
    """The cells of an estimate and the ends of its interval."""
    return dict(zip((name, f"{name}_ci_low", f"{name}_ci_high"), estimate, strict=True))
