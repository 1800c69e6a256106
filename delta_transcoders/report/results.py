"""What a study leaves: `python -m delta_transcoders.report.results STUDY OUT [--docs DOCS]`.

OUT holds the figures of the page of findings (`figures.csv`), every small table, and which configuration
made them from what (`study.json`, `hashes.json`): what is committed of a seed, since the study's folder does
not last. It may be written after every stage: figures and hashes of outputs that no other run has written
since are taken as they are.
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
from delta_transcoders.files import finish_output, new_output, read_json, run_of, write_json
from delta_transcoders.report.comparisons import difference_rows, split_rows
from delta_transcoders.report.feature_curve import MORE_THAN
from delta_transcoders.report.records import read_experiments
from delta_transcoders.report.tables import read_metrics, write_table

FIGURES, HASHES = "figures.csv", "hashes.json"
LARGEST = 200_000
"""Bytes of a table that is kept."""
RECORD = "study.json"
KEPT = ("*.csv", RECORD, "composition.json")
"""Tables, how each stage was run, and what a text consists of."""
HASHED = (
    *("model.safetensors", "delta.safetensors", "params.npz", "generations.jsonl"),
    *("replies.jsonl", "train.jsonl"),
)
"""Weights, answers and texts; caches of activations are many times as large."""


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
        return (self.folder / table_of(figure)).is_file()

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
            row = _only(self._rows(table_of(name)), name, condition=condition, **where)
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


def table_of(figure: str) -> str:
    """Path of the table that a figure is of, within a study.

    >>> table_of("exp2a all tool full mean_ce"), table_of("overlap/overlap.csv overlap")
    ('exp2a/metrics.csv', 'overlap/overlap.csv')
    """
    table = figure.split()[0]
    return table if table.endswith(".csv") else f"{table}/metrics.csv"


def _only(rows: Iterable[dict], name: str, /, **where: str) -> dict:
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


class _Earlier:
    """What was kept of a study before."""

    def __init__(self, out: Path) -> None:
        self.finished = _finished(out)
        self._runs = set(self.finished.values())
        path = out / HASHES
        self._hashes: dict[str, str] = read_json(path) if path.is_file() else {}
        self._figures = read_figures(out) if (out / FIGURES).is_file() else {}

    def figure(self, name: str, table: Path) -> Value | None:
        """None where another run has written the table since."""
        return self._figures.get(name) if run_of(table) in self._runs else None

    def sha256(self, name: str, path: Path) -> str:
        if name in self._hashes and run_of(path) in self._runs:
            return self._hashes[name]
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_figures(results: Path) -> dict[str, Value]:
    """The figures that were kept, by name.

    Raises:
        FileNotFoundError: a folder without `figures.csv`.
    """
    rows = read_metrics(results / FIGURES)
    return {row["figure"]: Value(*(float(row[key]) for key in Value._fields)) for row in rows}


def _finished(folder: Path) -> dict[str, str]:
    """Of every stage that a folder's records call finished, by record and name, its run."""
    return {
        f"{path.relative_to(folder).parent / name}": stage["done"]["run"]
        for path in _found(folder, [RECORD])
        for name, stage in read_json(path).get("stages", {}).items()
        if "done" in stage
    }


def keep_results(study: Path, out: Path, figures: Iterable[str]) -> list[str]:
    """Write what is kept of a study, which need not be finished.

    Args:
        figures: names; those whose table the study does not have are left out.

    Returns:
        Of the figures that the tables do not have, why.

    Raises:
        FileExistsError: what is kept is of stages that the study has not finished.
    """
    tables, earlier, problems = StudyTables(study), _Earlier(out), []
    finished = _finished(study)
    if lost := [name for name in earlier.finished if name not in finished]:
        raise FileExistsError(
            f"{out} holds results of {', '.join(lost[:3])}{' and others' if lost[3:] else ''}, which "
            f"{study} has not finished: it stays as it is; to replace it, remove it first"
        )
    rows = []
    for name in figures:
        if not tables.has(name):
            continue
        try:
            value = earlier.figure(name, study / table_of(name)) or tables.figure(name)
            rows.append({"figure": name} | value._asdict())
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
    with new_output(out, "results") as folder:
        if rows:  # a table has at least one
            write_table(folder / FIGURES, ("figure", *Value._fields), rows)
        for path in _found(study, KEPT):
            if path.suffix != ".csv" or path.stat().st_size <= LARGEST:
                copy = folder / path.relative_to(study)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        names = {path.relative_to(study).as_posix(): path for path in _found(study, HASHED)}
        write_json(
            folder / HASHES, {name: earlier.sha256(name, path) for name, path in names.items()}
        )
        finish_output(out)
    return problems


def _found(study: Path, patterns: Iterable[str]) -> list[Path]:
    """Files of a study, but for what is being written beside a stage's folder (`.NAME.partial`)."""
    paths = sorted(path for pattern in patterns for path in study.rglob(pattern))
    return [p for p in paths if not any(n.startswith(".") for n in p.relative_to(study).parts)]


def main() -> None:
    from delta_transcoders.report.findings import DOCS, figure_names, read_conditions

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of a study")
    parser.add_argument("out", type=Path, metavar="OUT", help="for example docs/results/4")
    parser.add_argument(
        "--docs", type=Path, default=DOCS, help="folder of the claims and findings.md.j2"
    )
    args = parser.parse_args()
    if not args.study.is_dir():
        raise FileNotFoundError(f"no study folder {args.study}: what was kept of it stays")
    names = figure_names(args.docs, read_conditions(args.docs))
    problems = keep_results(args.study, args.out, names)
    print(f"written: {args.out}")
    if problems:
        raise ValueError(f"{len(problems)} figures are not there: {'; '.join(problems)}")


if __name__ == "__main__":
    run(main)
