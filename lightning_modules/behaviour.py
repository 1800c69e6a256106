"""What whole models do with evaluation prompts: the finetuned one beside its base."""

from __future__ import annotations

from typing import Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import nn

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.families import family_of
from delta_transcoders.generation import greedy_texts
from delta_transcoders.language_models import (
    check_model_source,
    load_model,
    load_tokenizer,
    target_batch,
    token_nll,
)
from lightning_modules.curve_places import Place
from lightning_modules.evaluation import Evaluation


class BehaviourEvaluation(Evaluation):
    """Greedy answers and teacher-forced cross-entropy of several models on `EvaluationPrompts`.

    Writes `metrics.csv`, `metrics.json` and `generations.jsonl` to `output`.

    Args:
        models: folder or hub id by condition; `raw` is the finetuned model.
        output: folder of the results.
        max_new_tokens: longest answer.
        dtype: of the weights, `float32` or `bfloat16`.
    """

    def __init__(
        self,
        models: dict[str, str],
        output: str,
        max_new_tokens: PositiveInt = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if not models:
            raise ValueError("models is empty, expected at least one, as in {raw: FOLDER}")
        for source in models.values():
            check_model_source(source)
        self.save_hyperparameters()
        self.models = nn.ModuleDict()
        self.labels = [
            {"experiment": "behaviour", "layer": "", "condition": condition} for condition in models
        ]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h, data = self.hparams, self.trainer.datamodule
        load_tokenizer(data.hparams.model, *h.models.values())  # refuses different ones
        data.warn_of_impossible_answers(h.max_new_tokens)
        for condition, source in h.models.items():
            self.models[condition] = load_model(source, h.dtype)
            context = family_of(self.models[condition].config).context
            data.check_context(context, h.max_new_tokens)

    def places(self, column: int, subset: str) -> list[Place]:
        return [Place(self.labels[column]["condition"], f"behaviour_{subset}", "", (0,))]

    def shown_columns(self) -> dict[int, str]:
        return {column: labels["condition"] for column, labels in enumerate(self.labels)}

    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        prompts = [row.tokens.prompt_ids for row in batch]
        tokens = target_batch([row.tokens for row in batch], self.reader.tokenizer.pad_token_id)
        tokens = {f"{name}_BT": tensor.to(self.device) for name, tensor in tokens.items()}
        n_tokens = [len(row.tokens.target_ids) for row in batch]
        for column, model in enumerate(self.models.values()):
            nll_N = token_nll(model, **tokens)
            texts = greedy_texts(model, prompts, self.hparams.max_new_tokens, self.reader)
            sums = torch.stack([part.double().sum() for part in nll_N.split(n_tokens)]).tolist()
            rows = zip(batch, texts, sums, strict=True)
            self.records.update([self.record(column, *row) for row in rows])
