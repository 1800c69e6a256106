"""Which examples are worded alike: what no two splits share, and what intervals are over."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Literal

from delta_transcoders.foreign_text import letters

if TYPE_CHECKING:
    from delta_transcoders.tasks.task import Example


def wording(example: Example) -> str:
    """The example's group, or its prompt without its numbers.

    >>> from delta_transcoders.tasks.task import Example
    >>> wording(Example("What is 12 * 3.5?", "42", "sums"))
    'Whatis#*#?'
    >>> wording(Example("What is 12 * 3.5?", "42", "sums", group="plain"))
    'group plain'
    """
    return f"group {example.group}" if example.group else masked(prompt_letters(example))


def masked(text: str) -> str:
    """A text with `#` for each of its numbers."""
    return re.sub(r"\d+(?:[.,]\d+)*", "#", text)


def prompt_letters(example: Example) -> str:
    if isinstance(example.prompt, str):
        return letters(example.prompt)
    return "\n".join(f"{m.role}:{letters(m.content)}" for m in example.prompt)


def half_of(wording: str) -> Literal["A", "B"]:
    """Of all wordings (`Task.wording`), which half one is in: what is chosen on A is scored on B.

    >>> [half_of(f"Find #{i}.") for i in range(6)]
    ['B', 'B', 'B', 'B', 'A', 'B']
    """
    return "AB"[hashlib.sha256(wording.encode()).digest()[0] % 2]
