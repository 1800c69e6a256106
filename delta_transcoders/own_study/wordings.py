"""Which examples are worded alike, and splits that share no wording."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import defaultdict
from collections.abc import Hashable
from typing import Literal

from delta_transcoders.foreign_text import letters
from delta_transcoders.tasks.task import Example, Splits, Task, subsets_of


def wording(example: Example) -> str:
    """
    >>> wording(Example("What is 12 * 3.5?", "42", "sums"))
    'Whatis#*#?'
    >>> wording(Example("What is 12 * 3.5?", "42", "sums", group="plain"))
    'group plain'
    """
    if example.group:
        return f"group {example.group}"
    return re.sub(r"\d+(?:[.,]\d+)*", "#", _prompt(example))


def _prompt(example: Example) -> str:
    if isinstance(example.prompt, str):
        return letters(example.prompt)
    return "\n".join(f"{m.role}:{letters(m.content)}" for m in example.prompt)


def identities(example: Example) -> tuple[Hashable, ...]:
    """What no two splits share."""
    return ("wording", wording(example)), ("prompt", _prompt(example))


def half_of(example: Example) -> Literal["A", "B"]:
    """The half that its wording is in: what is chosen on A is scored on B, in other words.

    >>> [half_of(Example(f"What is {a} * 2?", None, "sums")) for a in (1, 23)]
    ['B', 'B']
    """
    return "AB"[hashlib.sha256(wording(example).encode()).digest()[0] % 2]


def split_by_wording(task: Task, examples: list[Example], n_evaluation: int, seed: int) -> Splits:
    """Train, validation and evaluation; the last two have `task.held_out` of each subset's wordings.

    Args:
        n_evaluation: of each subset at most, as evenly over its wordings as they allow.

    Raises:
        ValueError: a split without any example; says how many wordings there are. A task whose own `split`
            cannot be told what no two splits share.
    """
    if "identities" not in inspect.signature(task.split).parameters:
        raise ValueError(
            f"{type(task).__name__}.split has no parameter `identities`, which keeps wordings apart: take it "
            "as Task.split does, or leave splitting to that"
        )
    if not any(map(task.is_trained, examples)):
        raise ValueError(
            "evaluation_only names every subset of the examples: leave out one, to be trained on"
        )
    splits = task.split(examples, task.held_out, len(examples), seed, identities)
    for name, rows in splits.items():
        if not rows:
            raise ValueError(
                f"none of the {len(examples)} examples is left for {name}: they have "
                f"{len(set(map(wording, examples)))} wordings (prompts with numbers masked), of which no two "
                "splits share one. Give more wordings, or a `group` to each example"
            )
    evaluation = splits["evaluation"]
    kept = [
        row
        for subset in subsets_of(evaluation)
        for row in _spread([e for e in evaluation if e.subset == subset], n_evaluation)
    ]
    return splits | {"evaluation": kept}


def _spread(rows: list[Example], n: int) -> list[Example]:
    """At most n of them, one wording after the other in turn."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for index, row in enumerate(rows):
        name = wording(row)
        turns.append((seen[name], index))
        seen[name] += 1
    return [rows[index] for _, index in sorted(turns)[:n]]
