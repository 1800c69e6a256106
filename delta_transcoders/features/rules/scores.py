"""How well rules say where units fire: balanced accuracy over tokens, with intervals over wordings.

Balanced accuracy is the mean of two shares: of the tokens on which the unit fires those on which the rule
says so, and of the others those on which it does not. A rule that says nothing has ½.

Shapes: E texts, P tokens of all texts, U units, R resamples.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delta_transcoders.features.rules.firing import FiringTable
from delta_transcoders.features.rules.language import Rule, predicted
from delta_transcoders.features.rules.units import KINDS, WAYS, Unit
from delta_transcoders.files import write_text
from delta_transcoders.metrics.intervals import bootstrap_counts

COLUMNS = (
    "tokens", "unit", "kind", "drawn_by", "place", "pair", "balanced_accuracy", "balanced_accuracy_ci_low",
    "balanced_accuracy_ci_high", "recall", "specificity", "precision", "base_rate", "rule_rate", "n_fires",
    "n_tokens", "n_examples", "n_wordings", "says",
)  # fmt: skip
SUMMARY_COLUMNS = (
    "tokens", "what", "drawn_by", "n_units", "n_unscored", "balanced_accuracy", "balanced_accuracy_ci_low",
    "balanced_accuracy_ci_high",
)  # fmt: skip
DIFFERENCE = "feature − neuron"


def scored(firing: FiringTable, rules: Sequence[Rule]) -> tuple[list[dict], list[dict]]:
    """A row for each unit, and the means of each kind and way of drawing.

    Intervals are percentiles of 2,000 resamples: wordings are drawn with replacement, then their texts, and
    in the means the units too, a feature always with the neuron that stands beside it. A unit that fires
    nowhere, or everywhere, has no balanced accuracy; `n_unscored` counts those that a mean leaves out.

    Args:
        rules: of the table's units, in their order.
    """
    fires_PU, read_P = firing.margins_PU > 0, firing.read_P
    says_PU = predicted(rules, firing.texts)
    counts = [
        np.add.reduceat((a & b) & read_P[:, None], firing.starts_E, axis=0, dtype=np.int64)
        for a, b in (
            (fires_PU, says_PU),
            (fires_PU, ~says_PU),
            (~fires_PU, says_PU),
            (~fires_PU, ~says_PU),
        )
    ]
    wordings = [text.wording for text in firing.texts]
    drawn_RE = bootstrap_counts(wordings)
    accuracy_RU = balanced_accuracy(*(drawn_RE @ of_EU for of_EU in counts))
    sums = [of_EU.sum(axis=0) for of_EU in counts]
    accuracy_U = balanced_accuracy(*sums)
    rows = []
    for u, (unit, rule) in enumerate(zip(firing.units, rules, strict=True)):
        hit, missed, false, rest = (int(of_U[u]) for of_U in sums)
        n_tokens = hit + missed + false + rest
        rows.append(
            _labels(unit)
            | _interval(accuracy_U[u], accuracy_RU[:, u])
            | {
                "recall": _share(hit, hit + missed),
                "specificity": _share(rest, rest + false),
                "precision": _share(hit, hit + false),
                "base_rate": _share(hit + missed, n_tokens),
                "rule_rate": _share(hit + false, n_tokens),
                "n_fires": hit + missed,
                "n_tokens": n_tokens,
                "n_examples": len(wordings),
                "n_wordings": len(set(wordings)),
                "says": rule.says,
            }
        )
    return rows, _means(firing.units, accuracy_U, accuracy_RU)


def balanced_accuracy(
    hit: np.ndarray, missed: np.ndarray, false: np.ndarray, rest: np.ndarray
) -> np.ndarray:
    """Of counts of tokens: fires and said, fires, said, neither; nan where one of the classes is empty.

    >>> balanced_accuracy(*np.array([[3, 0], [1, 0], [2, 1], [2, 1]]))
    array([0.625,   nan])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return (hit / (hit + missed) + rest / (rest + false)) / 2


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _labels(unit: Unit) -> dict[str, Any]:
    labels = {"unit": unit.name, "kind": unit.kind, "drawn_by": unit.drawn_by}
    return labels | {"place": unit.place, "pair": unit.pair}


def _interval(value: float, resampled_R: np.ndarray) -> dict[str, float]:
    low, high = float("nan"), float("nan")
    if not np.isnan(value):
        low, high = np.nanquantile(resampled_R, [0.025, 0.975])
    ends = {"_ci_low": low, "_ci_high": high}
    return {f"balanced_accuracy{end}": float(v) for end, v in ({"": value} | ends).items()}


def _means(
    units: Sequence[Unit], accuracy_U: np.ndarray, accuracy_RU: np.ndarray
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for way in WAYS:
        of_kind = {
            kind: sorted(
                (u for u, unit in enumerate(units) if (unit.kind, unit.drawn_by) == (kind, way)),
                key=lambda u: units[u].pair,
            )
            for kind in KINDS
        }
        n = len(of_kind[KINDS[0]])
        drawn_RN = rng.integers(n, size=(len(accuracy_RU), n))
        found = {
            kind: (accuracy_U[chosen], np.take_along_axis(accuracy_RU[:, chosen], drawn_RN, axis=1))
            for kind, chosen in of_kind.items()
        }
        feature, neuron = (found[kind] for kind in KINDS)
        found[DIFFERENCE] = tuple(f - n for f, n in zip(feature, neuron, strict=True))
        for what, (values_N, resampled_RN) in found.items():
            missing = int(np.isnan(values_N).sum())
            counts = {"n_units": n - missing, "n_unscored": missing}
            interval = _interval(_nanmean(values_N), _nanmean(resampled_RN))
            rows.append({"what": what, "drawn_by": way} | counts | interval)
    return rows


def _nanmean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a mean of nothing, which is nan
        return np.nanmean(values, axis=-1)


def write_scores(
    folder: str | Path, rows: Sequence[dict], means: Sequence[dict], commit: str
) -> None:
    """Write `scores.csv` and `summary.csv`, each row with the commit that holds the rules."""
    for name, columns, table in (
        ("scores.csv", COLUMNS, rows),
        ("summary.csv", SUMMARY_COLUMNS, means),
    ):
        text = io.StringIO()
        writer = csv.DictWriter(text, [*columns, "rules_commit"], lineterminator="\n")
        writer.writeheader()
        for row in table:
            cells = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(cells | {"rules_commit": commit})
        write_text(Path(folder) / name, text.getvalue())
