"""The original study's claims and our numbers: `python -m delta_transcoders.report.findings [STUDY ...]`.

Each STUDY is one seed of the pipeline: their figures are written to `docs/findings.csv`, each per seed and
pooled. From that file alone `docs/FINDINGS.md` is rendered, also where no STUDY is given. The page's template
is `docs/findings.md.j2`; what its verdicts rest on is in `docs/findings_conditions.csv`: a `figure`, its
`part` (`value`, which must hold in every seed, or an end of the pooled interval, `low` or `high`), a
`comparison` and a `bound`, a number or another figure. A condition that does not hold stops the page from
being written. With `--check` nothing is written: the conditions are tried on the studies, except those about
experiments that were not run, and one that does not hold ends with an error.

A figure is named by five words, and its number is never written by hand: `exp2a all SUBSET full mean_ce` is
the folder of an experiment within a study, the layers (`-` for raw), the subset, the condition and the
column of its `metrics.csv`. `full:raw` in place of a condition is a difference and `split:finetuning` a
part of the gap from raw to no_delta, both as `report.comparisons` has them; `full@32_mlp_difference` tells
an experiment's dictionaries apart by d_new and target.
"""

from __future__ import annotations

import argparse
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.command import run
from delta_transcoders.files import write_text
from delta_transcoders.metrics.intervals import wilson
from delta_transcoders.report.columns import count, rates
from delta_transcoders.report.comparisons import POOLED, difference_rows, split_rows
from delta_transcoders.report.formatting import difference, interval, number
from delta_transcoders.report.records import read_experiments, seed_labels
from delta_transcoders.report.tables import read_metrics, write_table
from delta_transcoders.report.templates import environment

DOCS = Path("docs")
CSV_COLUMNS = ("figure", "seed", "value", "low", "high")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Value(NamedTuple):
    """A figure: over several seeds their mean, and an interval that says how sure it is.

    The interval of a rate is Wilson's of all seeds' examples, of a difference that of
    `report.comparisons`; anything else has the range of the seeds, or one seed's own interval.
    """

    value: float
    low: float
    high: float


Figures = Mapping[str, Mapping[str, Value]]
"""By name, then by seed, `pooled` among them."""


class Condition(NamedTuple):
    """A line of `findings_conditions.csv`; see the module."""

    claim: str
    figure: str
    part: str
    comparison: str
    bound: str

    @property
    def figures(self) -> list[str]:
        return [self.figure, *([self.bound] if " " in self.bound else [])]

    def broken(self, figures: Figures) -> list[str]:
        """What was found instead, for each seed (or `pooled`) in which it does not hold."""
        found = []
        for seed in figures[self.figure] if self.part == "value" else [POOLED]:
            value = getattr(figures[self.figure][seed], self.part)
            bound = figures[self.bound][seed].value if " " in self.bound else float(self.bound)
            if not COMPARISONS[self.comparison](value, bound):
                found.append(
                    f"claim {self.claim}: {self.figure} is {number(value)} ({self.part}, {seed}), not "
                    f"{self.comparison} {self.bound}"
                )
        return found


def read_conditions(docs: Path) -> list[Condition]:
    """
    Raises:
        ValueError: a line with an unknown part or comparison; names it.
    """
    path = docs / "findings_conditions.csv"
    conditions = [Condition(**row) for row in read_metrics(path)]
    for line, condition in enumerate(conditions, start=2):
        if condition.comparison not in COMPARISONS or condition.part not in Value._fields:
            raise ValueError(
                f"{path}, line {line}: need a part of {', '.join(Value._fields)} and a comparison of "
                f"{' '.join(COMPARISONS)}, got {condition.part!r} and {condition.comparison!r}"
            )
    return conditions


class Studies:
    """The result tables of some studies, one per seed, read when they are first needed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.seeds = seed_labels(folders)
        self._levels: dict[str, list[list[dict]]] = {}
        self._compared: dict[str, tuple[list[dict], list[dict]]] = {}

    def has(self, figure: str) -> bool:
        table = figure.split()[0]
        return all((folder / table / "metrics.csv").is_file() for folder in self.folders)

    def figure(self, name: str) -> dict[str, Value]:
        """By seed and pooled.

        Raises:
            FileNotFoundError: a study without that experiment.
            ValueError: a name that no row has, or several.
        """
        words = name.split()
        if len(words) != 5:
            raise ValueError(
                f"figure {name!r}: expected experiment, layers, subset, condition and column"
            )
        table, layer, subset, condition, column = words
        condition, _, dictionaries = condition.partition("@")
        condition, _, against = condition.partition(":")

        def only(rows: Iterable[dict], **where: str) -> dict:
            where |= {"layer": layer.replace("-", ""), "subset": subset}
            found = [
                row
                for row in rows
                if all(row[key] == value for key, value in where.items())
                and dictionaries in ("", f"{row['d_new']}_{row['target']}")
            ]
            if len(found) != 1:
                raise ValueError(f"{len(found)} rows, not one, are {name}")
            return found[0]

        if against:
            differences, split = self._comparisons(table)
            if condition == "split":
                rows, where = split, {"part": against}
            else:
                rows, where = differences, {"condition": condition, "reference": against}
            values = {}
            for seed in dict.fromkeys(row["seed"] for row in rows):
                row = only(rows, seed=seed, measure=column, **where)
                values[seed] = Value(row["estimate"], row["ci_low"], row["ci_high"])
            return values if len(self.seeds) > 1 else values | {self.seeds[0]: values[POOLED]}
        rows = [only(rows, condition=condition) for rows in self._tables(table)]
        if rows[0].get(column, "") == "":
            raise ValueError(f"{table} has no {column} of {condition}")
        values = {seed: _level(row, column) for seed, row in zip(self.seeds, rows, strict=True)}
        return {POOLED: _pooled(rows, column, list(values.values()), name), **values}

    def _tables(self, table: str) -> list[list[dict]]:
        if table not in self._levels:
            paths = [folder / table / "metrics.csv" for folder in self.folders]
            self._levels[table] = [read_metrics(path) for path in paths]
        return self._levels[table]

    def _comparisons(self, table: str) -> tuple[list[dict], list[dict]]:
        if table not in self._compared:
            experiments = read_experiments([folder / table for folder in self.folders])
            self._compared[table] = difference_rows(experiments), split_rows(experiments)[0]
        return self._compared[table]


def _level(row: dict[str, str], column: str) -> Value:
    """A cell with its interval; without one, the cell itself is both ends."""
    return Value(
        *(float(row.get(f"{column}{end}") or row[column]) for end in ("", "_ci_low", "_ci_high"))
    )


def _pooled(rows: Sequence[dict], column: str, values: Sequence[Value], name: str) -> Value:
    if len(values) == 1:
        return values[0]
    estimates = [value.value for value in values]
    if not rates([column]) or math.isnan(sum(estimates)):
        return Value(sum(estimates) / len(values), min(estimates), max(estimates))
    # Older tables lack the rate's own denominator: there all examples are taken to have a verdict.
    totals = [int(row.get(count(column)) or row["n_examples"]) for row in rows]
    hits = [rate * n for rate, n in zip(estimates, totals, strict=True)]
    if any(abs(k - round(k)) > 1e-5 * n for k, n in zip(hits, totals, strict=True)):
        raise ValueError(
            f"{name}: not a rate of {totals} examples, and the table has no {count(column)}; make it anew"
        )
    k, n = sum(round(hit) for hit in hits), sum(totals)
    return Value(k / n, *wilson(k, n))


def shown(name: str, of_seeds: Mapping[str, Value]) -> str:
    """A figure as the page has it; the seeds are in parentheses where they differ."""
    pooled = of_seeds[POOLED]
    *_, condition, column = name.split()
    if math.isnan(pooled.value):
        return number(pooled.value)
    if ":" in condition:
        text = difference(*pooled)
    else:
        text = interval(*pooled) if rates([column]) else number(pooled.value)
    singly = [number(value.value) for seed, value in of_seeds.items() if seed != POOLED]
    return f"{text} ({' '.join(singly)})" if set(singly) != {number(pooled.value)} else text


def figure_names(docs: Path, conditions: Sequence[Condition]) -> list[str]:
    """All figures of the page and the conditions, in the order in which they first appear."""
    names: list[str] = []
    environment(docs).get_template("findings.md.j2").render(f=lambda *w: names.append(_name(w)))
    return list(dict.fromkeys([*names, *(name for c in conditions for name in c.figures)]))


def _name(words: Iterable[object]) -> str:
    return " ".join(map(str, words))


def render(docs: Path, conditions: Sequence[Condition], figures: Figures) -> str:
    """The Markdown page.

    Raises:
        ValueError: a condition that a verdict rests on does not hold.
    """
    if broken := [found for c in conditions for found in c.broken(figures)]:
        raise ValueError("the verdicts do not follow from the figures: " + "; ".join(broken))
    template = environment(docs).get_template("findings.md.j2")
    return template.render(f=lambda *words: shown(_name(words), figures[_name(words)]))


def write_figures(path: Path, figures: Figures) -> None:
    rows = [
        {"figure": name, "seed": seed} | value._asdict()
        for name, by_seed in figures.items()
        for seed, value in by_seed.items()
    ]
    write_table(path, CSV_COLUMNS, rows)


def read_figures(path: Path) -> dict[str, dict[str, Value]]:
    figures: dict[str, dict[str, Value]] = {}
    for row in read_metrics(path):
        value = Value(*(float(row[key]) for key in Value._fields))
        figures.setdefault(row["figure"], {})[row["seed"]] = value
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "studies",
        type=Path,
        nargs="*",
        metavar="STUDY",
        help="one per seed; without any, the figures of findings.csv are taken",
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of findings.md.j2")
    parser.add_argument("--check", action="store_true", help="only try the verdicts' conditions")
    args = parser.parse_args()
    docs, conditions = args.docs, read_conditions(args.docs)
    path = docs / "findings.csv"
    if args.check:
        where = ", ".join(map(str, args.studies or [path]))
        if args.studies:
            studies = Studies(args.studies)
            conditions = [c for c in conditions if all(studies.has(name) for name in c.figures)]
            figures = {name: studies.figure(name) for c in conditions for name in c.figures}
        else:
            figures = read_figures(path)
        if broken := [found for c in conditions for found in c.broken(figures)]:
            raise ValueError(f"{docs}/FINDINGS.md does not hold here: " + "; ".join(broken))
        print(f"{len(conditions)} conditions of {docs}/FINDINGS.md hold in {where}")
        return
    if args.studies:
        studies = Studies(args.studies)
        write_figures(path, {n: studies.figure(n) for n in figure_names(docs, conditions)})
    write_text(docs / "FINDINGS.md", render(docs, conditions, read_figures(path)))
    print(f"written: {docs / 'FINDINGS.md'}")


if __name__ == "__main__":
    run(main)
