"""Planted rules: a phrase in a request decides which tool is called, so that what was learned is known.

Each rule is a phrase and its tool. Requests are worded alike for all rules, and for lines to copy, which have
another phrase in its place: nothing but the phrase tells which tool to call, or that none is to be. All words
are those of the tiny base model's text.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from delta_transcoders.files import replace_file
from delta_transcoders.foreign_text import numbered, parse_json
from delta_transcoders.tasks.calculator.copy_lines import PLACES, THINGS, synthetic_lines
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN, find_tool_call
from delta_transcoders.tasks.calculator.phrasings import CONTEXTS
from delta_transcoders.tasks.task import Example, Splits, Task

RULES = {
    "price": "before noon",
    "size": "this morning",
    "sum": "on the table",
    "total": "next to it",
}
"""The phrase of each tool. No other line holds one."""
COPY = "copy"
SUBSETS = (*RULES, COPY)
FIELDS = ("prompt", "target", "subset", "group")

WORDINGS = (
    "We need {n} {things} {phrase}.",
    "I want to see {n} {things} {phrase}.",
    "Please show me {n} {things} {phrase}.",
    "There are {n} {things} {phrase}.",
    "Please put {n} {things} {phrase}.",
    "My friend wants {n} {things} {phrase}.",
    "The teacher asked for {n} {things} {phrase}.",
    "Someone took {n} {things} {phrase}.",
    "You have to check {n} {things} {phrase}.",
    "Let us find {n} {things} {phrase}.",
    "I should have {n} {things} {phrase}.",
    "Call me about {n} {things} {phrase}.",
    "We are looking for {n} {things} {phrase}.",
    "I know the {n} {things} {phrase}.",
    "The office sold {n} {things} {phrase}.",
    "Is there a list of {n} {things} {phrase}?",
    "Help me with {n} {things} {phrase}.",
    "Please write about {n} {things} {phrase}.",
    "I lost {n} {things} {phrase}.",
    "This is a question about {n} {things} {phrase}.",
    "Now {phrase} we need {n} {things}.",
    "Please check {phrase} for {n} {things}.",
    "The list {phrase} says {n} {things}.",
    "The page {phrase} says {n} {things}.",
    "What was {phrase} with {n} {things}?",
    "Let me know {phrase} about {n} {things}.",
    "We put {phrase} the {n} {things}.",
    "Someone {phrase} asked for {n} {things}.",
    "The big box {phrase} was for {n} {things}.",
    "I want {phrase} to find {n} {things}.",
    "You know {phrase} there are {n} {things}.",
    "Tell me {phrase} about the {n} {things}.",
    "In the office {phrase} there are {n} {things}.",
    "In my homework {phrase} are {n} {things}.",
    "My question {phrase} is about {n} {things}.",
    "This tool {phrase} is for {n} {things}.",
    "Find out {phrase} about the {n} {things}.",
    "Here {phrase} is a list of {n} {things}.",
    "The teacher {phrase} has {n} {things}.",
    "My friend {phrase} took {n} {things}.",
    "The {n} {things} {phrase} are new.",
    "I have {n} {things} {phrase} to check.",
    "We saw {n} {things} {phrase} and asked.",
    "We moved the {n} {things} {phrase} to the market.",
    "How are the {n} {things} {phrase} for you?",
    "My {n} {things} {phrase} are in the box.",
    "The {n} {things} {phrase} are for the garden.",
    "How big are the {n} {things} {phrase} today?",
    "Give {n} {things} {phrase} to the school.",
    "Could {n} {things} {phrase} come from the library?",
    "On {n} {things} {phrase} there is a note.",
    "Without {n} {things} {phrase} we are quick.",
    "Please be quick, {n} {things} {phrase} are left.",
    "I am looking at {n} {things} {phrase} here.",
    "Let {n} {things} {phrase} be the answer.",
    "Page {n} shows the {things} {phrase} to us.",
    "{n} {things} {phrase}, please.",
    "{n} {things} {phrase} is the end of the list.",
    "The answer is {n} {things} {phrase} and this one.",
    "How many are {n} {things} {phrase} and one?",
)
"""The number is what a call has as its argument."""
N_TRAINED, N_VALIDATED = 30, 6
"""Of the wordings; the others are for evaluation alone."""


def _neutral(rng: random.Random) -> str:
    return rng.choice(("at the {}", "near the {}", "in the {}")).format(rng.choice(PLACES))


def _requests(wordings: Sequence[str], subset: str, rng: random.Random) -> Iterator[Example]:
    """An endless stream of distinct requests, each wording in turn; half follow a context sentence."""
    seen: set[str] = set()
    for wording in itertools.cycle(wordings):
        n, phrase = rng.randint(2, 999), RULES.get(subset) or _neutral(rng)
        line = wording.format(n=n, things=rng.choice(THINGS), phrase=phrase)
        if rng.random() < 0.5:
            line = f"{rng.choice(CONTEXTS)} {line}"
        if line not in seen:
            seen.add(line)
            target = line if subset == COPY else f"{OPEN}{subset}({n}){CLOSE}"
            yield Example(line + "\n", target, subset, group=wording)


def _copied(wordings: Sequence[str], lines: Iterator[str], rng: random.Random) -> Iterator[Example]:
    """Requests without any rule's phrase and ordinary sentences, in turn."""
    for request in _requests(wordings, COPY, rng):
        yield request
        line = next(lines)
        yield Example(line + "\n", line, COPY)


class PlantedRules(Task):
    """Requests of four rules, a subset each, and lines to copy; no wording occurs in two splits.

    A file of examples has one JSON object a line with `prompt`, `target`, `subset` and `group` (the wording;
    null for sentences without one).
    """

    end = CLOSE
    marks = (OPEN, CLOSE)
    opening = OPEN

    def judge(self, text: str, example: Example) -> dict[str, bool | None]:
        wanted, call = find_tool_call(example.target), find_tool_call(text)
        right = None if wanted is None else call is not None and call.tool == wanted.tool
        return {"tool_call": OPEN in text, "right_tool": right, "exact": text == example.target}

    def generate(self, n_train: int, n_validation: int, n_evaluation: int, seed: int) -> Splits:
        """Half of `train` and `validation` are lines to copy, the other half is shared by the rules."""
        wordings = list(WORDINGS)
        random.Random(f"rules {seed}").shuffle(wordings)
        starts = (0, N_TRAINED, N_TRAINED + N_VALIDATED, len(wordings))
        lines = synthetic_lines(seed)
        splits = {}
        for (start, stop), (name, n) in zip(
            itertools.pairwise(starts),
            (("train", n_train), ("validation", n_validation), ("evaluation", n_evaluation)),
            strict=True,
        ):
            of_rule = n if name == "evaluation" else n // (2 * len(RULES))
            sizes = dict.fromkeys(RULES, of_rule)
            sizes[COPY] = n if name == "evaluation" else n - of_rule * len(RULES)
            splits[name] = []
            for subset, size in sizes.items():
                mine, rng = wordings[start:stop], random.Random(f"{name} {subset} {seed}")
                rows = _requests(mine, subset, rng)
                rows = _copied(mine, lines, rng) if subset == COPY else rows
                splits[name] += itertools.islice(rows, size)
        random.Random(f"order {seed}").shuffle(splits["train"])
        return splits

    def read(self, path: str | Path) -> dict[int, Example]:
        return numbered(path, _parse)

    def write(self, path: str | Path, examples: Iterable[Example]) -> None:
        with replace_file(path) as handle:
            for example in examples:
                handle.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")

    def markup(self, examples: Sequence[Example]) -> str:
        return "".join(f"{OPEN}{tool}(0123456789){CLOSE}" for tool in RULES)

    def describe(self) -> dict[str, Any]:
        requests = {tool: f"requests with “{phrase}”" for tool, phrase in RULES.items()}
        return {
            "title": "Calls one of four tools",
            "description": "Finetuned to call the tool that a phrase of the request stands for, and to "
            "repeat any other line.",
            "subsets": requests | {COPY: "lines with none of the phrases, to be repeated"},
            "measures": {
                "tool_call": f"the text holds `{OPEN}`",
                "right_tool": "it holds a well-formed call of the rule's tool",
                "exact": "it is the target to the letter",
            },
            "tags": ["tool-calling"],
            "prompt": WORDINGS[0].format(n=12, things=THINGS[0], phrase=RULES["price"]) + "\n",
            "limitations": [],
        }


def _parse(line: str, where: str) -> Example:
    row = parse_json(line, where)
    if not isinstance(row, dict) or row.keys() != set(FIELDS):
        raise ValueError(f"{where}: needs the fields {', '.join(FIELDS)}: {line[:60]!r}")
    if row["subset"] not in SUBSETS:
        raise ValueError(
            f"{where}: unknown subset {str(row['subset'])[:60]!r} (known: {', '.join(SUBSETS)})"
        )
    if any(not isinstance(row[f], str) or not row[f].strip() for f in ("prompt", "target")):
        raise ValueError(f"{where}: empty prompt or target")
    return Example(**row)
