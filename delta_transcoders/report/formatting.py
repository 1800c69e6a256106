"""How numbers are written: six significant digits in CSV files, two or three decimals for readers."""

from __future__ import annotations

import math
from collections.abc import Mapping

NOT_APPLICABLE = "–"
HOLDS_ZERO = "~0"
"""Mark of a difference whose interval holds 0."""


def cell_text(value: object) -> str:
    """As CSV files hold it: numbers with six significant digits, nothing for None.

    >>> [cell_text(value) for value in (0.12345678, 1.0, 12, float("nan"), None, True, "raw")]
    ['0.123457', '1', '12', 'nan', '', 'true', 'raw']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def number(value: float | str | None, missing: str = "", decimals: int = 3) -> str:
    """For readers: three decimals below 1, two from there on; a dash for nan, which does not apply.

    Args:
        missing: what is written where there is no value (None or an empty cell).
        decimals: below 1; more than three where what matters is small.

    >>> [number(value) for value in (0.12345, "36.4708", -0.0001, 1, float("nan"), None)]
    ['0.123', '36.47', '0.000', '1.00', '–', '']
    """
    if value is None or value == "":
        return missing
    value = float(value)
    if math.isnan(value):
        return NOT_APPLICABLE
    return f"{value:z.{decimals - (abs(value) >= 1)}f}"


def interval(value: float, low: float, high: float, decimals: int = 3) -> str:
    """
    >>> interval(0.9, 0.8389, 1.0)
    '0.900 [0.839, 1.00]'
    """
    value, low, high = (number(x, decimals=decimals) for x in (value, low, high))
    return f"{value} [{low}, {high}]"


def difference(value: float, low: float, high: float, decimals: int = 3) -> str:
    """An interval, marked where it holds 0.

    >>> difference(0.01, -0.002, 0.02)
    '0.010 [-0.002, 0.020] ~0'
    """
    mark = f" {HOLDS_ZERO}" if low <= 0 <= high else ""
    return interval(value, low, high, decimals) + mark


def table_number(
    row: Mapping[str, str],
    column: str,
    missing: str = "",
    is_difference: bool = False,
    decimals: int = 3,
) -> str:
    """A cell of a table's row, with its interval (`…_ci_low`, `…_ci_high`) where the row has one.

    >>> table_number({"dce": "0.5", "dce_ci_low": "0.25", "dce_ci_high": "0.75"}, "dce")
    '0.500 [0.250, 0.750]'
    >>> table_number({"fvu": "nan"}, "fvu"), table_number({}, "fvu", missing="not measured")
    ('–', 'not measured')
    """
    ends = [row.get(f"{column}{end}") for end in ("", "_ci_low", "_ci_high")]
    if not all(ends) or math.isnan(float(ends[0])):
        return number(ends[0], missing, decimals)
    return (difference if is_difference else interval)(*map(float, ends), decimals)
