"""What a delta's removal takes away, beside what controls of equal norms take away."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from delta_transcoders.metrics.intervals import bootstrap_sums
from delta_transcoders.metrics.pooling import Record, interval, measures_of, ratio
from delta_transcoders.metrics.sufficiency import by_wording


def removal_rows(
    raw: Sequence[Record],
    removed: Sequence[Record],
    controls: Mapping[str, Sequence[Sequence[Record]]],
    wordings: Sequence[Hashable],
) -> list[dict[str, object]]:
    """A row for each measure of one subset: KL to raw, cross-entropy and every rate that applies.

    Args:
        raw, removed: records of the same examples, of the finetuned model and of it without the delta.
        controls: of each draw of each kind of control.
        wordings: of the examples.

    Returns:
        `measure`, `raw`, `removed`; for each kind its number of draws `n_KIND`, `KIND_mean`, `KIND_min`,
        `KIND_max`, the number `KIND_as_far` of draws that end as far from raw as the removal does, and
        `beyond_KIND`: the controls' mean minus what the removal leaves, with an interval over wordings.
    """
    rows = []
    for measure in ("mean_kl", "mean_ce", *(f"{m}_rate" for m in measures_of(raw))):
        of_raw, of_removed = _pairs(raw, measure), _pairs(removed, measure)
        known = [i for i, pair in enumerate(of_raw) if pair is not None]
        if not known:
            continue
        row = {"measure": measure}
        at_raw, left = (ratio(pairs[i] for i in known) for pairs in (of_raw, of_removed))
        row |= {"raw": at_raw, "removed": left}
        for kind, draws in controls.items():
            of_draws = [_pairs(draw, measure) for draw in draws]
            values = [ratio(pairs[i] for i in known) for pairs in of_draws]
            row |= {f"n_{kind}": len(values), f"{kind}_mean": float(np.mean(values))}
            row |= {f"{kind}_min": min(values), f"{kind}_max": max(values)}
            row[f"{kind}_as_far"] = sum(abs(v - at_raw) >= abs(left - at_raw) for v in values)
            sums = by_wording(
                [
                    [np.mean([pairs[i][0] for pairs in of_draws]) for i in known],
                    [of_removed[i][0] for i in known],
                    [of_removed[i][1] for i in known],
                ],
                [wordings[i] for i in known],
            )
            beyond = bootstrap_sums(sums, lambda s: (s[0] - s[1]) / s[2])
            row |= interval(f"beyond_{kind}", beyond)
        rows.append(row)
    return rows


def _pairs(records: Sequence[Record], measure: str) -> list[tuple[float, float] | None]:
    """Each record's part of the numerator and of the denominator; None where the measure does not apply."""
    if measure.endswith("_rate"):
        verdicts = (record["measures"][measure.removesuffix("_rate")] for record in records)
        return [None if verdict is None else (float(verdict), 1.0) for verdict in verdicts]
    key = {"mean_kl": "kl", "mean_ce": "nll"}[measure]
    return [(r[key], r["n_tokens"]) if r["n_tokens"] else None for r in records]
