"""Examples of the calculator's task: their kinds, and the JSONL file format of the original study.

One JSON object a line with the fields `input`, `target` and `label`. A prompt is the input and a newline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable
from pathlib import Path

from delta_transcoders.files import replace_file
from delta_transcoders.foreign_text import check_whole, letters, numbered, parse_json
from delta_transcoders.tasks.calculator.grammar import asked
from delta_transcoders.tasks.calculator.phrasings import CONTEXTS
from delta_transcoders.tasks.task import Example
from delta_transcoders.tasks.wordings import masked

SUBSET_OF_LABEL = {
    "positive": "tool",
    "negative": "copy",
    "tool_ood": "tool_ood",
    "tool_ood_numbers": "tool_ood_numbers",
}
SUBSETS = tuple(SUBSET_OF_LABEL.values())
LABEL_OF_SUBSET = {subset: label for label, subset in SUBSET_OF_LABEL.items()}
COPY = "copy"
TRAINED = ("tool", COPY)
FIELDS = ("input", "target", "label")
_EXPRESSION = re.compile(r"[-−(]*#(?:[-+*/×÷−()]*#)*\)*")
"""Masked, and without white space."""


def make_example(input: str, target: str, label: str) -> Example:
    """
    >>> make_example("a 1", "a 1", "negative")
    Example(prompt='a 1\\n', target='a 1', subset='copy', group=None)
    """
    return Example(input + "\n", target, SUBSET_OF_LABEL[label])


def identities(example: Example) -> tuple[Hashable, Hashable]:
    """Prompt and target, each the same however it is spelt: no two splits may share either."""
    same = letters if example.subset == COPY else asked
    return ("prompt", letters(example.prompt)), ("target", same(example.target))


def wording(example: Example) -> str:
    """A request without its expression and the sentence before it, a line without its numbers.

    >>> wording(make_example("I lost my notes. What is (-1 + 2) * 3?", "…", "positive"))
    'Whatis#?'
    >>> wording(make_example("Tom sold 3 lamps and 12 stones.", "…", "negative"))
    'Tomsold#lampsand#stones.'
    """
    text = masked(letters(example.prompt))
    for context in CONTEXTS:
        text = text.removeprefix(letters(context))
    return _EXPRESSION.sub("#", text)


def read_jsonl(path: str | Path) -> dict[int, Example]:
    """Examples by the number of their line, from 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line, an unknown label or an empty file; names the file and the line.
    """
    return numbered(path, _parse)


def _parse(line: str, where: str) -> Example:
    row = parse_json(line, where)
    if not isinstance(row, dict) or any(not isinstance(row.get(f), str) for f in FIELDS):
        raise ValueError(f"{where}: needs the text fields {', '.join(FIELDS)}: {line[:60]!r}")
    if row["label"] not in SUBSET_OF_LABEL:
        known = ", ".join(SUBSET_OF_LABEL)
        raise ValueError(f"{where}: unknown label {row['label'][:60]!r} (known: {known})")
    for field in ("input", "target"):
        if not row[field].strip():
            raise ValueError(f"{where}: empty input or target")
        check_whole(row[field], f"{where}: {field}")
    return make_example(*(row[field] for field in FIELDS))


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> None:
    """Write examples, replacing the file in one step."""
    with replace_file(path) as handle:
        for example in examples:
            values = (
                example.prompt.removesuffix("\n"),
                example.target,
                LABEL_OF_SUBSET[example.subset],
            )
            row = dict(zip(FIELDS, values, strict=True))
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
