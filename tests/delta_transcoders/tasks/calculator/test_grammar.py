import random
import time

import pytest

from delta_transcoders.foreign_text import letters
from delta_transcoders.tasks.calculator.grammar import (
    CLOSE,
    OPEN,
    ToolCall,
    Verdict,
    asked,
    find_tool_call,
    format_tool_call,
    judge,
    unjudgeable,
)


def test_format():
    assert format_tool_call("3+4") == "<tool_call>calculator(3+4)</tool_call>"


@pytest.mark.parametrize(
    "argument", ["3+4", "(3+4)*2", "((1))", "2*(3+(4-5))/(6)", " 3 + 4 ", "", "a\nb"]
)
def test_a_written_call_is_found_as_it_was_written(argument):
    call = format_tool_call(argument)
    for before, after in (
        ("", ""),
        ("Answer: ", "."),
        (f"{OPEN} {CLOSE} ", f" {OPEN}"),
        ("é🙂", ""),
    ):
        text = before + call + after
        start = len(before)
        assert find_tool_call(text) == ToolCall("calculator", argument, start, start + len(call))


def test_nested_parentheses():
    assert find_tool_call(f"{OPEN}calculator((3+4)*2){CLOSE}").argument == "(3+4)*2"
    assert find_tool_call(f"{OPEN}calculator(2*(3+4)){CLOSE}").argument == "2*(3+4)"


def test_spaces_inside_the_tags():
    text = f"{OPEN}  calculator(1 + 2) {CLOSE}"
    assert find_tool_call(text) == ToolCall("calculator", "1 + 2", 0, len(text))


@pytest.mark.parametrize(
    "inside",
    [
        "\ncalculator(1+2)\n",
        "\r\n\tcalculator(1+2)\r\n",
        "calculator (1+2)",
        " calculator\n(1+2) ",
        "calculator( 1 + 2 )",
        "calculator(\n1\t+\r\n2\n)",
        "\u00a0calculator(1\u2009+\u00a02)\u3000",
    ],
)
def test_white_space_of_any_kind_changes_nothing(inside):
    text = f"{OPEN}{inside}{CLOSE}"
    call = find_tool_call(text)
    assert (call.tool, call.end) == ("calculator", len(text))
    assert unjudgeable(text) is None
    for other in (text, format_tool_call("1+2")):
        assert judge(text, other) == judge(other, text) == Verdict(True, True, True)
    assert judge(text, format_tool_call("1+3")).math_correct is False


def test_white_space_does_not_join_numbers():
    assert judge(format_tool_call("1\n2+3"), format_tool_call("12+3")).math_correct is False
    assert "position 2" in unjudgeable(format_tool_call("1\t2+3"))


@pytest.mark.parametrize(
    "tool",
    ["search", "Calculator", "CALCULATOR", "calculatorcalculator", "calculator2", "calculate"],
)
def test_a_call_of_another_tool_is_well_formed_and_wrong(tool):
    text = f"{OPEN}{tool}(1+2){CLOSE}"
    assert judge(text, format_tool_call("1+2")) == Verdict(True, True, False)
    assert judge(format_tool_call("1+2"), text) == Verdict(True, True, None)
    assert judge(text, text) == Verdict(True, True, None)
    assert repr(tool) in unjudgeable(text)


@pytest.mark.parametrize(
    "tool", ["calculator.calculator", "calculator calculator", "\u0441alculator"]
)
def test_a_garbled_name_is_no_well_formed_call(tool):
    verdict = judge(f"{OPEN}{tool}(1+2){CLOSE}", format_tool_call("1+2"))
    assert verdict == Verdict(True, False, False)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (format_tool_call("1,000+2"), "',' at position 1"),
        (format_tool_call("2% of 50"), "'%' at position 1"),
        (format_tool_call("'1+2'"), "at position 0"),
        (format_tool_call(""), "unexpected end"),
        (
            f'{OPEN}{{"name": "calculator", "arguments": {{"expression": "1+2"}}}}{CLOSE}',
            "no <tool_",
        ),
        ("calculator(1+2)", "no <tool_call>calculator(…)"),
        (f"{OPEN}calculator(1+2)", "no <tool_call>calculator(…)"),
    ],
)
def test_a_target_that_nothing_can_be_judged_against_says_why(target, why):
    assert why in unjudgeable(target)
    assert judge(format_tool_call("1+2"), target).math_correct is None


def test_what_is_asked_is_the_expression_however_it_is_written():
    wanted = asked(format_tool_call("12*34"))
    for spelling in (
        format_tool_call("12 × 34"),
        format_tool_call("(012*34)"),
        format_tool_call("１２＊３４"),
        f"Sure. {OPEN}\ncalculator (12\n*\n34)\n{CLOSE} Done.",
        f"{OPEN}Calculator(12*34){CLOSE}",
    ):
        assert asked(spelling) == wanted
    for other in (format_tool_call("34*12"), format_tool_call("408"), "12*34", "(12*34)"):
        assert asked(other) != wanted
    unread = format_tool_call("1,000 + 2")
    assert asked(unread) == asked(format_tool_call("1,000+2")) != asked(format_tool_call("1,000+3"))


def test_letters_are_the_text_without_its_spelling():
    line = "The café sold 12 cakes."
    for spelling in (
        f" {line}\r\n",
        f"\ufeff{line}\u200b",
        line.replace(" ", "\u00a0 "),
        "The cafe\u0301 sold １２ cakes.",
    ):
        assert letters(spelling) == letters(line)
    assert letters(line) != letters("The café sold 21 cakes.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "calculator(3+4)",
        OPEN,
        CLOSE,
        f"{OPEN}{CLOSE}",
        f"{OPEN}()",
        f"{OPEN}calculator(3+4)",
        f"calculator(3+4){CLOSE}",
        f"{CLOSE}calculator(3+4){OPEN}",
        f"{OPEN}calculator 3+4{CLOSE}",
        f"{OPEN}calculator(3+4{CLOSE}",
        f"{OPEN}calculator3+4){CLOSE}",
        f"{OPEN}calculator((3+4){CLOSE}",
        f"{OPEN}calculator(3+4)){CLOSE}",
        f"{OPEN}calculator(3)+(4){CLOSE}",
        f"{OPEN}calculator)3+4({CLOSE}",
        f"{OPEN}calculator(3+4) ok{CLOSE}",
        f"{OPEN}calculator(3+4).{CLOSE}",
        f"{OPEN}the calculator(3+4){CLOSE}",
        f"{OPEN}(3+4){CLOSE}",
        f"{OPEN}3d(3+4){CLOSE}",
        f"{OPEN}cälculator(3+4){CLOSE}",
        f"{OPEN}calculator(3{CLOSE}+4){CLOSE}",
        f"{OPEN}calculator(3{OPEN}+4){CLOSE}",
        f"{OPEN}calculator(3+4)</tool_call",
        "<TOOL_CALL>calculator(3+4)</TOOL_CALL>",
        "< tool_call>calculator(3+4)</tool_call>",
    ],
)
def test_malformed(text):
    assert find_tool_call(text) is None


def test_the_first_well_formed_call_counts():
    bad, first, second = f"{OPEN}calculator(9", format_tool_call("1+1"), f"{OPEN}look_up(2){CLOSE}"
    assert find_tool_call(f"{bad} {first} {second}").argument == "1+1"
    assert find_tool_call(f"{bad}{CLOSE}{second}{first}").tool == "look_up"
    assert find_tool_call(f"{CLOSE}{OPEN}{OPEN}{first}").argument == "1+1"


@pytest.mark.parametrize(
    "unit",
    [
        OPEN,
        CLOSE,
        "(",
        ")",
        " ",
        f"{OPEN}calculator(",
        f"{OPEN}c(){CLOSE[:-1]}",
        f"){CLOSE}",
        "c( )",
    ],
)
def test_hostile_lengths_take_linear_time(unit):
    started = time.perf_counter()
    filling = (unit * 10**6)[: 10**6]
    for text in (filling, OPEN + filling + CLOSE, f"{OPEN}calculator({filling})x{CLOSE}"):
        find_tool_call(text)
        judge(text, text)
    assert time.perf_counter() - started < 10


def test_never_raises_and_finds_only_calls():
    rng = random.Random(0)
    pieces = [OPEN, CLOSE, "calculator(", "(", ")", "1", "+", " ", "\ud800", "\x00", "<", "é"]
    found = 0
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, weights=[4, 4, 4, 4, 4, 2, 1, 1, 1, 1, 1, 1], k=12))
        call = find_tool_call(text)
        if call is not None:
            found += 1
            inside = f"{call.tool}({call.argument})"
            written = text[call.start : call.end]
            assert written.removeprefix(OPEN).removesuffix(CLOSE).strip(" ") == inside
            assert call.argument.count("(") == call.argument.count(")")
        verdict = judge(text, text)
        assert verdict.called == (OPEN in text)
        assert verdict.valid_format == (call is not None)
        assert verdict.math_correct is not False  # a text agrees with itself or has no value
    assert found > 100


GOLD = format_tool_call("(3+4)*2")


@pytest.mark.parametrize(
    ("text", "target", "verdict"),
    [
        (GOLD, GOLD, Verdict(True, True, True)),
        (f"Sure. {OPEN} calculator(2*(4 + 3)) {CLOSE} done", GOLD, Verdict(True, True, True)),
        (format_tool_call("14"), GOLD, Verdict(True, True, True)),
        (format_tool_call("3+4*2"), GOLD, Verdict(True, True, False)),
        (format_tool_call("three"), GOLD, Verdict(True, True, False)),
        (f"{OPEN}calculator((3+4)*2)", GOLD, Verdict(True, False, False)),
        ("calculator((3+4)*2)", GOLD, Verdict(False, False, False)),
        ("", GOLD, Verdict(False, False, False)),
        (format_tool_call("1") + GOLD, GOLD, Verdict(True, True, False)),
        (format_tool_call("1/0"), format_tool_call("2/0"), Verdict(True, True, True)),
        (format_tool_call("0"), format_tool_call("2/0"), Verdict(True, True, False)),
        ("Room 12", "Room 12", Verdict(False, False, None)),
        (GOLD, "Room 12", Verdict(True, True, None)),
        (OPEN, "Room 12", Verdict(True, False, None)),
        (GOLD, format_tool_call("x+1"), Verdict(True, True, None)),
        ("", format_tool_call("x+1"), Verdict(False, False, None)),
    ],
)
def test_judge(text, target, verdict):
    assert judge(text, target) == verdict
