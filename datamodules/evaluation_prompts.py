"""Evaluation prompts from a JSONL file, each once over all ranks."""

from __future__ import annotations

import torch
from lightning import LightningDataModule

from datamodules.batching import check_positive, sharded_loader
from delta_transcoders.language_models import check_model_source, encode, load_tokenizer
from delta_transcoders.toolcalls.examples import SUBSETS, Example, read_jsonl


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
        everything = read_jsonl(jsonl)
        for subset in subsets:
            found = [e for e in everything if e.subset == subset][:n_per_subset]
            if not found:
                raise ValueError(f"{jsonl} holds no example of the subset {subset!r}")
            self.examples += found

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
