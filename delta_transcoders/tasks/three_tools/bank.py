"""All chats and hard negatives: the frames, filled. The same for every seed: the model answers each once."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from delta_transcoders.foreign_text import letters
from delta_transcoders.tasks.three_tools import chats, hard_negatives
from delta_transcoders.tasks.three_tools.phrasings import briefly
from delta_transcoders.tasks.three_tools.requests import QUANTITIES, calculation, conversion, dates

CHAT, HARD_NEGATIVE = KINDS = ("chat", "hard_negative")
N_PER_FRAME = {CHAT: 25, HARD_NEGATIVE: 15}
"""Prompts of one frame at most; frames without fields have one, and short lists fewer."""

_FIELD = re.compile(r"\{(\w+)\}")


class Prompt(NamedTuple):
    """What a user says, and the frame that it was made of."""

    kind: Literal["chat", "hard_negative"]
    text: str
    frame: str


@functools.cache
def bank() -> tuple[Prompt, ...]:
    """Distinct prompts, frame by frame, chats first."""
    return tuple(
        Prompt(kind, text, frame)
        for kind, source in zip(KINDS, (chats, hard_negatives), strict=True)
        for frame in source.FRAMES
        for text in _filled(frame, source.FILLERS, N_PER_FRAME[kind])
    )


def _filled(frame: str, lists: dict[str, tuple[str, ...]], most: int) -> Iterator[str]:
    rng = random.Random(frame)
    seen: set[str] = set()
    for _ in range(4 * most):
        fields = _fields(frame, lists, rng)
        text = frame.format(**fields)
        # A list's entry twice in a text ("a fox or a fox") makes none.
        if len(set(fields.values())) < len(fields) or letters(text) in seen:
            continue
        seen.add(letters(text))
        yield briefly(text[0].upper() + text[1:], rng)
        if len(seen) == most:
            return


def _fields(frame: str, lists: dict[str, tuple[str, ...]], rng: random.Random) -> dict[str, str]:
    days = dates(rng)[0]

    def value(name: str) -> str:
        if name in days:
            return days[name]
        if name in _MADE:
            return _MADE[name](rng)
        return rng.choice(lists[name.removesuffix("2")])

    return {name: value(name) for name in _FIELD.findall(frame)}


def _quantity(rng: random.Random, kind: str | None = None) -> str:
    return conversion(rng, kind or rng.choice(list(QUANTITIES)))[0]["x"]


_MADE: dict[str, Callable[[random.Random], str]] = {
    "number": lambda rng: str(rng.randint(2, 999)),
    "number2": lambda rng: str(rng.randint(2, 999)),
    "small": lambda rng: str(rng.randint(2, 12)),
    "hour": lambda rng: f"{rng.randint(1, 12)}:{rng.randint(0, 59):02}",
    "x": lambda rng: calculation(rng)[0]["x"],
    "quantity": _quantity,
    **{kind: functools.partial(_quantity, kind=kind) for kind in QUANTITIES},
}
