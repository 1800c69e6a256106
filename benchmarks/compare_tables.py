"""Are the tables of two runs of a study the same? `python benchmarks/compare_tables.py A B`

Every CSV file of both folders, cell by cell and row by row: numbers within --atol + --rtol · |B|, anything
else to the letter. Prints the largest difference of each table and column, and exits with 1 where a cell
differs by more, or where one side lacks a table, a row or a column.

Tables hold six significant digits, so a last digit that is rounded the other way is a relative difference of
up to 1e-5.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

NOT_RESULTS = ("stage_times.csv",)  # of studies before there was a study.json


class Cell(NamedTuple):
    """Where two tables differ, and by how much (infinite for what is no number on both sides)."""

    difference: float
    column: str
    row: int
    a: str
    b: str
    within: bool


def table_paths(folder: Path, patterns: Iterable[str]) -> set[str]:
    """The tables below a study's folder that the patterns name."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return {p.relative_to(folder).as_posix() for p in found if p.name not in NOT_RESULTS}


def compare_cells(a: str, b: str, atol: float, rtol: float) -> tuple[float, bool]:
    """Difference of two cells, and whether it is within the tolerance.

    >>> compare_cells("0.5", "0.25", atol=0.0, rtol=0.5)
    (0.25, False)
    >>> compare_cells("nan", "nan", atol=0.0, rtol=0.0), compare_cells("full", "raw", 1.0, 1.0)
    ((0.0, True), (inf, False))
    """
    if a == b:
        return 0.0, True
    try:
        difference = abs(float(a) - float(b))
    except ValueError:
        return math.inf, False
    if math.isnan(difference):
        return math.inf, False
    return difference, difference <= atol + rtol * abs(float(b))


def compare_tables(a: Path, b: Path, atol: float, rtol: float) -> tuple[list[Cell], list[str]]:
    """The cell that differs most of each column, and what else is wrong, in words."""
    with (
        a.open(encoding="utf-8", newline="") as file_a,
        b.open(encoding="utf-8", newline="") as file_b,
    ):
        table_a, table_b = csv.DictReader(file_a), csv.DictReader(file_b)
        rows_a, rows_b = list(table_a), list(table_b)
        columns_a, columns_b = table_a.fieldnames or [], table_b.fieldnames or []
    problems = [f"only {a} has the column {c}" for c in columns_a if c not in columns_b]
    problems += [f"only {b} has the column {c}" for c in columns_b if c not in columns_a]
    if len(rows_a) != len(rows_b):
        problems.append(f"{len(rows_a)} rows and {len(rows_b)}")
    worst = []
    for column in columns_a:
        if column not in columns_b:
            continue
        cells = []
        for row, (of_a, of_b) in enumerate(zip(rows_a, rows_b, strict=False), start=2):
            pair = of_a[column] or "", of_b[column] or ""
            difference, within = compare_cells(*pair, atol, rtol)
            cells.append(Cell(difference, column, row, *pair, within))
        if cells:
            # A small number may be out of bounds where a larger one, further off, is not.
            worst.append(max(cells, key=lambda cell: (not cell.within, cell.difference)))
    return worst, problems


def report(
    a: Path, b: Path, patterns: Sequence[str], atol: float, rtol: float
) -> Iterator[tuple[str, bool]]:
    """A line for each finding, and whether it is one that fails."""
    in_a, in_b = table_paths(a, patterns), table_paths(b, patterns)
    if not in_a | in_b:
        yield f"no table {' '.join(patterns)} in {a} nor in {b}", True
    for path in sorted(in_a ^ in_b):
        yield f"{path}: only in {a if path in in_a else b}", True
    for path in sorted(in_a & in_b):
        worst, problems = compare_tables(a / path, b / path, atol, rtol)
        differing = [cell for cell in worst if cell.difference]
        yield f"{path}:{'' if differing or problems else ' the same'}", False
        for problem in problems:
            yield f"  {problem}", True
        for cell in differing:
            where = f"line {cell.row}: {cell.a!r} and {cell.b!r}"
            mark = "" if cell.within else "  <- too far apart"
            yield f"  {cell.column}: {cell.difference:.3g} ({where}){mark}", not cell.within


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path, help="folder of a study")
    parser.add_argument("b", type=Path, help="folder of another run of it")
    parser.add_argument("--atol", type=float, default=1e-6, help="absolute tolerance (1e-6)")
    parser.add_argument("--rtol", type=float, default=1e-6, help="relative tolerance (1e-6)")
    parser.add_argument(
        "--tables",
        nargs="+",
        default=["**/*.csv"],
        metavar="GLOB",
        help="which files, below either folder (**/*.csv)",
    )
    given = parser.parse_args(args)
    for folder in (given.a, given.b):
        if not folder.is_dir():
            print(f"error: no folder {str(folder)!r}", file=sys.stderr)
            return 2
    failures = 0
    for line, fails in report(given.a, given.b, given.tables, given.atol, given.rtol):
        print(line)
        failures += fails
    found = f"{failures} columns or tables differ by more than" if failures else "nothing beyond"
    print(f"{found} {given.atol:g} + {given.rtol:g}·|B|")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
