import ast
import copy
import operator
import pickle
import random
import time
from fractions import Fraction

import pytest

from delta_transcoders.tasks.calculator.arithmetic import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_LENGTH,
    UNDEFINED,
    CalculatorError,
    calculate,
    canonical,
    same_value,
)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", Fraction(7)),
        ("007", Fraction(7)),
        ("2+3*4", Fraction(14)),
        ("(2+3)*4", Fraction(20)),
        ("10-4-3", Fraction(3)),
        ("24/4/3", Fraction(2)),
        ("24/4*3", Fraction(18)),
        ("24*4/3", Fraction(32)),
        ("1/3", Fraction(1, 3)),
        ("0.1+0.2", Fraction(3, 10)),
        (".5*1.50", Fraction(3, 4)),
        ("-3*-4", Fraction(12)),
        ("-(2+3)", Fraction(-5)),
        ("-2+5", Fraction(3)),
        ("--+-7", Fraction(-7)),
        ("-+-7", Fraction(7)),
        ("2--3", Fraction(5)),
        ("2*-3+1", Fraction(-5)),
        ("  ( 12 + 3 ) / 5  ", Fraction(3)),
        ("((3+4)*(2-5))", Fraction(-21)),
        ("6×7", Fraction(42)),
        ("6÷4", Fraction(3, 2)),
        ("6−9", Fraction(-3)),
        ("−6", Fraction(-6)),
    ],
)
def test_value(expression, value):
    assert calculate(expression) == value


def value_of(node: ast.expr) -> Fraction:
    """Exact value of an expression that Python has parsed."""
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        return -value_of(node.operand)
    signs = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv"}
    return getattr(operator, signs[type(node.op)])(value_of(node.left), value_of(node.right))


def test_agrees_with_python_on_random_expressions():
    rng = random.Random(0)

    def write(depth):
        if depth == 0 or rng.random() < 0.2:
            return str(rng.randint(0, 9))
        text = f"{write(depth - 1)}{rng.choice('+-*/')}{rng.choice(['', '-'])}{write(depth - 1)}"
        return f"({text})" if rng.random() < 0.5 else text

    undefined = 0
    for _ in range(500):
        text = write(4)
        try:
            expected = value_of(ast.parse(text, mode="eval").body)
        except ZeroDivisionError:
            expected, undefined = UNDEFINED, undefined + 1
        assert calculate(text) == expected, text
    assert 0 < undefined < 400


@pytest.mark.parametrize(
    "expression", ["1/0", "0/0", "5-1/0", "0*(1/0)", "1/(3-3)", "1/(1/0)", "-(1/0.0)"]
)
def test_division_by_zero_is_undefined_and_spreads(expression):
    assert calculate(expression) is UNDEFINED


def test_undefined_absorbs_every_operation():
    number = Fraction(3)
    for result in (
        UNDEFINED + number,
        number + UNDEFINED,
        UNDEFINED - 1,
        1 - UNDEFINED,
        UNDEFINED * 0,
        0 * UNDEFINED,
        UNDEFINED / UNDEFINED,
        number / UNDEFINED,
        -UNDEFINED,
        +UNDEFINED,
        abs(UNDEFINED),
        UNDEFINED**2,
        number**UNDEFINED,
        UNDEFINED // 2,
        2 % UNDEFINED,
    ):
        assert result is UNDEFINED
    assert repr(UNDEFINED) == str(UNDEFINED) == "UNDEFINED"
    assert copy.deepcopy(UNDEFINED) is pickle.loads(pickle.dumps(UNDEFINED)) is UNDEFINED


@pytest.mark.parametrize(
    ("expression", "problem", "position"),
    [
        ("", "unexpected end", 0),
        ("   ", "unexpected end", 3),
        ("1+", "unexpected end", 2),
        ("(1+2", "unexpected end", 4),
        ("1+2)", r"unexpected '\)'", 3),
        ("()", r"unexpected '\)'", 1),
        ("1 2", "unexpected '2'", 2),
        ("2(3)", r"unexpected '\('", 1),
        ("2**3", r"unexpected '\*'", 2),
        ("7//2", "unexpected '/'", 2),
        ("1.2.3", r"unexpected '\.'", 3),
        ("5.", r"unexpected '\.'", 1),
        ("1e5", "unexpected 'e'", 1),
        ("1_000", "unexpected '_'", 1),
        ("1,000", "unexpected ','", 1),
        ("0x10", "unexpected 'x'", 1),
        ("1\n+2", r"unexpected '\\n'", 1),
        ("1\u00a0+2", r"unexpected '\\xa0'", 1),
        ("3+²", "unexpected '²'", 2),
        ("٣+4", "unexpected '٣'", 0),
        ("3+４", "unexpected '４'", 2),
        ("3＋4", "unexpected '＋'", 1),
        ("3–4", "unexpected '–'", 1),
        ("1 × × 2", "unexpected '×'", 4),
        ("__import__('os')", "unexpected '_'", 0),
        ("1\x00", r"unexpected '\\x00'", 1),
        ("\ud800", r"unexpected '\\ud800'", 0),
    ],
)
def test_what_is_no_expression_is_refused_by_position(expression, problem, position):
    with pytest.raises(CalculatorError, match=f"^{problem} at position {position} of ") as caught:
        calculate(expression)
    assert str(caught.value).endswith(repr(expression))


def test_bounds_hold_exactly():
    assert calculate("1" + " " * (MAX_LENGTH - 1)) == 1
    with pytest.raises(CalculatorError, match=f"{MAX_LENGTH + 1} characters, at most {MAX_LENGTH}"):
        calculate("1" + " " * MAX_LENGTH)

    assert calculate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) == 1
    assert calculate("+".join(["(1)"] * (MAX_DEPTH + 1))) == MAX_DEPTH + 1
    with pytest.raises(CalculatorError, match=f"deeper than {MAX_DEPTH} at position {MAX_DEPTH}"):
        calculate("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1))

    nines = "9" * MAX_DIGITS
    assert calculate(nines) == 10**MAX_DIGITS - 1
    assert calculate(f"{nines[:-1]}.9") == Fraction(10**MAX_DIGITS - 1, 10)
    for too_long in (f"{nines}9", f"{nines}.9"):
        with pytest.raises(CalculatorError, match=f"{MAX_DIGITS + 1} digits .* at position 2"):
            calculate(f"1+{too_long}")


def test_errors_show_only_the_start_of_a_long_expression():
    with pytest.raises(CalculatorError) as caught:
        calculate("1+" * 99 + "x")
    assert "unexpected 'x' at position 198 of '1+1+" in str(caught.value)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("unit", ["(", ")", "-", "1", "1+", "1/9*", " ", "((1)", ".", "×"])
def test_hostile_lengths_take_no_time(unit):
    started = time.perf_counter()
    for length in (MAX_LENGTH, 10**6):
        text = (unit * length)[:length]
        try:
            value = calculate(text)
        except CalculatorError:
            value = None
        assert value is None or length == MAX_LENGTH
        assert same_value(text, text) == (value is not None)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("3+4", "4 + 3", True),
        ("0.5", "1/2", True),
        ("1/3", "0.333333333333333333333333333333", False),
        ("3-4", "4-3", False),
        ("1/0", "5/(2-2)", True),
        ("1/0", "0", False),
        ("0", "1/0", False),
        ("x", "x", False),
        ("1", "", False),
        ("1+", "1", False),
    ],
)
def test_same_value(a, b, same):
    assert same_value(a, b) is same


SPELLINGS = {
    "12*34": ["12 * 34", "12×34", "012*34.0", "(12*34)", "((12)*(34))", "+12*+34", "--12*34"],
    "1.5-2": ["1.50 - 2", "01.5−2", "+1.5-(2)"],
    ".5/4": ["0.5÷4", "00.50 / 4"],
    "1+2+3": ["(1+2)+3", "((1+2)+3)"],
    "1+2*3": ["1+(2*3)", "(1)+((2)*3)"],
    "-3*4": ["(-3)*4", "-+3*4", "---3*4"],
}


@pytest.mark.parametrize(("expression", "others"), SPELLINGS.items())
def test_spellings_of_one_expression_have_one_text(expression, others):
    assert {canonical(other) for other in others} == {canonical(expression)}


def test_expressions_of_one_value_are_not_one_expression():
    texts = ["12*34", "34*12", "408", "12*(30+4)", "1.5", "3/2", "1+2+3", "1+(2+3)", "-3*4", "3*-4"]
    assert len({canonical(text) for text in texts}) == len(texts)
    assert canonical("1/0") != canonical("2/0")


def test_canonical_text_is_an_expression_of_the_same_value():
    for expression in ("(3+4)*-0.5", "1/3-.25", "--7", "2*(3-(4/5))"):
        assert calculate(canonical(expression)) == calculate(expression)
    with pytest.raises(CalculatorError, match="unexpected ','"):
        canonical("1,000+2")
