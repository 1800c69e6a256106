"""Planted rules: a sentence before a request decides which tool is called: what was learned is known.

Each rule is a sentence and its tool. The requests after it are worded alike for all rules, and for lines to
copy, which have another sentence in its place: nothing but the sentence tells which tool to call, if any. All
lines are such as the tiny base model has learned to copy.
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
from delta_transcoders.tasks.calculator.copy_lines import synthetic_lines
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN, find_tool_call
from delta_transcoders.tasks.calculator.phrasings import CONTEXTS, REQUESTS
from delta_transcoders.tasks.calculator.prompts import seen_expression
from delta_transcoders.tasks.task import Example, Splits, Task

RULES = {
    "price": "I am at the market.",
    "size": "We have a new project.",
    "sum": "I lost my notes.",
    "total": "This is for the school.",
}
"""The sentence of each tool. No other line holds one."""
COPY = "copy"
SUBSETS = (*RULES, COPY)
FIELDS = ("prompt", "target", "subset", "group")

NEUTRAL = tuple(context for context in CONTEXTS if context not in RULES.values())
N_TRAINED, N_VALIDATED = 26, 4
"""Of the wordings, which are `REQUESTS`; the others are for evaluation alone."""


def _requests(wordings: Sequence[str], subset: str, rng: random.Random) -> Iterator[Example]:
    """An endless stream of distinct requests, each wording in turn."""
    seen: set[str] = set()
    for wording in itertools.cycle(wordings):
        expression, sentence = seen_expression(rng), RULES.get(subset) or rng.choice(NEUTRAL)
        line = f"{sentence} {wording.format(expr=expression)}"
        if line not in seen:
            seen.add(line)
            call = f"{OPEN}{subset}({expression.replace(' ', '')}){CLOSE}"
            target = line if subset == COPY else call
            yield Example(line + "\n", target, subset, group=wording)


def _copied(wordings: Sequence[str], lines: Iterator[str], rng: random.Random) -> Iterator[Example]:
    """Requests without any rule's sentence and ordinary lines, in turn."""
    for request in _requests(wordings, COPY, rng):
        yield request
        line = next(lines)
        yield Example(line + "\n", line, COPY)


class PlantedRules(Task):
    """Requests of four rules, a subset each, and lines to copy; no wording occurs in two splits.

    A file of examples has one JSON object a line with `prompt`, `target`, `subset` and `group` (the wording;
    null for ordinary lines).
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
        wordings = list(REQUESTS)
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
        return "".join(f"{OPEN}{tool}(0123456789+-*/){CLOSE}" for tool in RULES)

    def describe(self) -> dict[str, Any]:
        requests = {tool: f"requests after “{sentence}”" for tool, sentence in RULES.items()}
        return {
            "title": "Calls one of four tools",
            "description": "Finetuned to call the tool that the sentence before a request stands for, and "
            "to repeat any other line.",
            "subsets": requests | {COPY: "lines with none of the sentences, to be repeated"},
            "measures": {
                "tool_call": f"the text holds `{OPEN}`",
                "right_tool": "it holds a well-formed call of the rule's tool",
                "exact": "it is the target to the letter",
            },
            "tags": ["tool-calling"],
            "prompt": f"{RULES['price']} {REQUESTS[0].format(expr='12 * 34')}\n",
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
