"""A task that needs no code: a file of examples and a ready judge."""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from delta_transcoders.command import find_config
from delta_transcoders.files import replace_file
from delta_transcoders.foreign_text import check_whole, letters, numbered, parse_json
from delta_transcoders.tasks import judges
from delta_transcoders.tasks.task import (
    Example,
    Identities,
    Message,
    Splits,
    Task,
    subsets_of,
)

FIELDS = ("prompt", "messages", "target", "subset", "group")
NEEDS_TARGET = ("exact", "contains")
JudgeName = Literal["exact", "contains", "regex", "json", "refusal"]


class Examples(Task):
    """Examples of a JSONL file, judged by one of `tasks.judges`.

    A line is a JSON object with `prompt` (text) or `messages` (a list of `{"role": …, "content": …}`, made a
    text of by the tokenizer's chat template); `target`, the answer to learn and to measure cross-entropy on;
    `subset`, which the tables tell apart (default `examples`); and `group`, which stays in one split.

    Args:
        jsonl: the file; `configs/tasks/…` are the package's own.
        judge: `exact` (the answer is the target), `contains` (the target is in it), `regex` (`pattern` is
            found in it), `json` (it is a JSON object with `fields`) or `refusal`.
        pattern: regular expression, for `regex`; for `refusal` instead of common English ones.
        fields: that the JSON object must have.
        end: see `Task`.
        opening: see `Task`.
        held_out: see `Task`.
        evaluation_only: subsets that are never trained on.
        title: of the task, for model cards.
        description: likewise, a sentence or two.
    """

    def __init__(
        self,
        jsonl: str,
        judge: JudgeName,
        pattern: str | None = None,
        fields: tuple[str, ...] = (),
        end: str | None = None,
        opening: str | None = None,
        held_out: float = 0.15,
        evaluation_only: tuple[str, ...] = (),
        title: str = "",
        description: str = "",
    ) -> None:
        if judge == "regex" and pattern is None:
            raise ValueError("judge: regex needs a pattern")
        if pattern is not None and judge not in ("regex", "refusal"):
            raise ValueError(f"pattern is for the judges regex and refusal, not for {judge}")
        if fields and judge != "json":
            raise ValueError(f"fields are for the judge json, not for {judge}")
        for name, value in (("end", end), ("opening", opening)):
            if value == "":
                raise ValueError(f"{name} is empty: leave it out, or give a text")
        if not 0 < held_out < 0.5:
            raise ValueError(f"held_out is {held_out}, expected a share between 0 and 0.5")
        self.jsonl = find_config(jsonl)
        self.kind = judge
        self.pattern = pattern
        self.fields = fields
        self.end = end
        self.opening = opening
        self.held_out = held_out
        self.evaluation_only = evaluation_only
        self.title = title
        self.description = description
        self._judge: judges.Judge = {
            "exact": lambda: judges.exact,
            "contains": lambda: judges.contains,
            "regex": lambda: judges.matches(pattern),
            "json": lambda: judges.is_json(fields),
            "refusal": lambda: judges.refuses(pattern),
        }[judge]()

    def judge(self, text: str, example: Example) -> judges.Verdicts:
        return self._judge(text, example.target)

    def problem(self, example: Example) -> str | None:
        is_judged = example.target is not None and self.is_positive(example)
        if not is_judged or (self.kind == "refusal" and self.opening is None):
            return None  # for refusals nothing else says which examples are to be refused
        # A subclass may add measures that no target need fulfil.
        ready = self._judge(example.target, example.target)
        wrong = [name for name, verdict in ready.items() if verdict is False]
        return f"its own judge says {', '.join(wrong)}: false" if wrong else None

    def is_trained(self, example: Example) -> bool:
        return example.subset not in self.evaluation_only

    def split(
        self,
        examples: Sequence[Example],
        share: float,
        n_evaluation: int,
        seed: int,
        identities: Identities | None = None,
    ) -> Splits:
        held = subsets_of(examples)
        for subset in self.evaluation_only:
            if subset not in held:
                raise ValueError(
                    f"evaluation_only names {subset!r}, the examples' subsets are {', '.join(held)}"
                )
        return super().split(examples, share, n_evaluation, seed, identities)

    def identities(self, example: Example) -> tuple[Hashable, ...]:
        group = (("group", example.group),) if example.group else ()
        if isinstance(example.prompt, str):
            return (*group, ("prompt", letters(example.prompt)))
        return (*group, ("messages", *((m.role, letters(m.content)) for m in example.prompt)))

    def read(self, path: str | Path) -> dict[int, Example]:
        return numbered(find_config(str(path)), self._example)

    def _example(self, line: str, where: str) -> Example:
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object: {line[:60]!r}")
        for key in row.keys() - FIELDS:
            if near := difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.75):
                raise ValueError(f"{where}: unknown field {key!r}, did you mean {near[0]!r}?")
        if ("prompt" in row) == ("messages" in row):
            raise ValueError(f"{where}: needs either prompt or messages: {line[:60]!r}")
        for key in ("prompt", "target", "subset", "group"):
            self._check_text(row, key, where)
        if self.kind in NEEDS_TARGET and row.get("target") is None:
            raise ValueError(f"{where}: judge {self.kind} needs a target: {line[:60]!r}")
        prompt = row["prompt"] if "prompt" in row else self._messages(row["messages"], where)
        return Example(prompt, row.get("target"), row.get("subset", "examples"), row.get("group"))

    @staticmethod
    def _check_text(row: dict[str, Any], key: str, where: str) -> None:
        value = row.get(key)
        if key not in row or (value is None and key in ("target", "group")):
            return
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {key} must be a text that is not empty, not {value!r}")
        check_whole(value, f"{where}: {key}")

    def _messages(self, value: Any, where: str) -> tuple[Message, ...]:
        is_list = isinstance(value, list) and value != []
        if not is_list or not all(
            isinstance(m, dict) and m.keys() == {"role", "content"} for m in value
        ):
            raise ValueError(
                f'{where}: messages must be a list of {{"role": …, "content": …}}, not {str(value)[:60]}'
            )
        for message in value:
            for key in ("role", "content"):
                self._check_text(message, key, where)
        return tuple(Message(**message) for message in value)

    def write(self, path: str | Path, examples: Iterable[Example]) -> None:
        with replace_file(path) as handle:
            for example in examples:
                key = "prompt" if isinstance(example.prompt, str) else "messages"
                row = {key: example.prompt_record, "target": example.target}
                row |= {"subset": example.subset, "group": example.group}
                row = {name: value for name, value in row.items() if value is not None}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")

    def describe(self) -> dict[str, Any]:
        return {
            "title": self.title or "Finetuned on examples",
            "description": self.description,
            "tags": [],
        }
