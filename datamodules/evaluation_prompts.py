"""Evaluation prompts from a JSONL file, each once over all ranks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.batching import check_positive, sharded_loader
from delta_transcoders.console import StudyWarning
from delta_transcoders.generation import AnswerReader
from delta_transcoders.language_models import check_model_source, encode, load_tokenizer
from delta_transcoders.tasks.calculator.grammar import judge, unjudgeable
from delta_transcoders.tasks.examples import SUBSETS, Example, read_numbered_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def as_written(reader: AnswerReader, example: Example) -> tuple[str, int]:
    """Text of the answer that is the target itself, as it would be read, and its tokens without EOS."""
    _, ids = encode(reader.tokenizer, example)
    ends = (n for n in range(1, len(ids)) if reader.is_finished(ids[:n]))
    n_tokens = next(ends, len(ids) - 1)
    return reader.text(ids[:n_tokens]), n_tokens


class EvaluationPrompts(LightningDataModule):
    """Batches of example indices, subset by subset, of similar length within a batch.

    A batch is `{"rows": int64 [B]}`; the examples themselves are `examples`.

    Args:
        jsonl: examples, for example a finetune's `data/evaluation.jsonl`.
        model: folder or hub id of the tokenizer that measures lengths.
        subsets: those to use, in order.
        n_per_subset: the first so many of each; all where None.
        batch_size: prompts per batch.
    """

    def __init__(
        self,
        jsonl: str,
        model: str,
        subsets: tuple[str, ...] = SUBSETS,
        n_per_subset: int | None = None,
        batch_size: int = 100,
    ) -> None:
        super().__init__()
        check_model_source(model)
        check_positive(batch_size=batch_size)
        if n_per_subset is not None:
            check_positive(n_per_subset=n_per_subset)
        if not subsets or len(set(subsets)) < len(subsets):
            raise ValueError(f"subsets are {list(subsets)}, expected different ones, at least one")
        self.save_hyperparameters()
        self.examples: list[Example] = []
        self.lines: list[int] = []
        everything = read_numbered_jsonl(jsonl)
        for subset in subsets:
            found = [(n, e) for n, e in everything.items() if e.subset == subset][:n_per_subset]
            if not found:
                raise ValueError(f"{jsonl} holds no example of the subset {subset!r}")
            self.lines += [line for line, _ in found]
            self.examples += [example for _, example in found]

    def warn_of_impossible_answers(
        self, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
    ) -> None:
        """Say by file and line on which examples no answer, not even the target, would count as right."""
        reader = AnswerReader(tokenizer)
        for subset in self.hparams.subsets:
            unread: dict[int, str] = {}
            changed: dict[int, str] = {}
            longer: dict[int, int] = {}
            mine = [e.subset == subset for e in self.examples]
            for line, example in itertools.compress(
                zip(self.lines, self.examples, strict=True), mine
            ):
                target, is_copy = example.target, subset == "copy"
                if not is_copy and (problem := unjudgeable(target)):
                    unread[line] = problem
                    continue
                text, n_tokens = as_written(reader, example)
                if not (text == target if is_copy else judge(text, target).math_correct):
                    changed[line] = f"{target[:60]!r} is read as {text[:60]!r}"
                elif n_tokens > max_new_tokens:
                    longer[line] = n_tokens
            n = sum(mine)
            rest = f"math_correct_rate is over the other {n - len(unread)}"
            self._warn(subset, n, unread, f"no calls that the calculator reads; {rest}")
            self._warn(subset, n, changed, "read as another text when a model writes them")
            most = max(longer.values(), default=0)
            lengths = {line: f"{n_tokens} tokens" for line, n_tokens in longer.items()}
            limit = f"longer than max_new_tokens, {max_new_tokens} ({most} would do)"
            self._warn(subset, n, lengths, limit)

    def _warn(self, subset: str, n: int, found: dict[int, str], what: str) -> None:
        if found:
            line, details = next(iter(found.items()))
            rank_zero_warn(
                f"{self.hparams.jsonl}: {len(found)} of {n} targets of {subset!r} are {what} (first: line "
                f"{line}, {details})",
                category=StudyWarning,
            )

    def test_dataloader(self):
        tokenizer = load_tokenizer(self.hparams.model)
        subset_rank = {subset: i for i, subset in enumerate(self.hparams.subsets)}
        # Subsets are kept apart: they differ in length, and a batch runs as long as its longest row.
        order = [
            (subset_rank[e.subset], sum(map(len, encode(tokenizer, e)))) for e in self.examples
        ]
        rows = list(range(len(self.examples)))
        return sharded_loader(
            rows, order, self.hparams.batch_size, lambda batch: {"rows": torch.tensor(batch)}
        )
