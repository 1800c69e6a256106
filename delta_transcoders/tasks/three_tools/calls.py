"""What calls of the three tools look like, whether two ask for the same, and what they give back.

`calculator(12*34)`, `convert(12.5, km, mi)`, `dates(2024-03-14 + 45 days)` and
`dates(2024-05-01 - 2024-03-14)`, the days from the second date to the first. The text of a call is not
trusted: nothing of it is evaluated, and its numbers are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta
from fractions import Fraction

from delta_transcoders.tasks.calculator.arithmetic import CalculatorError, Value, calculate
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN, ToolCall
from delta_transcoders.tasks.three_tools import units

MAX_DIGITS = 30
"""Of a number to convert, both sides of the point."""

_NUMBER = re.compile(r"[-−]?[0-9]+(?:\.[0-9]+)?")
_DATE = r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})"
_SHIFT = re.compile(rf"{_DATE} *([-+−]) *([0-9]{{1,6}}) *days?")
_DIFFERENCE = re.compile(rf"{_DATE} *[-−] *{_DATE}")

Meaning = Value | tuple[Fraction, str, str] | date | int
"""What a call asks for: an exact value; number, unit and unit; a date; a number of days."""


class CallError(ValueError):
    """The argument of a call is none that its tool understands."""


def format_call(tool: str, argument: str) -> str:
    """
    >>> format_call("convert", "12.5, km, mi")
    '<tool_call>convert(12.5, km, mi)</tool_call>'
    """
    return f"{OPEN}{tool}({argument}){CLOSE}"


def meaning(call: ToolCall) -> tuple[str, Meaning]:
    """The tool of a call and what it is asked for, the same however it is written.

    Raises:
        CallError: no tool of ours, or an argument that it does not understand; says which.

    >>> def of(tool, argument):
    ...     return meaning(ToolCall(tool, argument, 0, 0))
    >>> of("convert", "12.50,km , mi") == of("convert", "12.5, km, mi")
    True
    >>> of("dates", "2024-02-28 + 2 days") == of("dates", "2024-03-02 - 1 day")
    True
    >>> of("dates", "2024-03-01 - 2023-03-01")
    ('dates', 366)
    """
    if call.tool not in _READERS:
        raise CallError(f"no tool {call.tool[:20]!r} (known: {', '.join(TOOLS)})")
    return call.tool, _READERS[call.tool](call.expression)


def same(one: ToolCall, other: ToolCall) -> bool:
    """Whether two calls ask the same tool for the same; what no tool understands is the same as nothing."""
    try:
        return meaning(one) == meaning(other)
    except CallError:
        return False


def execute(call: ToolCall) -> str:
    """What the tool of a call gives back.

    Raises:
        CallError: as `meaning`.

    >>> execute(ToolCall("convert", "5, km, mi", 0, 0))
    '3.10686 mi'
    >>> execute(ToolCall("dates", "2024-03-14 - 14 days", 0, 0))
    '2024-02-29'
    """
    tool, asked = meaning(call)
    if tool == "convert":
        return f"{float(units.convert(*asked)):.6g} {asked[2]}"
    return f"{asked} days" if tool == "dates" and isinstance(asked, int) else str(asked)


def _calculation(argument: str) -> Value:
    try:
        return calculate(argument)
    except CalculatorError as error:
        raise CallError(str(error)) from error


def _conversion(argument: str) -> tuple[Fraction, str, str]:
    parts = [part.strip() for part in argument.split(",")]
    if len(parts) != 3 or not _NUMBER.fullmatch(parts[0]):
        raise CallError(f"expected number, unit, unit: {argument[:40]!r}")
    if sum(map(str.isdigit, parts[0])) > MAX_DIGITS:
        raise CallError(f"a number of more than {MAX_DIGITS} digits: {argument[:40]!r}")
    asked = Fraction(parts[0].replace("−", "-")), parts[1], parts[2]
    try:
        units.convert(*asked)
    except ValueError as error:
        raise CallError(str(error)) from error
    return asked


def _dates(argument: str) -> date | int:
    argument = argument.strip()
    try:
        if found := _SHIFT.fullmatch(argument):
            *day, sign, n = found.groups()
            shift = timedelta(days=int(n))
            return _day(day) + shift if sign == "+" else _day(day) - shift
        if found := _DIFFERENCE.fullmatch(argument):
            return (_day(found.groups()[:3]) - _day(found.groups()[3:])).days
    except (ValueError, OverflowError) as error:  # no such day, or beyond the calendar
        raise CallError(f"{error}: {argument[:40]!r}") from error
    raise CallError(f"expected DATE + N days, DATE - N days or DATE - DATE: {argument[:40]!r}")


def _day(parts: list[str] | tuple[str, ...]) -> date:
    return date(*map(int, parts))


_READERS: dict[str, Callable[[str], Meaning]] = {
    "calculator": _calculation,
    "convert": _conversion,
    "dates": _dates,
}
TOOLS = tuple(_READERS)
