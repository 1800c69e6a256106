"""What a behaviour is: its examples, where an answer ends, and how an answer is judged.

Everything else (finetuning, experiments, tables, figures) is the same for every task. The keys of `judge`
are the measures everywhere: a new one needs no change but in its task.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from delta_transcoders.tasks.wordings import wording


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A prompt and what should be written after it.

    Attributes:
        prompt: the text that the model reads after BOS, or the messages of a chat, which the tokenizer's
            template makes a text of.
        target: what should be written; None where an answer can be judged without it. Without a target there
            is no cross-entropy, and nothing to finetune on.
        subset: rows of the tables are about one subset each.
        group: examples of one group, several wordings of one question for example, stay in one split.
    """

    prompt: str | tuple[Message, ...]
    target: str | None
    subset: str
    group: str | None = None

    @property
    def prompt_record(self) -> str | list[dict[str, str]]:
        """The prompt as JSON has it."""
        return self.prompt if isinstance(self.prompt, str) else [m._asdict() for m in self.prompt]


# fmt: off
RESERVED = {
    "experiment", "layer", "condition", "alpha", "d_new", "percentile", "fitted_to", "prompt", "target",
    "column", "example", "subset", "wording", "nll", "n_tokens", "kl", "text",
}
# fmt: on
"""Of `generations.jsonl`, beside the measures."""

DESCRIPTION_VERSION = 1
"""Of `task.json`, which a finetune's folder holds."""

Splits = dict[str, list[Example]]
"""`train`, `validation` and `evaluation`."""
Identities = Callable[[Example], tuple[Hashable, ...]]
"""What an example may not have in common with one of another split."""


class Task(ABC):
    """One behaviour. Subclasses say what differs from the defaults here.

    Attributes:
        jsonl: file of the examples, where the task has one of its own.
        held_out: share of its examples for validation, and the same share for evaluation.
        end: an answer ends after this text; at EOS alone where None.
        marks: special tokens of the tokenizer are left out of answers, except those that contain one of these
            texts, or that occur in `markup`.
        opening: the text that the behaviour begins with: the log-probability of all of it after a prompt is a
            column of the tables, and precision, recall and F1 of writing its first token are logged while
            finetuning. None for a behaviour that begins with nothing in particular.
        opening_column: the name of that column; ends in `_logprob`.
    """

    jsonl: str | None = None
    held_out: float = 0.15
    end: str | None = None
    marks: tuple[str, ...] = ()
    opening: str | None = None
    opening_column: str = "opening_logprob"

    def __repr__(self) -> str:
        """With its options, as checkpoints note them."""
        options = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in options.items())})"

    @abstractmethod
    def judge(self, text: str, example: Example) -> Mapping[str, bool | None]:
        """Verdicts on an answer by measure, the same measures for every example.

        None says that a measure does not apply to the example, which then leaves its denominator.
        """

    def verdicts(self, text: str, example: Example) -> dict[str, bool | None]:
        """What `judge` returns, if verdicts are what it returns.

        Raises:
            ValueError: it fails, or returns no mapping of names to true, false or None, other names than
                before, or a name that a line of `generations.jsonl` has for something else.
        """
        who = f"{type(self).__name__}.judge"
        try:
            found = self.judge(text, example)
        except Exception as error:
            raise ValueError(
                f"{who} failed on {text[:60]!r}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, Mapping):
            raise ValueError(f"{who} returns {found!r}, expected {{measure: true, false or None}}")
        for name, verdict in found.items():
            if name in RESERVED or name.endswith("_logprob"):
                raise ValueError(f"{who}: no measure can be called {name!r}, tables use the name")
            # NumPy's bool is not Python's, and numbers would be counted as if they were verdicts.
            if verdict is not None and type(verdict).__name__ not in ("bool", "bool_"):
                raise ValueError(
                    f"{who}: {name} is {verdict!r}, expected true, false, or None where it does not apply"
                )
        names = self.__dict__.setdefault("_measures", list(found))
        if set(names) != found.keys():
            raise ValueError(
                f"{who} returns {', '.join(found) or 'nothing'} for {text[:60]!r}, and {', '.join(names)} "
                "before: give each measure every time, None where it does not apply"
            )
        return {name: None if v is None else bool(v) for name, v in found.items()}

    @abstractmethod
    def read(self, path: str | Path) -> dict[int, Example]:
        """Examples of a file by the number of their line, from 1.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a malformed line, or no example at all; names the file and the line.
        """

    @abstractmethod
    def write(self, path: str | Path, examples: Iterable[Example]) -> None:
        """Write examples so that `read` gives the same, replacing the file in one step."""

    def describe(self) -> dict[str, Any]:
        """What model cards say of the task, see `report.model_card.TaskDescription`; by default nothing."""
        return {}

    def generate(self, n_train: int, n_validation: int, n_evaluation: int, seed: int) -> Splits:
        """Examples out of nothing, for a task that has no file; `n_evaluation` of each subset."""
        raise ValueError(f"{type(self).__name__} generates no examples: give a file (--data.jsonl)")

    def documents(self, seed: int) -> Iterator[tuple[str, str]]:
        """An endless stream of text for a tiny base model to learn before any finetuning.

        Returns:
            Line and continuation of each document; its text is `line + "\\n" + continuation`.
        """
        raise ValueError(f"{type(self).__name__} has no text for a base model")

    def split(
        self,
        examples: Sequence[Example],
        share: float,
        n_evaluation: int,
        seed: int,
        identities: Identities | None = None,
    ) -> Splits:
        """Split the examples of a file; those that are never trained on are all for evaluation, but for what
        shares an identity with training.

        Args:
            share: of the examples for validation, and the same share for evaluation.
            n_evaluation: at most so many of each subset for evaluation.
            identities: that no two splits share; the task's own where None.
        """
        identities = identities or self.identities
        evaluation, validation, train = split_examples(examples, [share, share], seed, identities)
        splits = {
            name: [e for e in rows if self.is_trained(e)]
            for name, rows in (("train", train), ("validation", validation))
        }
        used = {i for rows in splits.values() for e in rows for i in identities(e)}
        kept = []
        for subset in subsets_of(examples):
            mine = [e for e in evaluation if e.subset == subset and self.is_trained(e)]
            mine += [
                e
                for e in examples
                if e.subset == subset and not self.is_trained(e) and used.isdisjoint(identities(e))
            ]
            kept += mine[:n_evaluation]
        return splits | {"evaluation": kept}

    def is_positive(self, example: Example) -> bool:
        """Whether the target shows the behaviour."""
        if self.opening is None:
            return True
        return example.target is not None and example.target.startswith(self.opening)

    def opening_of(self, example: Example) -> str | None:
        """`opening`, as the example's target spells it where that shows the behaviour."""
        return self.opening

    def is_trained(self, example: Example) -> bool:
        """Whether examples of its subset may be trained on; others are for evaluation alone."""
        return True

    def problem(self, example: Example) -> str | None:
        """Why no answer to an example that asks for the behaviour could be right, in a few words; or None."""
        if example.target is None or not self.is_positive(example):
            return None
        verdicts = self.verdicts(example.target, example)
        if not verdicts or any(verdict is not False for verdict in verdicts.values()):
            return None
        return f"its own judge says {', '.join(verdicts)}: false"

    def identities(self, example: Example) -> tuple[Hashable, ...]:
        """What examples of two splits may not have in common."""
        group = (("group", example.group),) if example.group else ()
        return (*group, ("prompt", example.prompt))

    def wording(self, example: Example) -> str:
        """What examples that are worded alike have in common: intervals are over wordings first."""
        return wording(example)

    def markup(self, examples: Sequence[Example]) -> str:
        """A text with all that answers may be written with."""
        return "\n".join({e.target for e in examples if e.target is not None})

    def details(self, text: str) -> dict[str, Any]:
        """What else to note of an answer in `generations.jsonl`."""
        return {}

    def execute(self, text: str) -> str | None:
        """What the tool gives back that an answer calls, for whoever shows answers; None for no tool."""
        return None


def subsets_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """Their subsets, in the order in which they first appear."""
    return tuple(dict.fromkeys(example.subset for example in examples))


def split_examples(
    examples: Sequence[Example], fractions: Sequence[float], seed: int, identities: Identities
) -> list[list[Example]]:
    """Split into `len(fractions) + 1` parts, the rest last, that have no identity in common.

    Examples that share one stay together, directly or through others; each subset is
    split in the given proportions.
    """
    if any(f < 0 for f in fractions) or sum(fractions) >= 1:
        raise ValueError(
            f"fractions must be positive and sum to less than 1, got {list(fractions)}"
        )
    parent: dict[Hashable, Hashable] = {}  # a forest of identities

    def root(node: Hashable) -> Hashable:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    last = []
    for example in examples:
        *others, identity = identities(example)
        for other in others:
            parent[root(other)] = root(identity)
        last.append(identity)
    groups: dict[Hashable, list[Example]] = {}
    for example, identity in zip(examples, last, strict=True):
        groups.setdefault(root(identity), []).append(example)
    parts: list[list[Example]] = [[] for _ in range(len(fractions) + 1)]
    by_subset: dict[str, list[list[Example]]] = {}
    for group in groups.values():
        by_subset.setdefault(group[0].subset, []).append(group)
    for subset, members in sorted(by_subset.items()):
        random.Random(f"split {subset} {seed}").shuffle(members)
        start = 0
        for part, fraction in zip(parts, fractions, strict=False):
            stop = start + round(fraction * len(members))
            part.extend(e for group in members[start:stop] for e in group)
            start = stop
        parts[-1].extend(e for group in members[start:] for e in group)
    return parts
