"""The texts that a delta was trained on, and evaluation prompts beside them, for feature statistics."""

from __future__ import annotations

from dataclasses import replace

from jsonargparse.typing import PositiveInt

from datamodules.activation_texts import ActivationTexts
from datamodules.evaluation_prompts import EvaluationPrompts
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.features.feature import HELD_OUT
from delta_transcoders.features.texts import Subset, TextRow
from delta_transcoders.fingerprints import check_hash, hash_texts, tokenizer_fingerprint
from delta_transcoders.tasks.task import Task


class FeatureTexts(EvaluationPrompts):
    """Batches of evaluation prompts, which no delta has seen; and the cached texts' tokens beside them.

    Attributes:
        cache: what the delta was trained on.
        text_subsets: of all texts, the cached ones' first.
        text_rows: all texts, the cached ones' first, in the order of their `example_ids`.
        n_cached: how many they are.

    Args:
        cache: folder that `ActivationWriter` wrote.
        examples: folder with `train.jsonl` and `validation.jsonl`, which it was made of.
        jsonl, model, task, subsets, n_per_subset, batch_size: see `EvaluationPrompts`.

    Raises:
        ValueError: the cache is of other examples, or of another tokenizer.
    """

    def __init__(
        self,
        cache: str,
        examples: str,
        jsonl: str,
        model: str,
        task: Task,
        subsets: list[str] | None = None,
        n_per_subset: PositiveInt | None = None,
        batch_size: PositiveInt = 100,
    ) -> None:
        super().__init__(jsonl, model, task, subsets, n_per_subset, batch_size)
        self.save_hyperparameters(ignore=["task"])
        self.cache = ActivationCache(cache)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h, meta = self.hparams, self.cache.meta
        self.cache.expect(tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer))
        n_train, n_validation = (meta.n_examples[split] for split in ("train", "validation"))
        trained = ActivationTexts(
            h.model, self.task, h.examples, meta.text_policy, n_train, n_validation
        )
        trained.setup("test")
        problem = f"the cache {h.cache} was made of other texts"
        found = hash_texts(trained.texts("train"))
        check_hash(problem, meta.texts_sha256["train"], h.examples, found)
        if meta.text_policy == "prompt_only":
            self.rows = [
                row._replace(tokens=replace(row.tokens, target_ids=())) for row in self.rows
            ]
        names = list(trained.subsets)
        clashing = [f"{name}{HELD_OUT}" if name in names else name for name in self.subsets]
        self.text_subsets = [Subset(name, False) for name in names]
        self.text_subsets += [Subset(name, True) for name in clashing]
        self.n_cached = n_train
        self.text_rows = [
            TextRow(
                row["input_ids"],
                row["n_prompt"],
                names.index(trained.examples["train"][i].subset),
                str(i),
            )
            for i, row in enumerate(trained.rows["train"])
        ]
        self.text_rows += [
            TextRow(
                [*row.tokens.prompt_ids, *row.tokens.target_ids],
                len(row.tokens.prompt_ids),
                len(names) + self.subsets.index(row.example.subset),
                str(row.index),
            )
            for row in self.rows
        ]
