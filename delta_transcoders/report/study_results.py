"""What a study has measured, by condition, subset and measure: the source of its answer and its page."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.command import script_command
from delta_transcoders.report.columns import count, rates, verdict, whole_model
from delta_transcoders.report.study_folder import Row, StudyFolder

DICTIONARIES = ("d_new", "percentile", "target")
"""Columns that tell one set of dictionaries from another."""
BASE_MODEL, RAW, NO_DELTA, FULL, BASE_MLP = "base_model", "raw", "no_delta", "full", "base_mlp"


class Level(NamedTuple):
    """An estimate of one condition, with its 95 % interval and the number of examples behind it."""

    value: float
    low: float
    high: float
    n: int


def agree(a: Level, b: Level) -> bool:
    """Whether the interval of one holds the estimate of the other.

    One direction is not enough: an estimate of 100 % lies in no interval but its own.

    >>> agree(Level(0.99, 0.97, 0.995, 300), Level(1.0, 0.98, 1.0, 300))
    True
    """
    return a.low <= b.value <= a.high or b.low <= a.value <= b.high


def number_of(row: Row, column: str) -> float:
    """A cell; NaN where it is empty, absent or of no number."""
    try:
        return float(row.get(column) or "nan")
    except ValueError:
        return math.nan


def is_broken(row: Row, rate: str) -> bool:
    """Whether a rate that some examples have is no number."""
    return row.get(rate) == "nan" and number_of(row, count(rate)) > 0


class StudyResults(StudyFolder):
    """The tables of a study, each empty where it is not there.

    Attributes:
        measure: what the answer is about, the `..._rate` column of it; the task's first where not given.
            None in a study that generates nothing.

    Raises:
        ValueError: a damaged table, or a measure that the study does not have; names it.
    """

    def __init__(self, study: Path, measure: str | None = None) -> None:
        super().__init__(study)
        self.behaviour, self.exp1, self.exp2a, self.exp2b, self.controls = (
            self.table(f"{name}/metrics.csv")
            for name in ("behaviour", "exp1", "exp2a", "exp2b", "controls")
        )
        self.split = self.table("exp2a/comparisons/split.csv")
        header = (self.exp2a or self.behaviour or self.exp2b or [{}])[0]
        self.rates = [r for r in rates(header) if any(self._has(row, r) for row in self._rows)]
        if measure and f"{measure}_rate" not in self.rates:
            known = ", ".join(map(verdict, self.rates)) or "none"
            raise ValueError(f"{study} has no measure {measure!r}; it has {known}")
        self.measure = f"{measure}_rate" if measure else next(iter(self.rates), None)

    def check(self) -> None:
        """
        Raises:
            FileNotFoundError: there is nothing to tell of; says what makes it.
        """
        if not (self._rows or self.exp1 or self.deltas):
            study = " ".join([*script_command("study"), "--config", "FILE"])
            raise FileNotFoundError(
                f"{self.study} holds no results yet; its study file makes them: {study}"
            )

    @property
    def _rows(self) -> list[Row]:
        return [*self.behaviour, *self.exp2a, *self.exp2b]

    @staticmethod
    def _has(row: Row, column: str) -> bool:
        return not math.isnan(number_of(row, column))

    @cached_property
    def subsets(self) -> list[str]:
        """The subset that the answer is about first, the others as the tables have them."""
        rows = [*self.exp2a, *self._rows, *self.controls, *self.split]
        names = list(dict.fromkeys(row["subset"] for row in rows))
        return sorted(names, key=lambda name: name != self.subset)

    @cached_property
    def subset(self) -> str:
        """Where finetuning changed the measure most, of the subsets of Experiment 2A: the first of equals."""
        names = list(dict.fromkeys(row["subset"] for row in self.exp2a or self._rows))
        if self.measure is None:
            return next(iter(names), "")
        measured = [n for n in names if self.level(RAW, n)]

        def change(name: str) -> float:
            base, raw = self.level(BASE_MODEL, name), self.level(RAW, name)
            return abs(raw.value - base.value) if base else 0.0

        return max(measured, key=change, default=next(iter(names), ""))

    @cached_property
    def layer(self) -> str:
        """The `layer` that the answer is about: the most at once, or the single one that loses most."""
        labels = list(dict.fromkeys(row["layer"] for row in self.exp2a if row["layer"]))
        if (whole := whole_model(labels)) or not labels:
            return whole
        raw = self.level(RAW, self.subset)

        def lost(label: str) -> float:
            without = self.level(NO_DELTA, self.subset, layer=label)
            return abs(raw.value - without.value) if raw and without else -1.0

        return max(labels, key=lost)

    @cached_property
    def single_layers(self) -> list[str]:
        return [label for label in dict.fromkeys(r["layer"] for r in self.exp2a) if label.isdigit()]

    @cached_property
    def dictionaries(self) -> Row:
        """Those that the answer is about: the first of several sets."""
        rows = [row for row in self.exp2a if row["condition"] == FULL]
        return {name: rows[0].get(name, "") for name in DICTIONARIES} if rows else {}

    def rows_of(self, rows: list[Row], condition: str, layer: str | None) -> list[Row]:
        """The rows of a condition at a layer, of the dictionaries that the answer is about.

        Args:
            layer: None for whole models, which are of none.
        """
        return [
            row
            for row in rows
            if row["condition"] == condition
            and row["layer"] == (layer or "")
            and (not layer or all(row.get(k, "") == v for k, v in self.dictionaries.items()))
        ]

    def level(
        self, condition: str, subset: str, measure: str | None = None, layer: str | None = None
    ) -> Level | None:
        """A condition's estimate; None where it was not measured or does not apply.

        Args:
            measure: a column; the answer's measure where None.
            layer: of conditions that replace MLPs; the answer's where None.
        """
        if condition in (RAW, BASE_MODEL):
            rows = [
                *self.rows_of(self.behaviour, condition, None),
                *self.rows_of(self.exp2a, condition, None),
            ]
        else:
            rows = self.rows_of(self.exp2a, condition, layer or self.layer)
            rows += self.rows_of(self.controls, condition, layer or self.layer)
        return self.level_of([row for row in rows if row["subset"] == subset], measure)

    def level_of(self, rows: list[Row], measure: str | None = None) -> Level | None:
        """The first of the rows in which the measure has a value."""
        column = measure or self.measure
        for row in rows:
            if column and self._has(row, column):
                ends = (number_of(row, f"{column}{end}") for end in ("_ci_low", "_ci_high"))
                n = number_of(row, count(column))
                value = number_of(row, column)
                ends = [value if math.isnan(end) else end for end in ends]
                return Level(value, *ends, 0 if math.isnan(n) else int(n))
        return None

    @cached_property
    def _differences(self) -> dict[tuple[str, ...], Level]:
        """Paired differences by layer, subset, measure, condition and reference, all seeds together."""
        rows = [
            row
            for row in self.table("exp2a/comparisons/differences.csv")
            if row["seed"] == "pooled"
            and all(row.get(k, "") == v for k, v in self.dictionaries.items())
        ]
        keys = ("layer", "subset", "measure", "condition", "reference")
        ends = ("estimate", "ci_low", "ci_high")
        return {
            tuple(row[k] for k in keys): Level(
                *(number_of(row, name) for name in ends), int(row["n_examples"])
            )
            for row in rows
        }

    def difference(
        self,
        condition: str,
        reference: str,
        subset: str,
        measure: str | None = None,
        layer: str | None = None,
    ) -> Level | None:
        """The paired difference of two conditions (exp2a/comparisons); None where it was not computed."""
        place = (layer or self.layer, subset, measure or self.measure)
        found = self._differences.get((*place, condition, reference))
        return found if found and not math.isnan(found.value) else None

    def agree(
        self,
        condition: str,
        reference: str,
        subset: str,
        measure: str | None = None,
        layer: str | None = None,
    ) -> bool:
        """Whether two measured conditions cannot be told apart: the interval of their paired difference
        holds 0 or, where there is none, `agree` of their levels."""
        where = (subset, measure, layer)
        if difference := self.difference(condition, reference, *where):
            return difference.low <= 0 <= difference.high
        return agree(self.level(condition, *where), self.level(reference, *where))

    def missed(
        self, condition: str, reference: str, subset: str, measure: str | None = None
    ) -> str:
        """What too few prompts leave open of two conditions that agree; empty where they are enough.

        They are too few where the interval of the difference, or of the condition where there is none, is
        wider than 20 points.
        """
        difference = self.difference(condition, reference, subset, measure)
        level = difference or self.level(condition, subset, measure)
        if level.high - level.low <= 0.2:
            return ""
        middle = 0.0 if difference else level.value
        most = max(middle - level.low, level.high - middle)
        return f"with {level.n} prompts differences of up to {100 * most:.0f} points go unseen"

    def no_number(self, condition: str, subset: str) -> str:
        """The table in which the answer's measure of a condition should be a number and is none; or ""."""
        layer = None if condition in (RAW, BASE_MODEL) else self.layer
        for name in ("behaviour", "exp2a", "controls"):
            for row in self.rows_of(getattr(self, name), condition, layer):
                if row["subset"] == subset and is_broken(row, self.measure):
                    return f"{name}/metrics.csv"
        return ""

    def was_measured(self, condition: str, subset: str) -> bool:
        """Whether a condition was run on a subset at all, whatever applies to it."""
        layer = None if condition in (RAW, BASE_MODEL) else self.layer
        rows = [*self.behaviour, *self.exp2a, *self.controls]
        return any(row["subset"] == subset for row in self.rows_of(rows, condition, layer))

    @cached_property
    def alphas(self) -> list[str]:
        """Of Experiment 2B, ascending, as the table has them."""
        found = {row["alpha"] for row in self.exp2b if row.get("alpha")}
        return sorted(found, key=float)

    @cached_property
    def swept_layer(self) -> str:
        """The `layer` of the sweep that is shown."""
        labels = list(dict.fromkeys(row["layer"] for row in self.exp2b if row.get("alpha")))
        return self.layer if self.layer in labels else next(iter(labels), "")

    def dose(self, alpha: str, subset: str, measure: str | None = None) -> Level | None:
        rows = [
            row
            for row in self.exp2b
            if (row.get("alpha"), row["subset"], row["layer"]) == (alpha, subset, self.swept_layer)
            and all(row.get(k, "") == v for k, v in self.dictionaries.items())
        ]
        return self.level_of(rows, measure)


def short_layers(label: str) -> str:
    """
    >>> [short_layers(label) for label in ("all", "3", "0+1", "0+1+2+3+7")]
    ['all', '3', '0+1', '0–3+7']
    """
    if not label.replace("+", "").isdigit():
        return label
    parts = []
    for _, run in groupby(enumerate(map(int, label.split("+"))), lambda pair: pair[1] - pair[0]):
        numbers = [str(number) for _, number in run]
        parts += [f"{numbers[0]}–{numbers[-1]}"] if len(numbers) > 2 else numbers
    return "+".join(parts)
