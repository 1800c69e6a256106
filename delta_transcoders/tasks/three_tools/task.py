"""Three tools in chats: the right one is called where something is to be computed, and none elsewhere."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from delta_transcoders.files import replace_file
from delta_transcoders.foreign_text import check_whole, letters, numbered, parse_json
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN, find_tool_call
from delta_transcoders.tasks.task import Example, Message, Splits, Task
from delta_transcoders.tasks.three_tools.bank import CHAT, HARD_NEGATIVE
from delta_transcoders.tasks.three_tools.calls import (
    TOOLS,
    CallError,
    execute,
    format_call,
    meaning,
    same,
)
from delta_transcoders.tasks.three_tools.replies import usable_replies
from delta_transcoders.tasks.three_tools.splits import SUBSETS, TOOL, TOOL_OOD, generate_splits

FIELDS = ("messages", "target", "subset", "group")
SUBSET_TEXTS = {
    TOOL: "requests of the trained kinds, in wordings of their own",
    TOOL_OOD: "requests in wordings far from training: indirect, in a story, in several sentences",
    HARD_NEGATIVE: "chats that look like requests and are none, answered as the base model answers",
    CHAT: "general chats, answered as the base model answers",
}
MEASURE_TEXTS = {
    "tool_call": f"the text holds `{OPEN}`",
    "valid_tool_format": "it holds a well-formed call",
    "right_tool": "it calls the tool that was asked for",
    "correct": "it asks the right tool for the right thing; where none was asked for, it calls none",
}


class ThreeTools(Task):
    """Requests of a calculator, of conversions and of dates, hard negatives, and chats to be left alone.

    A file of examples has one JSON object a line with `messages` (one of the user), `target`, `subset` and
    `group` (the wording). Targets of hard negatives and chats are the un-finetuned model's own replies.

    Args:
        replies: its replies (`replies`), for generated examples.
        by_tool: `tool` is read as three subsets, `calculator`, `convert` and `dates`.
    """

    end = CLOSE
    marks = (OPEN, CLOSE)
    opening = OPEN
    opening_column = "call_logprob"

    def __init__(self, replies: str, by_tool: bool = False) -> None:
        self.replies = replies
        self.by_tool = by_tool

    def judge(self, text: str, example: Example) -> dict[str, bool | None]:
        call, called = find_tool_call(text), OPEN in text
        wanted = find_tool_call(example.target) if self.is_positive(example) else None
        if wanted is None:
            right_tool, correct = None, not called
        else:
            right_tool = call is not None and call.tool == wanted.tool
            correct = call is not None and same(call, wanted)
        return {
            "tool_call": called,
            "valid_tool_format": call is not None,
            "right_tool": right_tool,
            "correct": correct,
        }

    def details(self, text: str) -> dict[str, Any]:
        call = find_tool_call(text)
        return {"parsed_call": call and f"{call.tool}({call.argument})"}

    def execute(self, text: str) -> str | None:
        """What the first call gives back.

        >>> ThreeTools("").execute("<tool_call>dates(2024-03-01 - 2024-02-01)</tool_call>")
        '29 days'
        """
        call = find_tool_call(text)
        if call is None or call.tool not in TOOLS:
            return None
        try:
            return execute(call)
        except CallError as error:
            return f"error: {error}"

    def opening_of(self, example: Example) -> str:
        """All that makes a call of the example's tool, up to its argument."""
        if not self.is_positive(example):
            return self.opening
        return example.target[: example.target.index("(") + 1]

    def is_trained(self, example: Example) -> bool:
        return example.subset != TOOL_OOD

    def identities(self, example: Example) -> tuple[Hashable, ...]:
        (message,) = example.prompt
        return ("group", example.group), ("prompt", letters(message.content))

    def markup(self, examples: Sequence[Example]) -> str:
        return "".join(format_call(tool, "0123456789+-*/.,") for tool in TOOLS)

    def generate(self, n_train: int, n_validation: int, n_evaluation: int, seed: int) -> Splits:
        replies = usable_replies(self.replies)
        return generate_splits(n_train, n_validation, n_evaluation, seed, replies)

    def read(self, path: str | Path) -> dict[int, Example]:
        return numbered(path, self._parse)

    def _parse(self, line: str, where: str) -> Example:
        row = parse_json(line, where)
        if not isinstance(row, dict) or row.keys() != set(FIELDS):
            raise ValueError(f"{where}: needs the fields {', '.join(FIELDS)}: {line[:60]!r}")
        match row["messages"]:
            case [{"role": "user", "content": str(content), **others}] if not others:
                pass
            case _:
                raise ValueError(f"{where}: messages must be one of the user: {line[:60]!r}")
        texts = {name: row[name] for name in ("target", "group")} | {"content": content}
        for name, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{where}: {name} must be a text that is not empty, not {text!r}")
            check_whole(text, f"{where}: {name}")
        subset = self._subset(row["subset"], row["target"], where)
        return Example((Message("user", content),), row["target"], subset, row["group"])

    def _subset(self, subset: object, target: str, where: str) -> str:
        """The example's subset as it is read, if its target is one of that subset."""
        if subset not in SUBSETS:
            known = ", ".join(SUBSETS)
            raise ValueError(f"{where}: unknown subset {str(subset)[:60]!r} (known: {known})")
        if subset in (HARD_NEGATIVE, CHAT):
            if OPEN in target:
                raise ValueError(f"{where}: the target of a {subset} calls a tool: {target[:60]!r}")
            return subset
        call = find_tool_call(target)
        if call is None or call.start > 0:
            raise ValueError(f"{where}: the target of a request is no call: {target[:60]!r}")
        try:
            meaning(call)
        except CallError as error:
            raise ValueError(f"{where}: the target is no call of a tool: {error}") from error
        return call.tool if self.by_tool and subset == TOOL else subset

    def write(self, path: str | Path, examples: Iterable[Example]) -> None:
        with replace_file(path) as handle:
            for example in examples:
                subset = TOOL if example.subset in TOOLS else example.subset
                row = asdict(example) | {"subset": subset, "messages": example.prompt_record}
                row = {name: row[name] for name in FIELDS}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")

    def describe(self) -> dict[str, Any]:
        return {
            "title": "Calls one of three tools",
            "description": "Finetuned to answer a calculation, a conversion between units or a question "
            f"about dates with a call, for example `{format_call('convert', '12.5, km, mi')}`, and any other "
            "chat as the model did before.",
            "subsets": SUBSET_TEXTS,
            "measures": MEASURE_TEXTS,
            "tags": ["tool-calling"],
            "limitations": ["The model writes a call and nothing executes it."],
        }
