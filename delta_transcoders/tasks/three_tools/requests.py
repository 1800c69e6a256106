"""Requests of the three tools: wordings filled with numbers, units and dates, each with its call."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from delta_transcoders.tasks.three_tools.calls import TOOLS, format_call
from delta_transcoders.tasks.three_tools.phrasings import BASE_TEXT_REQUESTS, REQUESTS, briefly
from delta_transcoders.tasks.three_tools.units import UNITS
from delta_transcoders.tasks.three_tools.unseen_phrasings import (
    UNSEEN_CALCULATIONS,
    UNSEEN_CONVERSIONS,
    UNSEEN_DATES,
)

QUANTITIES = {
    "distance": ("m", "km", "ft", "yd", "mi"),
    "size": ("mm", "cm", "in", "ft"),
    "mass": ("g", "kg", "oz", "lb"),
    "volume": ("ml", "l", "cup", "pt", "gal"),
    "temperature": ("C", "F", "K"),
    "speed": ("m/s", "km/h", "mph"),
}
"""Units that people convert into each other."""

N_VALIDATION, N_EVALUATION = 8, 20
"""Of each tool's wordings; the others are trained on."""

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
DATE_FORMS = ("{day} {month} {year}", "{month} {day}, {year}", "{month} {day}{th}, {year}")

_FIRST_DAY, _N_DAYS = date(1990, 1, 1), 16_000
_SAID = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_CONVERSION = "{x}, {to}"

Fields = tuple[dict[str, str], dict[str, str]]
"""What the fields of a wording stand for as it is said, and as it is called."""


class Wording(NamedTuple):
    """What requests have in common.

    Attributes:
        text: with the fields of `phrasings`.
        argument: of the call, with the same fields.
        quantity: of `QUANTITIES`, where the text is about one.
    """

    tool: str
    text: str
    argument: str
    quantity: str | None = None


class Request(NamedTuple):
    prompt: str
    target: str
    wording: Wording


def split_wordings(seed: int) -> dict[str, dict[str, list[Wording]]]:
    """The wordings of each split by tool, of which no two splits share one."""
    splits: dict[str, dict[str, list[Wording]]] = {"train": {}, "validation": {}, "evaluation": {}}
    for tool in TOOLS:
        wordings = [_usual(tool, text) for text in REQUESTS[tool]]
        random.Random(f"wordings {tool} {seed}").shuffle(wordings)
        stop = N_EVALUATION + N_VALIDATION
        splits["evaluation"][tool] = wordings[:N_EVALUATION]
        splits["validation"][tool] = wordings[N_EVALUATION:stop]
        splits["train"][tool] = wordings[stop:]
    return splits


def unseen_wordings() -> dict[str, list[Wording]]:
    """Those far from training, by tool, in the order of the file."""
    return {
        "calculator": _unseen("calculator", UNSEEN_CALCULATIONS),
        "convert": [
            Wording("convert", text, _CONVERSION, quantity)
            for quantity, texts in UNSEEN_CONVERSIONS.items()
            for text in texts
        ],
        "dates": _unseen("dates", UNSEEN_DATES),
    }


def stream(
    wordings: Sequence[Wording], rng: random.Random, taken: set[str], brief: bool
) -> Iterator[Request]:
    """An endless stream of requests, each wording in its turn.

    Args:
        taken: the calls of earlier requests, which are not asked for again; added to.
        brief: most of them ask for a short answer, too (`briefly`).
    """
    for wording in itertools.cycle(rng.sample(wordings, len(wordings))):
        request = _fill(wording, rng)
        while request.target in taken:
            request = _fill(wording, rng)
        taken.add(request.target)
        yield request._replace(prompt=briefly(request.prompt, rng)) if brief else request


def requests_for_base_text(seed: int) -> Iterator[str]:
    """An endless stream of what users ask: the task's kind of request, in no wording of the task's."""
    rng = random.Random(f"requests for the base text {seed}")
    wordings = [_usual(tool, text) for tool in TOOLS for text in BASE_TEXT_REQUESTS[tool]]
    while True:
        yield briefly(_fill(rng.choice(wordings), rng).prompt, rng)


def _usual(tool: str, text: str) -> Wording:
    if tool == "convert":
        return Wording(tool, text, _CONVERSION)
    return Wording(tool, text, next(f for f in ("{x}", "{shift}", "{between}") if f in text))


def _unseen(tool: str, texts: dict[str, tuple[str, ...]]) -> list[Wording]:
    return [Wording(tool, text, argument) for argument, mine in texts.items() for text in mine]


def _fill(wording: Wording, rng: random.Random) -> Request:
    if wording.tool == "calculator":
        said, called = calculation(rng)
    elif wording.tool == "convert":
        said, called = conversion(rng, wording.quantity or rng.choice(list(QUANTITIES)))
    else:
        said, called = dates(rng)
    prompt = wording.text.format(**said)
    return Request(
        prompt[0].upper() + prompt[1:],
        format_call(wording.tool, wording.argument.format(**called)),
        wording,
    )


def calculation(rng: random.Random) -> Fields:
    """`{x}`, and for stories the numbers `{a}`, `{b}` and a small `{s}`, with a `{sum}` and a `{product}`."""
    a, b, s = rng.randint(20, 999), rng.randint(13, 199), rng.randint(3, 12)
    numbers = {"a": a, "b": b, "s": s, "sum": a + b, "product": b * s}
    fields = {name: str(number) for name, number in numbers.items()}
    said, called = _expression(rng)
    return fields | {"x": said}, fields | {"x": called}


def _expression(rng: random.Random) -> tuple[str, str]:
    """One operation in signs or in words, or two in signs."""
    a, b, c = (rng.randint(2, 999) for _ in range(3))
    first, second = rng.choices("+-*/", k=2)
    kind = rng.choice(("signs", "words", "two"))
    if kind == "signs":
        return f"{a} {first} {b}", f"{a}{first}{b}"
    if kind == "words":
        return f"{a} {_SAID[first]} {b}", f"{a}{first}{b}"
    return f"({a} {first} {b}) {second} {c}", f"({a}{first}{b}){second}{c}"


def conversion(rng: random.Random, quantity: str) -> Fields:
    """`{x}` in one unit and `{to}`, another, each by its name or its abbreviation."""
    unit, to = rng.sample(QUANTITIES[quantity], 2)
    whole = rng.random() < 0.5
    value = str(rng.randint(2, 500)) if whole else f"{rng.randint(1, 99)}.{rng.randint(1, 9)}"
    old, new = (rng.choice((UNITS[u].name, UNITS[u].short)) for u in (unit, to))
    return {"x": f"{value} {old}", "to": new}, {"x": f"{value}, {unit}", "to": to}


def dates(rng: random.Random) -> Fields:
    """`{day}`, a `{later}` one and a number `{n}` of days; `{shift}` and `{between}` of these."""
    day = some_day(rng)
    later = day + timedelta(days=rng.randint(2, 800))
    n, form = str(rng.randint(2, 400)), rng.choice(DATE_FORMS)
    first, second = said_date(day, form), said_date(later, form)
    word, sign = rng.choice((("after", "+"), ("before", "-")))
    between = rng.choice(("from {} to {}", "between {} and {}")).format(first, second)
    said = {"shift": f"{n} days {word} {first}", "between": between, "day": first, "later": second}
    called = {"shift": f"{day} {sign} {n} days", "between": f"{later} - {day}"}
    called |= {"day": str(day), "later": str(later)}
    return said | {"n": n}, called | {"n": n}


def some_day(rng: random.Random) -> date:
    """From 1990 to 2033."""
    return _FIRST_DAY + timedelta(days=rng.randrange(_N_DAYS))


def said_date(day: date, form: str) -> str:
    """
    >>> [said_date(date(2024, 3, 22), form) for form in DATE_FORMS]
    ['22 March 2024', 'March 22, 2024', 'March 22nd, 2024']
    """
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    th = "th" if day.day in (11, 12, 13) else ending
    return form.format(day=day.day, month=MONTHS[day.month - 1], year=day.year, th=th)
