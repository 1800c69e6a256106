"""An exact calculator for short arithmetic that a language model wrote.

The text is not trusted: it is parsed by hand (never evaluated), and its length, nesting and number
size are bounded, so that no string takes noticeable time or memory.
"""

import re
from enum import Enum
from fractions import Fraction
from typing import NamedTuple

MAX_LENGTH = 200  # characters in an expression, spaces included
MAX_DEPTH = 32  # parentheses inside one another
MAX_DIGITS = 30  # digits in one number, both sides of the point

_TYPESET = str.maketrans("×÷−", "*/-")  # one character for one: positions stay those of the input
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")  # [0-9]: \d would take every script's digits
_SHOWN = 40  # characters of the expression in an error message


class CalculatorError(ValueError):
    """The text is not an expression, or is one beyond the bounds of this module."""


class Undefined(Enum):
    """The value of a division by zero: one member, `UNDEFINED`, which absorbs every operation.

    >>> 1 + UNDEFINED * 0
    UNDEFINED
    >>> UNDEFINED == UNDEFINED, UNDEFINED == 0
    (True, False)
    """

    UNDEFINED = "division by zero"

    def _absorb(self, *_: object) -> "Undefined":
        return self

    __pos__ = __neg__ = __abs__ = _absorb
    __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = _absorb
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = _absorb

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__


UNDEFINED = Undefined.UNDEFINED

Value = Fraction | Undefined


def calculate(expression: str) -> Value:
    """The exact value of `expression`, or `UNDEFINED` where it divides by zero.

    Understood are + - * / (also typeset as × ÷ −) with the usual precedence, signs, decimals
    (`1.5`, `.5`), parentheses and spaces. No powers, exponents, thousands separators or names.

    Raises:
        CalculatorError: not an expression, longer than `MAX_LENGTH` characters, nested deeper than
            `MAX_DEPTH`, or with a number of more than `MAX_DIGITS` digits. The message names the
            problem, the position (from 0) and the expression.

    >>> calculate("(3 + 4) * -0.5")
    Fraction(-7, 2)
    >>> calculate("1 / (2 - 2) + 5")
    UNDEFINED
    >>> calculate("2 + x")
    Traceback (most recent call last):
    delta_transcoders.tasks.calculator.arithmetic.CalculatorError: unexpected 'x' at position 4 of '2 + x'
    """
    return _parse(expression).value


def canonical(expression: str) -> str:
    """One text for every spelling of an expression; 12*34 and 34*12 are two expressions.

    Spelling is what the value cannot depend on: spaces, typeset signs, zeros around a number,
    parentheses that change nothing, plus signs before a number and two minus signs in a row.

    Raises:
        CalculatorError: as `calculate`.

    >>> canonical("12*34") == canonical(" (012 × +34.0) ")
    True
    >>> canonical("12*34") == canonical("34*12")
    False
    """
    return _parse(expression).text


def same_value(a: str, b: str) -> bool:
    """Whether both texts are expressions with the same value.

    Two divisions by zero are the same; a text that `calculate` refuses is the same as nothing.

    >>> same_value("3+4", "14 / 2"), same_value("1/0", "2/0"), same_value("x", "x")
    (True, True, False)
    """
    try:
        return calculate(a) == calculate(b)
    except CalculatorError:
        return False


class _Expression(NamedTuple):
    value: Value
    text: str
    """As `canonical` has it: every operation in parentheses."""


def _parse(expression: str) -> _Expression:
    if len(expression) > MAX_LENGTH:
        raise CalculatorError(
            f"{len(expression)} characters, at most {MAX_LENGTH} allowed: {_shorten(expression)}"
        )
    return _Parser(expression).parse()


class _Parser:
    """Recursive descent, one method per level of precedence, one pass over the text."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.text = expression.translate(_TYPESET)
        self.position = 0
        self.depth = 0

    def parse(self) -> _Expression:
        parsed = self.sum()
        if self.peek():
            raise self.unexpected()
        return parsed

    def sum(self) -> _Expression:
        value, text = self.product()
        while sign := self.take("+-"):
            term = self.product()
            value = value + term.value if sign == "+" else value - term.value
            text = f"({text}{sign}{term.text})"
        return _Expression(value, text)

    def product(self) -> _Expression:
        value, text = self.signed()
        while sign := self.take("*/"):
            factor = self.signed()
            value = value * factor.value if sign == "*" else _divide(value, factor.value)
            text = f"({text}{sign}{factor.text})"
        return _Expression(value, text)

    def signed(self) -> _Expression:
        negative = False
        while sign := self.take("+-"):  # a loop: a long run of signs must not recurse
            negative ^= sign == "-"
        value, text = self.atom()
        return _Expression(-value, f"(-{text})") if negative else _Expression(value, text)

    def atom(self) -> _Expression:
        if not self.take("("):
            return self.number()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"parentheses nested deeper than {MAX_DEPTH}", self.position - 1)
        inner = self.sum()
        if not self.take(")"):
            raise self.unexpected()
        self.depth -= 1
        return inner

    def number(self) -> _Expression:
        match = _NUMBER.match(self.text, self.position)
        if match is None:
            raise self.unexpected()
        digits = len(match.group().replace(".", ""))
        if digits > MAX_DIGITS:
            raise self.error(f"number of {digits} digits (at most {MAX_DIGITS})", self.position)
        self.position = match.end()
        value = Fraction(match.group())
        return _Expression(value, str(value))

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while self.text.startswith(" ", self.position):
            self.position += 1
        return self.text[self.position : self.position + 1]

    def take(self, wanted: str) -> str:
        """The next character if it is one of `wanted`, and step over it; else empty."""
        character = self.peek()
        if character and character in wanted:
            self.position += 1
            return character
        return ""

    def unexpected(self) -> CalculatorError:
        found = self.expression[self.position] if self.peek() else None
        return self.error("unexpected end" if found is None else f"unexpected {found!r}")

    def error(self, problem: str, position: int | None = None) -> CalculatorError:
        position = self.position if position is None else position
        return CalculatorError(f"{problem} at position {position} of {_shorten(self.expression)}")


def _divide(dividend: Value, divisor: Value) -> Value:
    return UNDEFINED if divisor == 0 else dividend / divisor


def _shorten(expression: str) -> str:
    shown = repr(expression[:_SHOWN])
    return shown if len(expression) <= _SHOWN else f"{shown}…"
