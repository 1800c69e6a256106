"""A finetune's examples as what an end-to-end delta is trained and stopped on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batching import ResumableData, ResumableDataLoader, row_lengths, sharded_loader
from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import (
    TokenizedExample,
    check_model_source,
    end_ids,
    load_model,
    load_tokenizer,
    scored_batch,
    tokenize,
)
from delta_transcoders.tasks.task import Example, Task, subsets_of


def evenly(examples: Sequence[Example], n: int | None) -> list[int]:
    """Indexes of n examples (all where None), the first of each subset in turn; in their order.

    >>> evenly([Example("", "", s) for s in "aaaab"], 3)
    [0, 1, 4]
    """
    seen = dict.fromkeys(subsets_of(examples), 0)
    turns = []
    for index, example in enumerate(examples):
        turns.append((seen[example.subset], index))
        seen[example.subset] += 1
    return sorted(index for _, index in sorted(turns)[:n])


class EndToEndData(ResumableData):
    """Batches of `scored_batch`, and `subset` [B], the index of each row's subset.

    Args:
        model: folder or hub id of the finetuned model.
        task: reads the examples.
        train: file of them, as a finetune's `data/train.jsonl`.
        validation: another, of the same subsets; on its worst one training is judged.
        n_train, n_validation: so many of them, evenly over subsets; all where None.
        own_continuations: what the finetuned model writes itself (greedily) takes the place of the targets.
        max_new_tokens: its longest continuation.
        dtype: of its weights, while it writes them.
        batch_size: examples per batch and process.
        seed: of their order.
    """

    def __init__(
        self,
        model: str,
        task: Task,
        train: str,
        validation: str,
        n_train: PositiveInt | None = None,
        n_validation: PositiveInt | None = None,
        own_continuations: bool = False,
        max_new_tokens: PositiveInt = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: PositiveInt = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_model_source(model)
        self.save_hyperparameters(ignore=["task"])
        self.task = task
        files = {"train": (train, n_train), "validation": (validation, n_validation)}
        self.examples: dict[str, list[Example]] = {}
        for name, (path, n) in files.items():
            numbered = task.read(path)
            without = [line for line, e in numbered.items() if e.target is None]
            if without and not own_continuations:
                raise ValueError(
                    f"{path}, line {without[0]}: no target, and so nothing to train on: give one, or "
                    "own_continuations: true"
                )
            examples = list(numbered.values())
            self.examples[name] = [examples[i] for i in evenly(examples, n)]
        self.subsets = subsets_of(self.examples["validation"])
        for subset in subsets_of(self.examples["train"]):
            if subset not in self.subsets:
                raise ValueError(
                    f"{validation} holds no example of {subset!r}, which {train} trains: the worst subset "
                    "could not be told"
                )
        self.tokens: dict[str, list[TokenizedExample]] = {}

    def setup(self, stage: str) -> None:
        if self.tokens:
            return
        h = self.hparams
        self.tokenizer = load_tokenizer(h.model)
        if h.own_continuations:
            self._continue()
        for name, examples in self.examples.items():
            self.tokens[name] = tokenize(self.tokenizer, self.task, examples)

    def _continue(self) -> None:
        """Every process writes all of them: they decide the batches."""
        h = self.hparams
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        model = load_model(h.model, h.dtype).to(device)
        ends = end_ids(h.model, self.tokenizer)
        for name, examples in self.examples.items():
            reader = AnswerReader(self.tokenizer, self.task, ends, examples)
            prompts = [r.prompt_ids for r in tokenize(self.tokenizer, self.task, examples)]
            texts: list[str] = []
            for start in range(0, len(prompts), h.batch_size):
                part = prompts[start : start + h.batch_size]
                texts += greedy_texts(model, part, h.max_new_tokens, reader)
            pairs = zip(examples, texts, strict=True)
            self.examples[name] = [replace(example, target=text) for example, text in pairs]

    def for_attribution(self, n: int) -> tuple[list[TokenizedExample], list[int]]:
        """n training examples (`evenly`), and the index of each one's subset."""
        examples = self.examples["train"]
        chosen = evenly(examples, n)
        rows = [self.tokens["train"][i] for i in chosen]
        return rows, [self.subsets.index(examples[i].subset) for i in chosen]

    def _rows(self, split: str) -> list[dict]:
        return [
            {
                "input_ids": [*tokens.prompt_ids, *tokens.target_ids],
                "tokens": tokens,
                "subset": self.subsets.index(example.subset),
            }
            for tokens, example in zip(self.tokens[split], self.examples[split], strict=True)
        ]

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = scored_batch([row["tokens"] for row in rows], self.tokenizer.pad_token_id)
        return batch | {"subset": torch.tensor([row["subset"] for row in rows])}

    def train_dataloader(self) -> ResumableDataLoader:
        h = self.hparams
        return self.bucketed_loader(self._rows("train"), h.batch_size, h.seed, self.collate)

    def val_dataloader(self) -> DataLoader:
        rows = self._rows("validation")
        return sharded_loader(rows, row_lengths(rows), self.hparams.batch_size, self.collate)
