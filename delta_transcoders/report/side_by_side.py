"""Prompts with the answers of the base model, the finetuned model, and that without and with the delta."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.report.study_results import BASE_MODEL, FULL, NO_DELTA, RAW, StudyResults

N_PROMPTS = 12
CONDITIONS = (BASE_MODEL, RAW, NO_DELTA, FULL)
LONGEST = 600
"""Characters of a prompt or an answer that are shown."""


class Answers(NamedTuple):
    subset: str
    prompt: str
    texts: tuple[str | None, ...]
    """In the order of `CONDITIONS`; None where one was not asked."""

    @property
    def n_distinct(self) -> int:
        return len({text for text in self.texts if text is not None})


def side_by_side(results: StudyResults) -> list[Answers]:
    """`N_PROMPTS` of them, of all subsets in turn, of each those first on which most answers differ."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for stage, layers in (("behaviour", {""}), ("exp2a", {"", results.layer})):
        path = results.study / stage / "generations.jsonl"
        for record in _records(path) if path.is_file() else ():
            if record["condition"] in CONDITIONS and record["layer"] in layers:
                key = record["subset"], _text(record["prompt"])
                found.setdefault(key, {}).setdefault(record["condition"], record["text"])
    by_subset: dict[str, list[Answers]] = {name: [] for name in results.subsets}
    for (subset, prompt), texts in found.items():
        if NO_DELTA in texts or FULL in texts or not results.exp2a:
            answers = Answers(subset, prompt, tuple(map(texts.get, CONDITIONS)))
            by_subset.setdefault(subset, []).append(answers)
    for answers in by_subset.values():
        answers.sort(key=lambda a: -a.n_distinct)  # equal ones stay in the order of the examples
    turns = max(map(len, by_subset.values()), default=0)
    in_turn = [a[i] for i in range(turns) for a in by_subset.values() if i < len(a)]
    return sorted(in_turn[:N_PROMPTS], key=lambda a: -a.n_distinct)


def _records(path: Path):
    for number, line in text_lines(path):
        record = parse_json(line, f"{path}, line {number}")
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            yield record


def _text(prompt: object) -> str:
    """A prompt as it is read, which may be a chat."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def visible(text: str | None) -> str:
    """A text of a study as a page may show it: what would not be seen, or moves other text, is spelt out.

    >>> visible("a b\\n"), visible("x" + chr(0x202E) + chr(0)), visible(None)
    ('a b⏎', 'x\\\\u202e\\\\x00', '')
    """
    if text is None:
        return ""
    cut = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    lines = cut.removesuffix("\n").replace("\n", "⏎\n") + ("⏎" if cut.endswith("\n") else "")
    return "".join(
        c
        if c.isprintable() or c == "\n"
        else json.dumps(c)[1:-1]
        if ord(c) > 255
        else ascii(c)[1:-1]
        for c in lines
    )
