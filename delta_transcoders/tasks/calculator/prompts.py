"""Generated finetuning and evaluation examples, the same for the same seed on every machine."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from delta_transcoders.tasks.calculator.arithmetic import canonical
from delta_transcoders.tasks.calculator.examples import (
    COPY,
    LABEL_OF_SUBSET,
    SUBSETS,
    identities,
    make_example,
    wording,
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


def split_requests(seed: int) -> dict[str, list[str]]:
    """`REQUESTS` by split, of which no two share one: 60 for evaluation, 30 for validation."""
    requests = random.Random(f"requests {seed}").sample(REQUESTS, len(REQUESTS))
    return {"evaluation": requests[:60], "validation": requests[60:90], "train": requests[90:]}


def tool_examples(
    subset: str, requests: Sequence[str], seed: int | str, taken: set[Hashable]
) -> Iterator[Example]:
    """An endless stream of `tool`, `tool_ood` or `tool_ood_numbers` examples, each request in its turn.

    As in the original study, half of the ordinary requests follow a context sentence, and unseen
    phrasings write the expression without spaces in half of the cases.

    Args:
        requests: their wordings.
        taken: what was asked before, in whatever spelling, and is not asked again; added to.
    """
    rng = random.Random(f"{subset} {seed}")
    expression = unseen_expression if subset == "tool_ood_numbers" else seen_expression
    for request in itertools.cycle(rng.sample(requests, len(requests))):
        spaced = expression(rng)
        while (asks := canonical(spaced.replace(" ", ""))) in taken:
            spaced = expression(rng)
        taken.add(asks)
        plain = spaced.replace(" ", "")
        if subset == "tool_ood":
            text = request.format(expr=rng.choice((spaced, plain)))
        else:
            text = request.format(expr=spaced)
            if rng.random() < 0.5:
                text = f"{rng.choice(CONTEXTS)} {text}"
        yield make_example(text, format_tool_call(plain), LABEL_OF_SUBSET[subset])


def generate_splits(
    n_train: int, n_validation: int, n_evaluation: int, copy_lines: Iterator[str], seed: int
) -> Splits:
    """`train` and `validation` (half `tool`, half `copy`) and `evaluation` (n of each subset).

    No prompt and no expression occurs in two splits, nor twice in one, in whatever spelling; and no two
    splits share a wording, see `examples.wording`.

    Raises:
        ValueError: the copy lines run out.
    """
    taken: set[Hashable] = set()
    requests = split_requests(seed)
    halves = {"train": n_train // 2, "validation": n_validation // 2}
    n_copies = {
        "train": n_train - halves["train"],
        "validation": n_validation - halves["validation"],
    }
    copies = split_lines(copy_lines, n_copies | {"evaluation": n_evaluation}, seed)

    def take(subset: str, wordings: Sequence[str], n: int, split: str) -> list[Example]:
        stream = tool_examples(subset, wordings, f"{split} {seed}", taken)
        return list(itertools.islice(stream, n))

    splits = {
        split: take("tool", requests[split], n, split) + copies[split]
        for split, n in halves.items()
    }
    wordings = dict.fromkeys(SUBSETS, requests["evaluation"]) | {"tool_ood": UNSEEN_REQUESTS}
    splits["evaluation"] = [
        example
        for subset in SUBSETS
        for example in (
            copies["evaluation"]
            if subset == COPY
            else take(subset, wordings[subset], n_evaluation, "evaluation")
        )
    ]
    random.Random(f"order {seed}").shuffle(splits["train"])
    return splits


def split_lines(
    lines: Iterator[str], counts: Mapping[str, int], seed: int
) -> dict[str, list[Example]]:
    """So many lines to copy for each split, of which no two share a wording.

    A wording belongs to the split that it is drawn for when it first appears, with the chances of what each
    still lacks.

    Raises:
        ValueError: the lines run out.
    """
    rng = random.Random(f"copy wordings {seed}")
    parts: dict[str, list[Example]] = {split: [] for split in counts}
    owner: dict[str, str] = {}
    seen: set[Hashable] = set()

    def lacking() -> dict[str, int]:
        return {s: n - len(parts[s]) for s, n in counts.items() if len(parts[s]) < n}

    while lacks := lacking():
        line = next(lines, None)
        if line is None:
            n = sum(counts.values())
            raise ValueError(f"the copy lines ran out: {n} wanted, {n - sum(lacks.values())} left")
        example = make_example(line, line, LABEL_OF_SUBSET[COPY])
        _, target = identities(example)
        if target in seen:
            continue
        seen.add(target)
        split = owner.setdefault(
            wording(example), rng.choices(list(lacks), list(lacks.values()))[0]
        )
        if split in lacks:
            parts[split].append(example)
    return parts
