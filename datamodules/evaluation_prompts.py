"""Evaluation prompts from a file of examples, each once over all ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

from jsonargparse.typing import PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.batching import sharded_loader
from delta_transcoders.console import StudyWarning
from delta_transcoders.generation import AnswerReader
from delta_transcoders.language_models import (
    TokenizedExample,
    check_context,
    check_model_source,
    end_ids,
    load_tokenizer,
    tokenize,
)
from delta_transcoders.tasks.task import Example, Task, subsets_of


class PromptRow(NamedTuple):
    """One example of a batch; `index` is its place among all of them."""

    index: int
    example: Example
    tokens: TokenizedExample


class EvaluationPrompts(LightningDataModule):
    """Batches of examples, subset by subset, of similar length within a batch.

    A batch is a list of `PromptRow`.

    Args:
        jsonl: examples, for example a finetune's `data/evaluation.jsonl`.
        model: folder or hub id of the tokenizer.
        task: reads and judges the examples.
        subsets: those to use, in order; all where None.
        n_per_subset: the first so many of each; all where None.
        batch_size: prompts per batch.
    """

    def __init__(
        self,
        jsonl: str,
        model: str,
        task: Task,
        subsets: list[str] | None = None,
        n_per_subset: PositiveInt | None = None,
        batch_size: PositiveInt = 100,
    ) -> None:
        super().__init__()
        check_model_source(model)
        self.save_hyperparameters(ignore=["task"])
        self.task = task
        everything = task.read(jsonl)
        self.subsets = list(subsets_of(everything.values())) if subsets is None else subsets
        if not self.subsets or len(set(self.subsets)) < len(self.subsets):
            raise ValueError(f"subsets are {self.subsets}, expected different ones, at least one")
        self.examples: list[Example] = []
        self.lines: list[int] = []
        for subset in self.subsets:
            found = [(n, e) for n, e in everything.items() if e.subset == subset][:n_per_subset]
            if not found:
                known = ", ".join(subsets_of(everything.values()))
                raise ValueError(
                    f"{jsonl} holds no example of the subset {subset!r}; it has {known}"
                )
            self.lines += [line for line, _ in found]
            self.examples += [example for _, example in found]
        self.rows: list[PromptRow] = []

    def setup(self, stage: str) -> None:
        self.tokenizer = load_tokenizer(self.hparams.model)
        ends = end_ids(self.hparams.model, self.tokenizer)
        self.reader = AnswerReader(self.tokenizer, self.task, ends, self.examples)
        tokens = tokenize(self.tokenizer, self.task, self.examples)
        rows = zip(range(len(tokens)), self.examples, tokens, strict=True)
        self.rows = [PromptRow(*row) for row in rows]

    def check_context(self, context: int, max_new_tokens: int) -> None:
        """Refuse examples that do not fit the context of a model; see `language_models.check_context`."""
        check_context(self.examples, [row.tokens for row in self.rows], context, max_new_tokens)

    def warn_of_impossible_answers(self, max_new_tokens: int) -> None:
        """Say by file and line on which examples no answer, not even the target, would count as right."""
        for subset in self.subsets:
            wrong: dict[int, str] = {}
            changed: dict[int, str] = {}
            longer: dict[int, int] = {}
            n = 0
            for line, row in zip(self.lines, self.rows, strict=True):
                target = row.example.target
                n += row.example.subset == subset
                if row.example.subset != subset or target is None:
                    continue
                if problem := self.task.problem(row.example):
                    wrong[line] = problem
                    continue
                text, n_tokens = self._as_written(row.tokens)
                right, read = (self.task.verdicts(t, row.example) for t in (target, text))
                if any(verdict and not read[measure] for measure, verdict in right.items()):
                    changed[line] = f"{target[:60]!r} is read as {text[:60]!r}"
                elif n_tokens > max_new_tokens:
                    longer[line] = n_tokens
            rest = f"only the other {n - len(wrong)} can be answered rightly"
            self._warn(subset, n, wrong, f"not right by their own judge; {rest}")
            self._warn(subset, n, changed, "read as another text when a model writes them")
            most = max(longer.values(), default=0)
            lengths = {line: f"{n_tokens} tokens" for line, n_tokens in longer.items()}
            limit = f"longer than max_new_tokens, {max_new_tokens} ({most} would do)"
            self._warn(subset, n, lengths, limit)

    def _as_written(self, tokens: TokenizedExample) -> tuple[str, int]:
        """Text of the answer that is the target itself, as it would be read, and its tokens without EOS."""
        ids = tokens.target_ids
        ends = (n for n in range(1, len(ids)) if self.reader.is_finished(ids[:n]))
        n_tokens = next(ends, len(ids) - 1)
        return self.reader.text(ids[:n_tokens]), n_tokens

    def _warn(self, subset: str, n: int, found: dict[int, str], what: str) -> None:
        if found:
            line, details = next(iter(found.items()))
            rank_zero_warn(
                f"{self.hparams.jsonl}: {len(found)} of {n} targets of {subset!r} are {what} (first: line "
                f"{line}, {details})",
                category=StudyWarning,
            )

    def test_dataloader(self):
        # Subsets are kept apart: they differ in length, and a batch runs as long as its longest row.
        order = [(self.subsets.index(r.example.subset), len(r.tokens)) for r in self.rows]
        return sharded_loader(self.rows, order, self.hparams.batch_size, list)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch  # it holds no tensors
