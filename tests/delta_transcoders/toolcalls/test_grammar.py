import random
import time

import pytest

from delta_transcoders.toolcalls.grammar import (
    CLOSE,
    OPEN,
    ToolCall,
    Verdict,
    find_tool_call,
    format_tool_call,
    judge,
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
