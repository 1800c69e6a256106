"""The original study's claims and our numbers: `python -m delta_transcoders.report.findings STUDY ...`.

Reads `docs/findings.yaml`: claims, what is said of them, and the conditions that each verdict rests on. A
figure in it is named, not written: `{exp2a all tool full tool_call_rate}` is the folder of an experiment
within a study, the layers (`-` for raw), the subset, the condition and the column of its `metrics.csv`.
`full:raw` in place of a condition is a difference and `split:finetuning` a part of the gap from raw to
no_delta, both as `report.comparisons` has them; `full@32_mlp_difference` tells apart an experiment's
dictionaries by d_new and target.

Each STUDY is one seed of the pipeline. Writes `docs/findings.csv`, every figure per seed and pooled, and
`docs/FINDINGS.md`. With `--check` nothing is written: the conditions are tried on the studies, those about
experiments that were not run aside, and one that does not hold ends with an error.
"""

from __future__ import annotations

import argparse
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.command import run
from delta_transcoders.files import write_text
from delta_transcoders.metrics.intervals import wilson
from delta_transcoders.report.comparisons import POOLED, difference_rows, split_rows
from delta_transcoders.report.records import read_experiments, seed_labels
from delta_transcoders.report.summary import HOLDS_ZERO
from delta_transcoders.report.tables import read_metrics, write_table

DOCS = Path("docs")
CSV_COLUMNS = ("figure", "seed", "value", "low", "high")
_FIGURE = re.compile(r"\{([^{}]+)\}")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
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

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


Figures = Mapping[str, Mapping[str, Value]]
"""By name, then by seed, `pooled` among them."""


class _Name(NamedTuple):
    """The parts of a figure's name."""

    table: str
    layer: str
    subset: str
    condition: str
    against: str
    """What the condition is compared with (of `split`: which part); empty for a plain figure."""
    dictionaries: str
    column: str

    @classmethod
    def parse(cls, text: str) -> _Name:
        parts = text.split()
        if len(parts) != 5:
            raise ValueError(
                f"figure {{{text}}}: expected experiment, layers, subset, condition and column"
            )
        table, layer, subset, condition, column = parts
        condition, _, dictionaries = condition.partition("@")
        condition, _, against = condition.partition(":")
        layer = "" if layer == "-" else layer
        return cls(table, layer, subset, condition, against, dictionaries, column)

    def chosen(self, rows: Iterable[dict], **where: str) -> dict:
        """The only row of that name.

        Raises:
            ValueError: there is none, or more than one.
        """
        wanted = {"layer": self.layer, "subset": self.subset} | where
        found = [
            row
            for row in rows
            if all(row[key] == value for key, value in wanted.items())
            and self.dictionaries in ("", f"{row['d_new']}_{row['target']}")
        ]
        if len(found) != 1:
            raise ValueError(f"{len(found)} rows, not one, are {' '.join(filter(None, self))}")
        return found[0]


class Studies:
    """The result tables of some studies, one per seed, read when they are first needed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.seeds = seed_labels(folders)
        self._levels: dict[str, list[list[dict]]] = {}
        self._compared: dict[str, tuple[list[dict], list[dict]]] = {}

    def has(self, table: str) -> bool:
        return all((folder / table / "metrics.csv").is_file() for folder in self.folders)

    def figure(self, text: str) -> dict[str, Value]:
        """By seed and pooled.

        Raises:
            FileNotFoundError: a study without that experiment.
            ValueError: a name that no row has, or several.
        """
        name = _Name.parse(text)
        return self._difference(name) if name.against else self._level(name)

    def _level(self, name: _Name) -> dict[str, Value]:
        if name.table not in self._levels:
            self._levels[name.table] = [
                read_metrics(folder / name.table / "metrics.csv") for folder in self.folders
            ]
        rows = [name.chosen(table, condition=name.condition) for table in self._levels[name.table]]
        if name.column not in rows[0] or rows[0][name.column] == "":
            raise ValueError(f"{name.table} has no {name.column} of {name.condition}")
        values = [float(row[name.column]) for row in rows]
        seeds = {
            seed: Value(
                value,
                *(float(row.get(f"{name.column}_ci_{end}") or value) for end in ("low", "high")),
            )
            for seed, value, row in zip(self.seeds, values, rows, strict=True)
        }
        if len(rows) == 1:
            (pooled,) = seeds.values()
        elif name.column.endswith("_rate") and not math.isnan(sum(values)):
            n = [int(row["n_examples"]) for row in rows]
            hits = sum(round(v * k) for v, k in zip(values, n, strict=True))
            pooled = Value(hits / sum(n), *wilson(hits, sum(n)))
        else:
            pooled = Value(sum(values) / len(values), min(values), max(values))
        return {POOLED: pooled} | seeds

    def _difference(self, name: _Name) -> dict[str, Value]:
        if name.table not in self._compared:
            experiments = read_experiments([folder / name.table for folder in self.folders])
            self._compared[name.table] = difference_rows(experiments), split_rows(experiments)[0]
        differences, split = self._compared[name.table]
        if name.condition == "split":
            rows, where = split, {"part": name.against}
        else:
            rows, where = differences, {"condition": name.condition, "reference": name.against}
        where["measure"] = name.column
        found = {}
        for seed in dict.fromkeys(row["seed"] for row in rows):
            row = name.chosen(rows, seed=seed, **where)
            found[seed] = Value(row["estimate"], row["ci_low"], row["ci_high"])
        return found | ({self.seeds[0]: found[POOLED]} if len(self.seeds) == 1 else {})


class Condition(NamedTuple):
    """`FIGURE >= BOUND`, the bound a number or another figure; `FIGURE.low` is an end of its interval."""

    figure: str
    part: str
    comparison: str
    bound: float | str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """
        >>> Condition.parse("exp2a all tool full tool_call_rate.low >= 0.9")
        Condition(figure='exp2a all tool full tool_call_rate', part='low', comparison='>=', bound=0.9)
        """
        words = text.split()
        at = next((i for i, word in enumerate(words) if word in _COMPARISONS), None)
        if at is None:
            raise ValueError(f"condition {text!r}: expected one of {' '.join(_COMPARISONS)}")
        figure, bound, part = " ".join(words[:at]), " ".join(words[at + 1 :]), "value"
        if figure.endswith((".low", ".high")):
            figure, _, part = figure.rpartition(".")
        is_figure = len(bound.split()) > 1
        return cls(figure, part, words[at], bound if is_figure else float(bound))

    @property
    def figures(self) -> list[str]:
        return [self.figure, *([self.bound] if isinstance(self.bound, str) else [])]

    def broken_in(self, figures: Figures) -> list[str]:
        """The seeds (or `pooled`) in which it does not hold; an end of an interval is tried pooled alone."""
        seeds = list(figures[self.figure]) if self.part == "value" else [POOLED]
        broken = []
        for seed in seeds:
            value = getattr(figures[self.figure][seed], self.part)
            bound = self.bound if isinstance(self.bound, float) else figures[self.bound][seed].value
            if not _COMPARISONS[self.comparison](value, bound):
                broken.append(seed)
        return broken


def read_document(path: Path) -> dict:
    """`findings.yaml`: `title`, `introduction`, `claims` (`claim`, `right_site`, `original_site`,
    `controls`, `verdict`, `conditions`) and `tables` (`title`, `text`, `header`, `each`, `row`). A
    table gets `rows`: its `row` for every combination of the items of `each`'s lists, $1, $2, … being
    the words of a combination.
    """
    import yaml

    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for table in document["tables"]:
        words = [" ".join(map(str, items)).split() for items in itertools.product(*table["each"])]
        table["rows"] = [[_substituted(cell, of_row) for cell in table["row"]] for of_row in words]
    return document


def _substituted(cell: str, words: Sequence[str]) -> str:
    """
    >>> _substituted("{exp2a $2 $1 full fvu}", ["tool", "0"])
    '{exp2a 0 tool full fvu}'
    """
    return re.sub(r"\$(\d)", lambda match: words[int(match[1]) - 1], cell)


def conditions_of(document: dict) -> list[Condition]:
    return [Condition.parse(text) for claim in document["claims"] for text in claim["conditions"]]


def figures_of(document: dict) -> list[str]:
    """The names of all figures, in the order in which they first appear."""
    texts = []
    for claim in document["claims"]:
        texts += [text for key, text in claim.items() if key != "conditions"]
    for table in document["tables"]:
        texts += [table["text"], *(cell for row in table["rows"] for cell in row)]
    named = [name for text in texts for name in _FIGURE.findall(text)]
    conditions = conditions_of(document)
    return list(dict.fromkeys([*named, *(name for c in conditions for name in c.figures)]))


def render(document: dict, figures: Figures) -> str:
    """The Markdown page.

    Raises:
        ValueError: a condition that a verdict rests on does not hold.
    """
    if broken := broken_conditions(conditions_of(document), figures):
        raise ValueError("the verdicts do not follow from the figures: " + "; ".join(broken))

    def shown(name: str) -> str:
        of_seeds = dict(figures[name])
        pooled = of_seeds.pop(POOLED)
        if math.isnan(pooled.value):
            return "–"
        text, singly = _rounded(pooled.value), [_rounded(v.value) for v in of_seeds.values()]
        parsed = _Name.parse(name)
        if parsed.against or parsed.column.endswith("_rate"):
            text += f" [{_rounded(pooled.low)}, {_rounded(pooled.high)}]"
        if parsed.against and pooled.holds_zero:
            text += f" {HOLDS_ZERO}"
        return f"{text} ({' '.join(singly)})" if set(singly) != {_rounded(pooled.value)} else text

    def filled(text: str) -> str:
        return _FIGURE.sub(lambda match: shown(match[1]), " ".join(text.split()))

    def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        cells = [[filled(cell).replace("|", r"\|") for cell in row] for row in rows]
        lines = [list(header), ["---"] * len(header), *cells]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    parts = [f"# {document['title']}", document["introduction"].strip()]
    columns = {
        "claim": "the original's claim",
        "right_site": "the tiny study, right hook site",
        "original_site": "the tiny study, the original's way",
        "controls": "controls",
        "verdict": "verdict",
    }
    rows = [[claim[key] for key in columns] for claim in document["claims"]]
    parts.append(table(["", *columns.values()], [[str(i), *r] for i, r in enumerate(rows, 1)]))
    for section in document["tables"]:
        parts += [f"## {section['title']}", filled(section["text"])]
        parts.append(table(section["header"], section["rows"]))
    return "\n\n".join(parts) + "\n"


def _rounded(x: float) -> str:
    return f"{x:z.2f}" if abs(x) >= 1 else f"{x:z.3f}"


def broken_conditions(conditions: Sequence[Condition], figures: Figures) -> list[str]:
    """The conditions that do not hold, each with what was found."""
    found = []
    for condition in conditions:
        for seed in condition.broken_in(figures):
            value = getattr(figures[condition.figure][seed], condition.part)
            found.append(
                f"{condition.figure} is {_rounded(value)} ({condition.part}, {seed}), not "
                f"{condition.comparison} {condition.bound}"
            )
    return found


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
    parser.add_argument("studies", type=Path, nargs="+", metavar="STUDY", help="one per seed")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of findings.yaml")
    parser.add_argument("--check", action="store_true", help="only try the verdicts' conditions")
    args = parser.parse_args()
    document = read_document(args.docs / "findings.yaml")
    studies = Studies(args.studies)
    if args.check:
        conditions = [
            condition
            for condition in conditions_of(document)
            if all(studies.has(_Name.parse(name).table) for name in condition.figures)
        ]
        figures = {name: studies.figure(name) for c in conditions for name in c.figures}
        if broken := broken_conditions(conditions, figures):
            raise ValueError("docs/FINDINGS.md does not hold here: " + "; ".join(broken))
        print(
            f"{len(conditions)} conditions of docs/FINDINGS.md hold in {', '.join(map(str, args.studies))}"
        )
        return
    write_figures(
        args.docs / "findings.csv", {name: studies.figure(name) for name in figures_of(document)}
    )
    figures = read_figures(args.docs / "findings.csv")
    write_text(args.docs / "FINDINGS.md", render(document, figures))
    print(f"written: {args.docs / 'FINDINGS.md'}")


if __name__ == "__main__":
    run(main)
