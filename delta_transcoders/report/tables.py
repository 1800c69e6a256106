"""The result table: `metrics.csv`, `metrics.json` and `generations.jsonl`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from delta_transcoders.files import write_text
from delta_transcoders.report.columns import FIRST, metrics_columns
from delta_transcoders.report.formatting import cell_text


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    """Write a CSV file with these columns: cells that a row lacks are empty, six significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell_text(row.get(column)) for column in columns] for row in rows)
    write_text(path, text.getvalue())


def write_metrics(folder: str | Path, rows: Sequence[dict]) -> None:
    """Write `metrics.csv` and `metrics.json` with one row per (layer, subset, condition).

    The columns are those of `columns.metrics_columns`: the library's own and every measure of the rows.

    Raises:
        ValueError: a row holds a column that is neither.
    """
    columns = metrics_columns(key for row in rows for key in row)
    write_table(Path(folder) / "metrics.csv", columns, rows)
    cleaned = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in rows
    ]
    write_text(Path(folder) / "metrics.json", json.dumps(cleaned, indent=1) + "\n")


def write_generations(folder: str | Path, records: Iterable[dict]) -> None:
    """Write `generations.jsonl`: every row's prompt, target, text and verdicts, and what else it holds."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text(Path(folder) / "generations.jsonl", lines)


def read_metrics(path: str | Path) -> list[dict[str, str]]:
    """Rows of a `metrics.csv`, or of another table of `write_table`, as text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table, or a `metrics.csv` without a column of `columns.FIRST`; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; the stage of that name writes it")
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    needed = FIRST if path.name == "metrics.csv" else ()
    if missing := [column for column in needed if column not in rows[0]]:
        raise ValueError(f"{path} has no column {missing[0]!r}; make it anew")
    return rows


def format_table(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> str:
    """Plain text with aligned columns.

    >>> print(format_table([{"a": "1", "b": "xyz"}], ["a", "b"]))
    a  b
    1  xyz
    """
    cells = [list(columns), *([row.get(c, "") for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
