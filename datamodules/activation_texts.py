"""Texts whose MLP activations are captured: the finetune's examples, or the base model's own text."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import torch
from lightning import LightningDataModule

from datamodules.batching import check_positive, row_lengths, sharded_loader
from delta_transcoders.language_models import encode, load_tokenizer, pad
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.examples import SUBSETS, Example, read_jsonl

UNSEEN = 1_000_000


class ActivationTexts(LightningDataModule):
    """Batches of token ids for `ActivationCapture`, each text once over all ranks.

    A batch has `input_ids` and `attention_mask` [B, T] (right padding), `example_ids` and `subset_ids`
    [B], and `split`.

    Args:
        model: folder or hub id of the tokenizer.
        examples: folder with `train.jsonl` and `validation.jsonl`, as the finetune writes it; the tiny
            base model's generated text where None.
        text: `prompt_target_eos`, or `prompt_only` as in the original study.
        n_train: first so many training texts; all where None (generated text needs a number).
        n_validation: likewise for held-out texts.
        batch_size: texts per batch.
        seed: of generated text, which is never the text that `BaseTextData` makes of the same seed.
    """

    def __init__(
        self,
        model: str,
        examples: str | None,
        text: Literal["prompt_target_eos", "prompt_only"] = "prompt_target_eos",
        n_train: int | None = None,
        n_validation: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(batch_size=batch_size)
        if examples is None and None in (n_train, n_validation):
            raise ValueError("generated text needs n_train and n_validation")
        self.save_hyperparameters()
        self.examples: dict[str, list[Example]] = {}
        self.rows: dict[str, list[dict]] = {}

    def setup(self, stage: str) -> None:
        if self.rows:
            return
        self.tokenizer = load_tokenizer(self.hparams.model)
        self.examples = self._read() if self.hparams.examples else self._generate()
        for split, examples in self.examples.items():
            pairs = [encode(self.tokenizer, example) for example in examples]
            whole = self.hparams.text == "prompt_target_eos"
            self.rows[split] = [
                {"input_ids": prompt + target if whole else prompt, "example": i, "split": split}
                for i, (prompt, target) in enumerate(pairs)
            ]

    def texts(self, split: str) -> list[str]:
        """What was tokenized, for the cache's fingerprint."""
        whole = self.hparams.text == "prompt_target_eos"
        return [e.prompt + e.target if whole else e.prompt for e in self.examples[split]]

    def _read(self) -> dict[str, list[Example]]:
        h = self.hparams
        limits = {"train": h.n_train, "validation": h.n_validation}
        return {
            split: read_jsonl(Path(h.examples) / f"{split}.jsonl")[:limit]
            for split, limit in limits.items()
        }

    def _generate(self) -> dict[str, list[Example]]:
        h = self.hparams
        stream = (Example(*document, "negative") for document in base_documents(UNSEEN + h.seed))
        return {
            "validation": list(itertools.islice(stream, h.n_validation)),
            "train": list(itertools.islice(stream, h.n_train)),
        }

    def collate(self, rows: list[dict]) -> dict:
        ids = [row["input_ids"] for row in rows]
        split = rows[0]["split"]
        subsets = [SUBSETS.index(self.examples[split][row["example"]].subset) for row in rows]
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
