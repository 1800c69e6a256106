"""Calls of the three tools: what is the same, what no tool understands, and what they give back."""

from fractions import Fraction

import pytest

from delta_transcoders.tasks.calculator.grammar import ToolCall, find_tool_call
from delta_transcoders.tasks.three_tools.calls import (
    TOOLS,
    CallError,
    execute,
    format_call,
    meaning,
    same,
)
from delta_transcoders.tasks.three_tools.units import UNITS, convert


def call(text: str) -> ToolCall:
    """Of `tool(argument)`."""
    return find_tool_call(f"<tool_call>{text}</tool_call>")


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("calculator(12*34)", "calculator(34 × 12)", True),
        ("calculator(12*34)", "calculator(408)", True),
        ("calculator(12*34)", "calculator(12+34)", False),
        ("calculator(1/0)", "calculator(2/0)", True),
        ("convert(12.5, km, mi)", "convert(12.50,km,mi)", True),
        ("convert(12.5, km, mi)", "convert( 12.5 , km ,\n mi )", True),
        ("convert(12.5, km, mi)", "convert(12.5, mi, km)", False),
        ("convert(12.5, km, mi)", "convert(12500, m, mi)", False),
        ("convert(12.5, km, mi)", "convert(12.5, kilometers, miles)", False),
        ("convert(12.5, km, mi)", "convert(12.6, km, mi)", False),
        ("convert(-40, C, F)", "convert(−40, C, F)", True),
        ("dates(2024-02-28 + 2 days)", "dates(2024-03-01 + 0 days)", True),
        ("dates(2023-02-28 + 2 days)", "dates(2023-03-02 - 0 day)", True),
        ("dates(2024-03-14 + 45 days)", "dates(2024-3-14+45 days)", True),
        ("dates(2024-03-14 + 45 days)", "dates(2024-03-14 - 45 days)", False),
        ("dates(2024-05-01 - 2024-03-14)", "dates(2023-05-01 - 2023-03-14)", True),
        ("dates(2024-03-01 - 2024-02-01)", "dates(2023-03-01 - 2023-02-01)", False),
        ("dates(2024-05-01 - 2024-03-14)", "dates(2024-03-14 - 2024-05-01)", False),
        ("dates(2024-05-01 - 2024-03-14)", "dates(2024-05-01 - 48 days)", False),
        ("dates(2024-05-01 - 2024-03-14)", "calculator(48)", False),
    ],
)
def test_calls_are_the_same_where_they_ask_for_the_same(one, other, alike):
    assert same(call(one), call(other)) is alike is same(call(other), call(one))
    assert same(call(one), call(one))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search(12)", r"no tool 'search' \(known: calculator, convert, dates\)"),
        ("calculator(1,0)", "unexpected ',' at position 1 of '1,0'"),
        ("convert(12.5 km, mi)", "expected number, unit, unit: '12.5 km, mi'"),
        ("convert(a lot, km, mi)", "expected number, unit, unit: 'a lot, km, mi'"),
        ("convert(12, km, kg)", "'km' is a length, 'kg' a mass"),
        ("convert(12, km, parsec)", r"unknown unit 'parsec' \(known: m, mm"),
        (f"convert({'9' * 31}, km, mi)", "a number of more than 30 digits"),
        ("dates(14 March 2024 + 45 days)", "expected DATE . N days, DATE - N days or DATE - DATE"),
        ("dates(2024-03-14 + 45)", "expected DATE"),
        ("dates(2024-03-14 + 2 weeks)", "expected DATE"),
        ("dates(2023-02-29 + 1 days)", "day is out of range for month: '2023-02-29"),
        ("dates(2024-13-01 - 2024-01-01)", "month must be in 1..12"),
        ("dates(9999-12-31 + 1 days)", "date value out of range"),
        ("dates(0001-01-01 - 999999 days)", "date value out of range"),
    ],
)
def test_what_no_tool_understands_is_named_and_equals_nothing(text, message):
    with pytest.raises(CallError, match=message):
        meaning(call(text))
    assert not same(call(text), call(text))


@pytest.mark.parametrize(
    ("text", "given_back"),
    [
        ("calculator((3 + 4) / 2)", "7/2"),
        ("convert(26.2, mi, km)", "42.1648 km"),
        ("convert(98.6, F, C)", "37 C"),
        ("convert(0, K, F)", "-459.67 F"),
        ("convert(90, km/h, m/s)", "25 m/s"),
        ("convert(2, gal, pt)", "16 pt"),
        ("convert(1, lb, oz)", "16 oz"),
        ("dates(2024-12-31 + 1 days)", "2025-01-01"),
        ("dates(1900-02-28 + 1 days)", "1900-03-01"),
        ("dates(2000-02-28 + 1 days)", "2000-02-29"),
        ("dates(2024-03-14 - 2024-05-01)", "-48 days"),
    ],
)
def test_what_tools_give_back(text, given_back):
    assert execute(call(text)) == given_back


def test_conversions_are_exact_and_lead_back():
    assert convert(Fraction(1), "mi", "yd") == 1760 and convert(Fraction(3), "ft", "yd") == 1
    assert convert(Fraction(1), "gal", "cup") == 16
    value = Fraction("12.3")
    for unit, one in UNITS.items():
        for to, other in UNITS.items():
            if one.kind == other.kind:
                assert convert(convert(value, unit, to), to, unit) == value


def test_a_call_is_found_in_the_text_that_it_is_written_as():
    assert TOOLS == ("calculator", "convert", "dates")
    text = format_call("dates", "2024-03-14 + 45 days")
    assert find_tool_call(text) == ToolCall("dates", "2024-03-14 + 45 days", 0, len(text))
