"""Splits that share no wording."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Hashable

from delta_transcoders.tasks.task import Example, Splits, Task, subsets_of
from delta_transcoders.tasks.wordings import prompt_letters, wording


def identities(example: Example) -> tuple[Hashable, ...]:
    """What no two splits share."""
    return ("wording", wording(example)), ("prompt", prompt_letters(example))


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
