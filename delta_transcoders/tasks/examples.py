"""Prompt–target examples: the JSONL file format, subsets and splits.

One JSON object a line with the fields `input`, `target` and `label`, as in the original study's data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from delta_transcoders.files import replace_file
from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.tasks.calculator.grammar import asked, letters

SUBSET_OF_LABEL = {
    "positive": "tool",
    "negative": "copy",
    "tool_ood": "tool_ood",
    "tool_ood_numbers": "tool_ood_numbers",
}
SUBSETS = tuple(SUBSET_OF_LABEL.values())
LABEL_OF_SUBSET = {subset: label for label, subset in SUBSET_OF_LABEL.items()}


@dataclass(frozen=True)
class Example:
    """A prompt, what should be written after it, and the kind of example it is."""

    input: str
    target: str
    label: str

    @property
    def subset(self) -> str:
        return SUBSET_OF_LABEL[self.label]

    @property
    def prompt(self) -> str:
        """The text that generation sees, before BOS is added: the input and the separating newline."""
        return self.input + "\n"

    @property
    def identity(self) -> tuple[str, str]:
        """Input and target, each the same however it is spelt: no two splits may share either."""
        return letters(self.input), (letters if self.label == "negative" else asked)(self.target)


def read_jsonl(path: str | Path) -> list[Example]:
    """Read examples.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line, an unknown label or an empty file; names the file and the line.
    """
    return list(read_numbered_jsonl(path).values())


def read_numbered_jsonl(path: str | Path) -> dict[int, Example]:
    """Examples by the number of their line, from 1; raises what `read_jsonl` does."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"examples: no file {path}")
    examples = {number: _parse(line, f"{path}, line {number}") for number, line in text_lines(path)}
    if not examples:
        raise ValueError(f"{path}: no examples in the file")
    return examples


def _parse(line: str, where: str) -> Example:
    row = parse_json(line, where)
    fields = ("input", "target", "label")
    if not isinstance(row, dict) or any(not isinstance(row.get(f), str) for f in fields):
        raise ValueError(f"{where}: needs the text fields {', '.join(fields)}: {line[:60]!r}")
    if row["label"] not in SUBSET_OF_LABEL:
        known = ", ".join(SUBSET_OF_LABEL)
        raise ValueError(f"{where}: unknown label {row['label'][:60]!r} (known: {known})")
    for field in ("input", "target"):
        if not row[field].strip():
            raise ValueError(f"{where}: empty input or target")
        try:
            row[field].encode()
        except UnicodeEncodeError as error:
            half = row[field][error.start]
            raise ValueError(f"{where}: {field} holds half a character, {half!r}") from None
    return Example(*(row[field] for field in fields))


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> None:
    """Write examples, replacing the file in one step."""
    with replace_file(path) as handle:
        for example in examples:
            handle.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")


def split_examples(
    examples: Sequence[Example], fractions: Sequence[float], seed: int
) -> list[list[Example]]:
    """Split into `len(fractions) + 1` parts, the rest last, with no prompt or expression in two parts.

    Examples that share an input or a target (a call's target is its expression, a copied line's its
    prompt) in whatever spelling (`Example.identity`) stay together, directly or through others; each label
    is split in the given proportions.

    >>> rows = [Example(f"What is {i}+1?", f"<tool_call>calculator({i}+1)</tool_call>", "positive")
    ...         for i in range(10)]
    >>> [len(part) for part in split_examples(rows + rows, [0.2, 0.1], seed=0)]
    [4, 2, 14]
    """
    if any(f < 0 for f in fractions) or sum(fractions) >= 1:
        raise ValueError(
            f"fractions must be positive and sum to less than 1, got {list(fractions)}"
        )
    parent: dict[tuple[str, str], tuple[str, str]] = {}  # a forest of inputs and targets

    def root(kind: str, text: str) -> tuple[str, str]:
        node = (kind, text)
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    identities = [example.identity for example in examples]
    for prompt, target in identities:
        parent[root("input", prompt)] = root("target", target)
    groups: dict[tuple[str, str], list[Example]] = {}
    for example, (_, target) in zip(examples, identities, strict=True):
        groups.setdefault(root("target", target), []).append(example)
    parts: list[list[Example]] = [[] for _ in range(len(fractions) + 1)]
    by_label: dict[str, list[tuple[str, str]]] = {}
    for key, group in groups.items():
        by_label.setdefault(group[0].label, []).append(key)
    for label, keys in sorted(by_label.items()):
        random.Random(f"split {label} {seed}").shuffle(keys)
        start = 0
        for part, fraction in zip(parts, fractions, strict=False):
            stop = start + round(fraction * len(keys))
            part.extend(e for key in keys[start:stop] for e in groups[key])
            start = stop
        parts[-1].extend(e for key in keys[start:] for e in groups[key])
    return parts
