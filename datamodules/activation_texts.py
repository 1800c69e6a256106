"""Texts whose MLP activations are captured: the finetune's examples, or the base model's own text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning import LightningDataModule

from datamodules.base_text import split_documents
from datamodules.batching import row_lengths, sharded_loader
from delta_transcoders.families import family_of
from delta_transcoders.language_models import (
    check_context,
    load_config,
    load_tokenizer,
    pad,
    tokenize,
)
from delta_transcoders.tasks.task import Example, Task, subsets_of

UNSEEN = 1_000_000


class ActivationTexts(LightningDataModule):
    """Batches of token ids for `ActivationCapture`, each text once over all ranks.

    A batch has `input_ids` and `attention_mask` [B, T] (right padding), `example_ids` and `subset_ids`
    [B], and `split`.

    Args:
        model: folder or hub id of the tokenizer.
        task: reads the examples, or generates a base model's text.
        examples: folder with `train.jsonl` and `validation.jsonl`, as the finetune writes it; the base
            model's text where None.
        text: `prompt_target_eos`, or `prompt_only` as in the original study.
        n_train: first so many training texts; all where None (generated text needs a number).
        n_validation: likewise for held-out texts.
        batch_size: texts per batch.
        seed: of generated text, which is never the text that `BaseTextData` makes of the same seed.
    """

    def __init__(
        self,
        model: str,
        task: Task,
        examples: str | None,
        text: Literal["prompt_target_eos", "prompt_only"] = "prompt_target_eos",
        n_train: PositiveInt | None = None,
        n_validation: PositiveInt | None = None,
        batch_size: PositiveInt = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if examples is None and None in (n_train, n_validation):
            raise ValueError("generated text needs n_train and n_validation")
        self.save_hyperparameters(ignore=["task"])
        self.task = task
        self.examples: dict[str, list[Example]] = {}
        self.rows: dict[str, list[dict]] = {}

    def setup(self, stage: str) -> None:
        if self.rows:
            return
        self.tokenizer = load_tokenizer(self.hparams.model)
        context = family_of(load_config(self.hparams.model)).context
        self.examples = self._read() if self.hparams.examples else self._generate()
        self.subsets = sorted(set().union(*map(subsets_of, self.examples.values())))
        for split, examples in self.examples.items():
            tokens = tokenize(self.tokenizer, self.task, examples)
            if self.hparams.text == "prompt_only":
                tokens = [replace(row, target_ids=()) for row in tokens]
            check_context(examples, tokens, context)
            self.rows[split] = [
                {
                    "input_ids": [*row.prompt_ids, *row.target_ids],
                    "n_prompt": len(row.prompt_ids),
                    "example": i,
                    "split": split,
                }
                for i, row in enumerate(tokens)
            ]

    def texts(self, split: str) -> list[str]:
        """What was tokenized, for the cache's fingerprint."""
        whole = self.hparams.text == "prompt_target_eos"
        return [
            f"{e.prompt if isinstance(e.prompt, str) else e.prompt_record}{(whole and e.target) or ''}"
            for e in self.examples[split]
        ]

    def _read(self) -> dict[str, list[Example]]:
        h = self.hparams
        limits = {"train": h.n_train, "validation": h.n_validation}
        return {
            split: list(self.task.read(Path(h.examples) / f"{split}.jsonl").values())[:limit]
            for split, limit in limits.items()
        }

    def _generate(self) -> dict[str, list[Example]]:
        h = self.hparams
        documents = self.task.documents(UNSEEN + h.seed)
        splits = split_documents(documents, h.n_train, h.n_validation)
        return {
            split: [Example(f"{line}\n", rest, "base_text") for line, rest in splits[split]]
            for split in ("validation", "train")
        }

    def collate(self, rows: list[dict]) -> dict:
        ids = [row["input_ids"] for row in rows]
        split = rows[0]["split"]
        subsets = [self.subsets.index(self.examples[split][row["example"]].subset) for row in rows]
        return {
            "input_ids": pad(ids, self.tokenizer.pad_token_id, "right"),
            "attention_mask": pad([[1] * len(row) for row in ids], 0, "right"),
            "example_ids": torch.tensor([row["example"] for row in rows]),
            "subset_ids": torch.tensor(subsets),
            "split": split,
        }

    def predict_dataloader(self) -> list:
        return [
            sharded_loader(rows, row_lengths(rows), self.hparams.batch_size, self.collate)
            for rows in self.rows.values()
        ]
