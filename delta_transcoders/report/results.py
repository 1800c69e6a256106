"""What a finished study leaves: `python -m delta_transcoders.report.results STUDY OUT [--docs DOCS]`.

OUT holds the figures of the page of findings (`figures.csv`), every small table, and which configuration
made them from what (`study.json`, `hashes.json`): what is committed of a seed, since the study's folder does
not last.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.command import run
from delta_transcoders.files import finish_output, new_output, write_json
from delta_transcoders.report.comparisons import difference_rows, split_rows
from delta_transcoders.report.feature_curve import MORE_THAN
from delta_transcoders.report.records import read_experiments
from delta_transcoders.report.tables import read_metrics, write_table

FIGURES = "figures.csv"
LARGEST = 200_000
"""Bytes of a table that is kept."""
HASHED = ("model.safetensors", "delta.safetensors", "params.npz", "generations.jsonl")
"""Weights and answers; caches of activations are many times as large."""


class Value(NamedTuple):
    """A figure and the ends of its interval; a figure without one is both ends itself.

    What is only known to be more than a number is infinite, with that number as its low end.
    """

    value: float
    low: float
    high: float


class StudyTables:
    """The result tables of one study, read when they are needed; `report.findings` says what names mean.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tables: dict[str, list[dict]] = {}
        self._compared: dict[str, tuple[list[dict], list[dict]]] = {}

    def has(self, figure: str) -> bool:
        return (self.folder / _path(figure)).is_file()

    def figure(self, name: str) -> Value:
        """
        Raises:
            FileNotFoundError: a study without that table.
            ValueError: a name that no row has, or several.
        """
        table, *words = name.split()
        if table.endswith(".csv"):
            *where, column = words
            cells = dict(word.split("=", 1) for word in where)
            return _level(_only(self._rows(table), name, **cells), column, name)
        if len(words) != 4:
            raise ValueError(
                f"figure {name!r}: expected experiment, layers, subset, condition and column"
            )
        layer, subset, condition, column = words
        condition, _, dictionaries = condition.partition("@")
        condition, _, against = condition.partition(":")
        where = {"layer": layer.replace("-", ""), "subset": subset}
        if dictionaries:
            where["d_new"], _, where["target"] = dictionaries.partition("_")
        if not against:
            row = _only(self._rows(_path(name)), name, condition=condition, **where)
            return _level(row, column, name)
        differences, split = self._comparisons(table)
        if condition == "split":
            row = _only(split, name, measure=column, part=against, **where)
        else:
            where |= {"condition": condition, "reference": against}
            row = _only(differences, name, measure=column, **where)
        return Value(row["estimate"], row["ci_low"], row["ci_high"])

    def _rows(self, path: str) -> list[dict]:
        if path not in self._tables:
            self._tables[path] = read_metrics(self.folder / path)
        return self._tables[path]

    def _comparisons(self, table: str) -> tuple[list[dict], list[dict]]:
        if table not in self._compared:
            experiments = read_experiments([self.folder / table])
            self._compared[table] = difference_rows(experiments), split_rows(experiments)[0]
        return self._compared[table]


def _path(figure: str) -> str:
    table = figure.split()[0]
    return table if table.endswith(".csv") else f"{table}/metrics.csv"


def _only(rows: Iterable[dict], name: str, **where: str) -> dict:
    found = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows, not one, are {name}")
    return found[0]


def _level(row: dict[str, str], column: str, name: str) -> Value:
    if row.get(column, "") == "":
        raise ValueError(f"{name}: the row has no {column}")
    if row[column].startswith(MORE_THAN):
        return Value(math.inf, float(row[column].removeprefix(MORE_THAN)), math.inf)
    return Value(
        *(float(row.get(f"{column}{end}") or row[column]) for end in ("", "_ci_low", "_ci_high"))
    )


def keep_results(study: Path, out: Path, figures: Iterable[str]) -> None:
    """Write what is kept of a study.

    Args:
        figures: names; those whose table the study does not have are left out.
    """
    tables = StudyTables(study)
    found = {name: tables.figure(name) for name in figures if tables.has(name)}
    with new_output(out, "results") as folder:
        rows = [{"figure": name} | value._asdict() for name, value in found.items()]
        write_table(folder / FIGURES, ("figure", *Value._fields), rows)
        for path in sorted(study.rglob("*.csv")):
            if path.stat().st_size <= LARGEST:
                copy = folder / path.relative_to(study)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        for path in sorted(study.rglob("study.json")):
            copy = folder / path.relative_to(study)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        hashes = {
            path.relative_to(study).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for pattern in HASHED
            for path in sorted(study.rglob(pattern))
        }
        write_json(folder / "hashes.json", hashes)
        finish_output(out)


def main() -> None:
    from delta_transcoders.report.findings import DOCS, figure_names, read_conditions

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of a finished study")
    parser.add_argument("out", type=Path, metavar="OUT", help="for example docs/results/4")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of findings.md.j2")
    args = parser.parse_args()
    keep_results(args.study, args.out, figure_names(args.docs, read_conditions(args.docs)))
    print(f"written: {args.out}")


if __name__ == "__main__":
    run(main)
