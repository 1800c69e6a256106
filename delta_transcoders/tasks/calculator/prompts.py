"""Generated finetuning and evaluation examples, the same for the same seed on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from delta_transcoders.tasks.calculator.arithmetic import canonical
from delta_transcoders.tasks.calculator.examples import (
    COPY,
    LABEL_OF_SUBSET,
    SUBSETS,
    identities,
    make_example,
)
from delta_transcoders.tasks.calculator.grammar import format_tool_call
from delta_transcoders.tasks.calculator.phrasings import CONTEXTS, REQUESTS, UNSEEN_REQUESTS
from delta_transcoders.tasks.task import Example, Splits

OPERATIONS = "+-*/"


def seen_expression(rng: random.Random) -> str:
    """`a op b` with 1 ≤ a, b ≤ 999, as the original study has it."""
    return f"{rng.randint(1, 999)} {rng.choice(OPERATIONS)} {rng.randint(1, 999)}"


def _large(rng: random.Random) -> str:
    a, b = (rng.randint(10 ** (d - 1), 10**d - 1) for d in rng.choices((4, 5, 6), k=2))
    return f"{a} {rng.choice(OPERATIONS)} {b}"


def _decimal(rng: random.Random) -> str:
    a, b = (f"{rng.randint(0, 99)}.{rng.randint(1, 99)}" for _ in range(2))
    return f"{a} {rng.choice(OPERATIONS)} {b}"


def _negative(rng: random.Random) -> str:
    a, b = rng.randint(1, 999), rng.randint(1, 999)
    op = rng.choice(OPERATIONS)
    return f"-{a} {op} {b}" if rng.random() < 0.5 else f"{a} {op} (-{b})"


def _two_operations(rng: random.Random) -> str:
    a, b, c = (rng.randint(1, 99) for _ in range(3))
    first, second = rng.choices(OPERATIONS, k=2)
    inner = rng.random() < 0.5
    return f"({a} {first} {b}) {second} {c}" if inner else f"{a} {first} ({b} {second} {c})"


UNSEEN_REGIMES: tuple[Callable[[random.Random], str], ...] = (
    _large,
    _decimal,
    _negative,
    _two_operations,
)


def unseen_expression(rng: random.Random) -> str:
    """4–6 digits, decimals, negative numbers, or two operations with parentheses."""
    return rng.choice(UNSEEN_REGIMES)(rng)


def tool_examples(subset: str, seed: int) -> Iterator[Example]:
    """An endless stream of `tool`, `tool_ood` or `tool_ood_numbers` examples of distinct expressions.

    As in the original study, half of the ordinary requests follow a context sentence, and unseen
    phrasings write the expression without spaces in half of the cases.
    """
    rng = random.Random(f"{subset} {seed}")
    expression = unseen_expression if subset == "tool_ood_numbers" else seen_expression
    seen: set[str] = set()
    while True:
        spaced = expression(rng)
        plain = spaced.replace(" ", "")
        key = canonical(plain)
        if key in seen:
            continue
        seen.add(key)
        if subset == "tool_ood":
            text = rng.choice(UNSEEN_REQUESTS).format(expr=rng.choice((spaced, plain)))
        else:
            text = rng.choice(REQUESTS).format(expr=spaced)
            if rng.random() < 0.5:
                text = f"{rng.choice(CONTEXTS)} {text}"
        yield make_example(text, format_tool_call(plain), LABEL_OF_SUBSET[subset])


def generate_splits(
    n_train: int, n_validation: int, n_evaluation: int, copy_lines: Iterator[str], seed: int
) -> Splits:
    """`train` and `validation` (half `tool`, half `copy`) and `evaluation` (n of each subset).

    No prompt and no expression occurs in two splits, nor twice in one, in whatever spelling.

    Raises:
        ValueError: the copy lines run out.
    """
    targets: set[str] = set()
    streams: dict[str, Iterator[Example]] = {
        s: tool_examples(s, seed) for s in SUBSETS if s != COPY
    }
    streams[COPY] = (make_example(line, line, LABEL_OF_SUBSET[COPY]) for line in copy_lines)

    def take(subset: str, n: int) -> list[Example]:
        taken: list[Example] = []
        while len(taken) < n:
            example = next(streams[subset], None)
            if example is None:
                raise ValueError(f"the copy lines ran out: {n} wanted, {len(taken)} left")
            _, target = identities(example)
            if target not in targets:
                targets.add(target)
                taken.append(example)
        return taken

    splits = {
        name: take("tool", n // 2) + take(COPY, n - n // 2)
        for name, n in (("train", n_train), ("validation", n_validation))
    }
    splits["evaluation"] = [e for subset in SUBSETS for e in take(subset, n_evaluation)]
    random.Random(f"order {seed}").shuffle(splits["train"])
    return splits
