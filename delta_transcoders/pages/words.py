"""A feature in one sentence, by rule, and the measures of what its removal does, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from delta_transcoders.features.feature import Activity, Effect, Feature
from delta_transcoders.foreign_text import code_point, shown
from delta_transcoders.report.columns import title


@dataclass(frozen=True)
class Measure:
    """How a column of `ranking.csv` is written for readers."""

    title: str
    unit: str
    scale: float = 1.0
    decimals: int | None = None
    """As `decimals_of` says where None."""

    def titled(self) -> str:
        return ", ".join(filter(None, (self.title, self.unit)))


def measure_of(column: str) -> Measure:
    """
    >>> measure_of("d_exact_match_rate")
    Measure(title='exact match rate', unit='points', scale=100.0, decimals=1)
    >>> measure_of("dce").unit, measure_of("d_answer_logprob").title
    ('nats a token', 'log p(answer)')
    """
    if column == "dce":
        return Measure("cross-entropy", "nats a token")
    name = title(column.removeprefix("d_"))
    if column.endswith("_rate"):
        return Measure(name, "points", 100.0, 1)
    return Measure(name, "nats" if column.endswith("_logprob") else "")


def visible(token: str) -> str:
    """A token that stands alone, its spaces, line breaks and what cannot be seen as signs.

    >>> visible(" of"), visible("\\n"), visible("\\u202e"), visible("\\u00a0")
    ('␣of', '⏎', 'U+202E', 'U+00A0')
    """
    signs = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    return shown(re.sub(r"\s", code_point, signs))


def percent(share: float) -> str:
    """
    >>> [percent(share) for share in (0.164, 0.025, 0.0001, 0.0, float("nan"))]
    ['16 %', '2.5 %', '<0.1 %', '0 %', '–']
    """
    if math.isnan(share):
        return "–"
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1 %"
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


def decimals_of(value: float) -> int:
    """For a number that has none prescribed: two digits that are not 0 for small ones, six places at most.

    >>> [decimals_of(value) for value in (-1.32, 0.218, 0.021, 0.0021, -0.00021, 1e-9, 0.0)]
    [2, 3, 3, 4, 5, 6, 3]
    """
    size = abs(value) or 0.01
    return next(
        (n for n, least in enumerate((1, 0.01, 0.001, 0.0001), start=2) if size >= least), 6
    )


def signed(value: float, decimals: int) -> str:
    """With a minus as wide as a plus; none of them where 0 is printed.

    >>> signed(-0.74, 1), signed(0.2181, 3), signed(-0.00001, 3)
    ('−0.7', '+0.218', '0.000')
    """
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if text.strip("+−0.") else text.lstrip("+−")


def is_distinct(effect: Effect) -> bool:
    """Whether its interval leaves out 0."""
    return effect.low > 0 or effect.high < 0


def sentences(feature: Feature) -> str:
    """Where it fires, and what its removal does.

    Named are the changes on the first subset that was measured, cross-entropy first: a choice by size would
    name the luckiest of many numbers. Tokens are quoted as `visible`.
    """
    return f"{_fires(feature)} {_removal(feature)}"


def _fires(feature: Feature) -> str:
    known = {k: a for k, a in feature.activity.items() if not math.isnan(a.density)}
    if not known:
        return "There is no data on where it fires."
    if not any(activity.density for activity in known.values()):
        return "It fires on none of the texts that were read."
    trained = {k: a for k, a in known.items() if not a.held_out}
    where = _densest(trained or known)
    if not any(activity.density for activity in where.values()):
        where = _densest(known)
    shares = [f"{percent(a.density)} of the tokens of {shown(k)}" for k, a in where.items()]
    tokens = [f"“{visible(t.token)}”" for t in feature.tokens[:4]]
    return f"Fires on {_and(shares)}" + (
        f", most of all on {', '.join(tokens)}." if tokens else "."
    )


def _densest(activity: dict[str, Activity], at_most: int = 3) -> dict[str, Activity]:
    return dict(sorted(activity.items(), key=lambda item: -item[1].density)[:at_most])


def _removal(feature: Feature) -> str:
    measured = [e for e in feature.effects if e.ablation == "dropped" and not math.isnan(e.value)]
    if not measured:
        return "What its removal does was not measured."
    subset = measured[0].subset
    changes = [e for e in measured if e.subset == subset and is_distinct(e)]
    if not changes:
        return f"Without it, everything else in place, no change on {shown(subset)} can be told from 0."
    changes.sort(key=lambda effect: effect.measure != "dce")
    return f"Without it, everything else in place, {_and([_change(effect) for effect in changes])}."


def _change(effect: Effect) -> str:
    measure = measure_of(effect.measure)
    direction = "rises" if effect.value > 0 else "falls"
    value, ends = change(effect).lstrip("+−").split(" ", 1)
    size = f"{value} {measure.unit}".strip()
    return f"{measure.title} on {shown(effect.subset)} {direction} by {size} {ends}"


def change(effect: Effect) -> str:
    """
    >>> change(Effect("dropped", "tool", "dce", 0.218, 0.167, 0.271, 40))
    '+0.218 [+0.167, +0.271]'
    """
    if math.isnan(effect.value):
        return "not measured"
    measure = measure_of(effect.measure)
    ends = [measure.scale * x for x in (effect.value, effect.low, effect.high)]
    decimals = decimals_of(ends[0]) if measure.decimals is None else measure.decimals
    value, low, high = (signed(x, decimals) for x in ends)
    return f"{value} [{low}, {high}]"


def _and(parts: Sequence[str]) -> str:
    """
    >>> _and(["a"]), _and(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
