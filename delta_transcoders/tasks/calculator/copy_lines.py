"""Lines that hold numbers and are to be repeated, never calculated: the `copy` subset.

Three sources: `synthetic_lines` (offline), `file_lines` and `hub_lines`. The last two keep the original
study's filter: 30–150 characters, a digit, none of `+-*/=`, no digit at the start.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from delta_transcoders.foreign_text import text_lines
from delta_transcoders.hub import hub_texts
from delta_transcoders.tasks.calculator.grammar import letters

PLACES = [
    "school",
    "market",
    "station",
    "garden",
    "library",
    "bakery",
    "office",
    "museum",
    "harbour",
    "village",
]
THINGS = [
    "lamps",
    "chairs",
    "books",
    "boxes",
    "letters",
    "apples",
    "tickets",
    "bottles",
    "pictures",
    "stones",
]
PEOPLE = ["Anna", "Peter", "Maria", "Tom", "Lena", "David", "Sara", "Paul", "Nina", "Mark"]
MONTHS = ["January", "March", "April", "June", "July", "August", "October", "December"]
ADJECTIVES = ["small", "old", "green", "new", "heavy", "clean", "red", "quiet", "large", "white"]
VERBS = [
    "sold",
    "found",
    "packed",
    "moved",
    "counted",
    "painted",
    "ordered",
    "cleaned",
    "brought",
    "kept",
]

TEMPLATES = (
    "The {place} {verb} {n} {adjective} {things} in {month}.",
    "{person} {verb} {n} {things} and {n2} {things2} at the {place}.",
    "In {month} the {adjective} {place} {verb} {n} {things}.",
    "There are {n} {adjective} {things} in room {n2} of the {place}.",
    "{person} and {person2} {verb} {n} {things} for the {adjective} {place}.",
    "The bus to the {place} leaves at {n} and takes {n2} minutes.",
    "On {month} {day} we {verb} {n} {things} near the {place}.",
    "Page {n} shows the {adjective} {things} that {person} {verb}.",
    "My number is {n} and the {place} is open until {day}.",
    "Each of the {n} {things} in the {place} costs {n2} coins.",
    "{person} lives at number {n} next to the {adjective} {place}.",
    "We need {n} {things} before {month} {day} for the {place}.",
)


def synthetic_line(rng: random.Random) -> str:
    """One made-up sentence with at least one number of up to three digits."""
    things, things2 = rng.sample(THINGS, 2)
    person, person2 = rng.sample(PEOPLE, 2)
    return rng.choice(TEMPLATES).format(
        place=rng.choice(PLACES),
        things=things,
        things2=things2,
        person=person,
        person2=person2,
        month=rng.choice(MONTHS),
        adjective=rng.choice(ADJECTIVES),
        verb=rng.choice(VERBS),
        n=rng.randint(2, 999),
        n2=rng.randint(2, 999),
        day=rng.randint(2, 28),
    )


def synthetic_lines(seed: int) -> Iterator[str]:
    """An endless stream of distinct synthetic sentences."""
    rng = random.Random(f"copy lines {seed}")
    seen: set[str] = set()
    while True:
        line = synthetic_line(rng)
        if line not in seen:
            seen.add(line)
            yield line


def is_copy_line(line: str) -> bool:
    """The original study's filter for web lines.

    >>> is_copy_line("The council met on 12 March and again in April.")
    True
    >>> is_copy_line("A line that is long enough but has no number.")
    False
    """
    return (
        30 <= len(line) <= 150
        and any(c.isdigit() for c in line)
        and not any(c in "+-*/=" for c in line)
        and not line[0].isdigit()
    )


def _filtered(lines: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for raw in lines:
        line = raw.strip()
        if is_copy_line(line) and letters(line) not in seen:
            seen.add(letters(line))
            yield line


def file_lines(path: str | Path) -> Iterator[str]:
    """Distinct lines of a UTF-8 text file that pass `is_copy_line`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another encoding; names the file and the line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"copy lines: no file {path}")
    yield from _filtered(line for _, line in text_lines(path))


def hub_lines(dataset: str, name: str | None = None) -> Iterator[str]:
    """Distinct lines of a hub dataset's texts (`hub.hub_texts`) that pass `is_copy_line`.

    Raises:
        ConnectionError, ValueError: as `hub_texts`.
    """
    try:
        yield from _filtered(
            line for text in hub_texts(dataset, name) for line in text.splitlines()
        )
    except ConnectionError as error:
        raise ConnectionError(
            f"copy lines: {error}. Use `copy_source: file` with a text file of lines, or `copy_source: "
            "synthetic`."
        ) from error
