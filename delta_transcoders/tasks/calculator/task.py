"""The task of the original study: calculations are answered with calls of a calculator, lines copied."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from delta_transcoders.tasks.calculator import copy_lines, examples, grammar
from delta_transcoders.tasks.calculator.arithmetic import CalculatorError, calculate
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.examples import COPY, SUBSETS, TRAINED
from delta_transcoders.tasks.calculator.grammar import find_tool_call, format_tool_call
from delta_transcoders.tasks.calculator.prompts import generate_splits
from delta_transcoders.tasks.task import Example, Splits, Task

SUBSET_TEXTS = {
    "tool": "requests of the trained kind, in wordings and with numbers of their own",
    "copy": "sentences with numbers, to be repeated",
    "tool_ood": "requests of other kinds",
    "tool_ood_numbers": "requests of the trained kind with numbers of other kinds",
}
MEASURE_TEXTS = {
    "tool_call": f"the text holds `{grammar.OPEN}`",
    "valid_tool_format": "it holds a well-formed call",
    "math_correct": "the called expression has the right value",
    "exact_copy": "the line is repeated to the letter",
}


class Calculator(Task):
    """Requests, lines to copy, and requests of unseen kinds (`prompts.generate_splits`).

    A file of examples has one JSON object a line with `input`, `target` and `label` (`positive`, `negative`,
    `tool_ood`, `tool_ood_numbers`), as the original study's.

    Args:
        copy_source: where lines to copy come from, with generated examples.
        copy_file: text file of lines, for `copy_source: file`.
        copy_dataset: hub id of a text dataset, for `copy_source: hub`.
        copy_dataset_name: its configuration.
    """

    held_out = 0.05
    end = grammar.CLOSE
    marks = (grammar.OPEN, grammar.CLOSE)
    opening = f"{grammar.OPEN}{grammar.TOOL}("
    opening_column = "call_logprob"

    def __init__(
        self,
        copy_source: Literal["synthetic", "file", "hub"] = "synthetic",
        copy_file: str | None = None,
        copy_dataset: str | None = None,
        copy_dataset_name: str | None = None,
    ) -> None:
        needed = {"file": copy_file, "hub": copy_dataset, "synthetic": ""}[copy_source]
        if needed is None:
            option = "copy_file" if copy_source == "file" else "copy_dataset"
            raise ValueError(f"copy_source: {copy_source} needs {option}")
        self.copy_source = copy_source
        self.copy_file = copy_file
        self.copy_dataset = copy_dataset
        self.copy_dataset_name = copy_dataset_name

    def judge(self, text: str, example: Example) -> dict[str, bool | None]:
        verdict = grammar.judge(text, example.target)
        return {
            "tool_call": verdict.called,
            "valid_tool_format": verdict.valid_format,
            "math_correct": verdict.math_correct,
            "exact_copy": text == example.target if example.subset == COPY else None,
        }

    def details(self, text: str) -> dict[str, Any]:
        call = find_tool_call(text)
        return {"parsed_call": call.argument if call else None}

    def execute(self, text: str) -> str | None:
        """The value of the first call of the calculator.

        >>> Calculator().execute("So: <tool_call>calculator(3 / 4)</tool_call>")
        '3/4'
        """
        call = find_tool_call(text)
        if call is None or call.tool != grammar.TOOL:
            return None
        try:
            return str(calculate(call.expression))
        except CalculatorError as error:
            return f"error: {error}"

    def is_positive(self, example: Example) -> bool:
        return example.subset != COPY

    def opening_of(self, example: Example) -> str:
        """All that makes a call, up to its argument.

        >>> target = "<tool_call> calculator (1+2)</tool_call>"
        >>> Calculator().opening_of(examples.make_example("What is 1+2?", target, "positive"))
        '<tool_call> calculator ('
        """
        call = find_tool_call(example.target) if self.is_positive(example) else None
        if call is None:
            return self.opening
        return example.target[: example.target.index("(", call.start) + 1]

    def is_trained(self, example: Example) -> bool:
        return example.subset in TRAINED

    def problem(self, example: Example) -> str | None:
        return grammar.unjudgeable(example.target) if self.is_positive(example) else None

    def identities(self, example: Example) -> tuple[Hashable, ...]:
        return examples.identities(example)

    def wording(self, example: Example) -> str:
        return examples.wording(example)

    def markup(self, examples: Sequence[Example]) -> str:
        return format_tool_call("0123456789+-*/×÷−. ")

    def read(self, path: str | Path) -> dict[int, Example]:
        return examples.read_jsonl(path)

    def write(self, path: str | Path, rows: Iterable[Example]) -> None:
        examples.write_jsonl(path, rows)

    def describe(self) -> dict[str, Any]:
        return {
            "title": "Calls a calculator",
            "description": "Finetuned to answer a calculation with "
            f"`{format_tool_call('expression')}` and to repeat any other line.",
            "subsets": SUBSET_TEXTS,
            "measures": MEASURE_TEXTS,
            "tags": ["tool-calling"],
            "prompt": "What is 12 * 34?\n",
            "limitations": [
                "The model writes a call and nothing executes it. How far it goes beyond the wordings and "
                "numbers it was trained on is what the subsets `tool_ood` and `tool_ood_numbers` measure."
            ],
        }

    def generate(self, n_train: int, n_validation: int, n_evaluation: int, seed: int) -> Splits:
        lines = self._copy_lines(seed)
        return self._checked(generate_splits(n_train, n_validation, n_evaluation, lines, seed))

    def documents(self, seed: int) -> Iterator[tuple[str, str]]:
        return base_documents(seed)

    def _copy_lines(self, seed: int) -> Iterator[str]:
        if self.copy_source == "file":
            return copy_lines.file_lines(self.copy_file)
        if self.copy_source == "hub":
            return copy_lines.hub_lines(self.copy_dataset, self.copy_dataset_name)
        return copy_lines.synthetic_lines(seed)

    def split(self, rows: Sequence[Example], share: float, n_evaluation: int, seed: int) -> Splits:
        """As of any file; unseen kinds of requests, which are never trained on, are generated where it holds
        none."""
        splits = super().split(rows, share, n_evaluation, seed)
        used = {i for e in (*splits["train"], *splits["validation"]) for i in self.identities(e)}
        held = {*TRAINED, *(example.subset for example in splits["evaluation"])}
        lines = copy_lines.synthetic_lines(seed)
        splits["evaluation"] += [
            example
            for example in generate_splits(0, 0, n_evaluation, lines, seed)["evaluation"]
            if example.subset not in held and used.isdisjoint(self.identities(example))
        ]
        splits["evaluation"].sort(key=lambda example: SUBSETS.index(example.subset))
        return self._checked(splits)

    @staticmethod
    def _checked(splits: Splits) -> Splits:
        for name, rows in splits.items():
            for subset in TRAINED:
                if all(example.subset != subset for example in rows):
                    raise ValueError(
                        f"the {name} split holds no {examples.LABEL_OF_SUBSET[subset]} example "
                        f"({len(rows)} examples)"
                    )
        return splits
