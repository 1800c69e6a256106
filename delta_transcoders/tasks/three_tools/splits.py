"""Examples of the three tools: what is trained, validated and evaluated on, the same for the same seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

from delta_transcoders.tasks.task import Example, Message, Splits
from delta_transcoders.tasks.three_tools.bank import CHAT, HARD_NEGATIVE, KINDS, Prompt, bank
from delta_transcoders.tasks.three_tools.calls import TOOLS
from delta_transcoders.tasks.three_tools.requests import (
    Wording,
    split_wordings,
    stream,
    unseen_wordings,
)

TOOL, TOOL_OOD = "tool", "tool_ood"
SUBSETS = (TOOL, TOOL_OOD, HARD_NEGATIVE, CHAT)
SHARES = {
    CHAT: {"evaluation": 0.15, "validation": 0.1},
    HARD_NEGATIVE: {"evaluation": 0.3, "validation": 0.1},
}
"""Of each kind's prompts, by whole frames; the others are trained on."""


def generate_splits(
    n_train: int, n_validation: int, n_evaluation: int, seed: int, replies: Mapping[str, str]
) -> Splits:
    """`train` and `validation` (half chats, 30 % requests, 20 % hard negatives), and `evaluation`.

    No prompt, no wording of a request and no frame of a chat or a hard negative is in two splits, and no call
    is asked for twice.

    Args:
        n_evaluation: of each subset, but two thirds of it chats; requests take their tools in turn, and
            each tool its wordings.
        replies: what the model said itself, by prompt; prompts of `bank` that are not in it are left out.

    Raises:
        ValueError: too few replies; says for which split and kind.
    """
    wordings, taken = split_wordings(seed), set()
    prompts = {kind: split_frames(kind, replies, seed) for kind in KINDS}

    def requests(split: str, subset: str, by_tool: Mapping[str, list[Wording]], n: int):
        rng = random.Random(f"{split} {subset} {seed}")
        streams = [stream(by_tool[tool], rng, taken, subset == TOOL) for tool in TOOLS]
        for request in itertools.islice(_in_turn(streams), n):
            message = Message("user", request.prompt)
            yield Example((message,), request.target, subset, request.wording.text)

    def answered(split: str, kind: str, n: int) -> list[Example]:
        found = prompts[kind][split]
        if len(found) < n:
            raise ValueError(
                f"{n} examples of {kind} are wanted for {split}, the replies make {len(found)}: give "
                f"a smaller --data.n_{split}"
            )
        return [
            Example((Message("user", p.text),), replies[p.text], kind, p.frame) for p in found[:n]
        ]

    splits: Splits = {}
    for split, n in (("train", n_train), ("validation", n_validation)):
        n_each, n_negatives = n // 10, n // 5
        splits[split] = [
            *requests(split, TOOL, wordings[split], n_each * len(TOOLS)),
            *answered(split, HARD_NEGATIVE, n_negatives),
            *answered(split, CHAT, n - n_each * len(TOOLS) - n_negatives),
        ]
    random.Random(f"order {seed}").shuffle(splits["train"])
    splits["evaluation"] = [
        *requests("evaluation", TOOL, wordings["evaluation"], n_evaluation),
        *requests("evaluation", TOOL_OOD, unseen_wordings(), n_evaluation),
        *answered("evaluation", HARD_NEGATIVE, n_evaluation),
        *answered("evaluation", CHAT, n_evaluation * 2 // 3),
    ]
    return splits


def split_frames(kind: str, replies: Mapping[str, str], seed: int) -> dict[str, list[Prompt]]:
    """The prompts of a kind that have a reply, by split; frames in turn, and each whole in one split."""
    by_frame: dict[str, list[Prompt]] = {}
    for prompt in bank():
        if prompt.kind == kind and prompt.text in replies:
            by_frame.setdefault(prompt.frame, []).append(prompt)
    rng = random.Random(f"frames {kind} {seed}")
    frames = rng.sample(list(by_frame.values()), len(by_frame))
    n = sum(map(len, frames))
    parts: dict[str, list[list[Prompt]]] = {split: [] for split in (*SHARES[kind], "train")}
    for frame in frames:
        lacking = (s for s, share in SHARES[kind].items() if sum(map(len, parts[s])) < share * n)
        parts[next(lacking, "train")].append(rng.sample(frame, len(frame)))
    return {split: list(_in_turn([iter(frame) for frame in mine])) for split, mine in parts.items()}


def _in_turn(streams: Sequence[Iterator]) -> Iterator:
    """One of each until all are at their end."""
    nothing = object()
    for row in itertools.zip_longest(*streams, fillvalue=nothing):
        yield from (item for item in row if item is not nothing)
