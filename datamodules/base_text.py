"""Generated text for the tiny base model, and the tokenizer learned from it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from jsonargparse.typing import PositiveInt

from datamodules.batching import (
    ResumableData,
    ResumableDataLoader,
    collate_tokens,
    row_lengths,
    sharded_loader,
)
from delta_transcoders.language_models import IGNORE
from delta_transcoders.tasks.task import Task
from delta_transcoders.tiny_gemma import train_tokenizer

LINE_LOSS_FRACTION = 0.25
"""Share of the documents whose first line is supervised too: copying, which everything later rests on, is
learned several times sooner when the unpredictable first line does not drown its gradient."""


def split_documents(
    stream: Iterator[tuple[str, str]], n_train: int, n_validation: int
) -> dict[str, list[tuple[str, str]]]:
    """`train` and `validation`, which hold none of the same documents.

    >>> split_documents(iter([("a", "b"), ("a", "b"), ("c", "d")]), 1, 1)
    {'train': [('a', 'b')], 'validation': [('c', 'd')]}
    """
    train = list(itertools.islice(stream, n_train))
    seen = set(train)
    unseen = (document for document in stream if document not in seen)
    return {"train": train, "validation": list(itertools.islice(unseen, n_validation))}


class BaseTextData(ResumableData):
    """A task's documents (`Task.documents`) as token ids.

    The continuation is always supervised, the line before it in some documents only.

    Args:
        task: generates the documents.
        n_documents: training documents.
        n_validation: held-out documents.
        batch_size: documents per batch and process.
        vocab_size: entries of the tokenizer, special tokens included.
        seed: of the text and its order.
    """

    def __init__(
        self,
        task: Task,
        n_documents: PositiveInt = 24000,
        n_validation: PositiveInt = 512,
        batch_size: PositiveInt = 32,
        vocab_size: PositiveInt = 768,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["task"])
        self.task = task
        self.rows: dict[str, list[dict]] = {}

    def setup(self, stage: str) -> None:
        if self.rows:
            return
        h = self.hparams
        splits = split_documents(self.task.documents(h.seed), h.n_documents, h.n_validation)
        texts = [f"{line}\n{continuation}" for line, continuation in splits["train"]]
        self.tokenizer = train_tokenizer(texts[:4000], h.vocab_size)
        rng = random.Random(f"line loss {h.seed}")
        self.rows = {
            split: [
                self._row(*document, rng.random() < LINE_LOSS_FRACTION) for document in documents
            ]
            for split, documents in splits.items()
        }

    def _row(self, line: str, continuation: str, whole: bool) -> dict:
        prompt = self.tokenizer(line + "\n").input_ids
        target = self.tokenizer(continuation, add_special_tokens=False).input_ids
        target.append(self.tokenizer.eos_token_id)
        return {
            "input_ids": prompt + target,
            "labels": (prompt if whole else [IGNORE] * len(prompt)) + target,
        }

    def collate(self, rows: list[dict]) -> dict:
        return collate_tokens(rows, self.tokenizer.pad_token_id)

    def train_dataloader(self) -> ResumableDataLoader:
        rows = self.rows["train"]
        h = self.hparams
        return self.bucketed_loader(rows, h.batch_size, h.seed, self.collate)

    def val_dataloader(self):
        rows = self.rows["validation"]
        return sharded_loader(rows, row_lengths(rows), self.hparams.batch_size, self.collate)
