"""Spillover: what a finetune, and a delta in its place, do to text that has nothing to do with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.interventions.intervention import RAW, Intervention, from_spec
from delta_transcoders.interventions.loading import DictionarySet, relabel
from delta_transcoders.language_models import (
    IGNORE,
    check_model_source,
    check_same_architecture,
    load_model,
    load_tokenizer,
    supervised_logits,
    target_batch,
)
from delta_transcoders.metrics.intervals import bootstrap_sums
from delta_transcoders.metrics.pooling import Record, interval
from lightning_modules.interventions import Column, InterventionModule

BASE_MODEL = Intervention("base_model", {})
"""The whole base model, which everything here is compared with; no intervention in the finetuned one."""


class Spillover(InterventionModule):
    """KL and ΔCE to the base model, on general text (`tasks.paragraphs.Paragraphs`) or other examples.

    Writes `metrics.csv` with a row for the base model, for the finetuned model (`raw`: the finetune's own
    spillover) and for each condition, all layers with a delta together. `mean_kl` is
    KL(base model ‖ condition) per target token, and `dce` the condition's cross-entropy minus the base
    model's, with their intervals.

    Args:
        model: folder or hub id of the finetuned model.
        base_model: folder or hub id of the un-finetuned model.
        delta: folder or hub id of the trained deltas.
        output: folder of the results.
        conditions: as of `InterventionEvaluation`; in the finetuned model.
        transplant: they are in the base model instead, for deltas of finetuning's change to its MLPs alone.
        base_transcoders: folder or hub id of the base dictionaries, where the deltas correct any.
        experiment, dtype: see `InterventionEvaluation`.

    Raises:
        ValueError: a transplant of residual deltas, or of another pair of models
            (`interventions.loading.load_transplant`); the condition `transplant` in the finetuned model.
    """

    whole_models = (BASE_MODEL, RAW)

    def __init__(
        self,
        model: str,
        base_model: str,
        delta: str,
        output: str,
        conditions: list[str | dict],
        transplant: bool = False,
        base_transcoders: str | None = None,
        experiment: str = "spillover",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (model, base_model):
            check_model_source(source)
        if "transplant" in conditions and not transplant:
            raise ValueError(
                "conditions: 'transplant' adds the delta to the base model's MLPs, and these are the "
                "finetuned model's: give transplant: true"
            )
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        h = self.hparams
        check_same_architecture(h.base_model, h.model)
        load_tokenizer(h.model, h.base_model)  # refuses two that differ
        super().setup(stage)
        self.opening = None  # of a task's own examples too: only the text itself is measured
        self.base = load_model(h.base_model, h.dtype)

    def load_sets(self) -> list[DictionarySet]:
        h = self.hparams
        if h.transplant:
            return self.load_transplants([h.delta], h.model, h.base_model)
        return self.load_deltas([h.delta])

    def columns_of(self, dictionaries: DictionarySet) -> list[Column]:
        """Every condition on all layers that have a delta."""
        columns = []
        for spec in self.hparams.conditions:
            intervention = from_spec(spec, dictionaries.layers)
            ours = relabel(intervention, dictionaries.label, set(dictionaries.sources))
            columns.append(Column(ours.layer_label(self.family.n_layers), ours, dictionaries))
        return columns

    def on_test_start(self) -> None:
        super().on_test_start()
        self.finetuned = self.engine
        if self.hparams.transplant:
            self.engine = self.engine_of(self.base)

    @torch.inference_mode()
    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        # A piece is cut wherever it is full: EOS, which ends a target, does not belong to the text.
        batch = [
            row._replace(tokens=replace(row.tokens, target_ids=row.tokens.target_ids[:-1]))
            for row in batch
        ]
        tokens = target_batch([row.tokens for row in batch], self.tokenizer.pad_token_id)
        tokens = {f"{name}_BT": tensor.to(self.device) for name, tensor in tokens.items()}
        n_tokens = [len(row.tokens.target_ids) for row in batch]
        base_NV = supervised_logits(self.base, **tokens)[0].log_softmax(-1)
        for index, column in enumerate(self.columns):
            nll_N, kl_N = self._measured(column.intervention, base_NV, tokens, len(batch))
            sums = [
                torch.stack([part.double().sum() for part in of_N.split(n_tokens)]).tolist()
                for of_N in (nll_N, kl_N)
            ]
            self.records.update(
                [
                    self.record(index, row, None, nll, kl=kl, active={}, n_replaced=0)
                    for row, nll, kl in zip(batch, *sums, strict=True)
                ]
            )

    def cells(
        self, column: int, subset: str, records: list[Record], raw: list[Record]
    ) -> dict[str, Any]:
        cells = super().cells(column, subset, records, raw)
        sums = [[r[name] for r in records] for name in ("kl", "n_tokens")]
        wordings = [r["wording"] for r in records]
        per_token = bootstrap_sums(sums, lambda s: s[0] / s[1], wordings=wordings)
        return cells | interval("mean_kl", per_token)

    def _measured(
        self, intervention: Intervention, base_NV: Tensor, tokens: dict[str, Tensor], n_rows: int
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and KL(base ‖ condition) of each target token, in nats."""
        if intervention is BASE_MODEL:
            logprobs_NV, labels_N = base_NV, tokens["labels_BT"][:, 1:]
            labels_N = labels_N[labels_N != IGNORE]
        else:
            engine = self.finetuned if intervention is RAW else self.engine
            with engine.applied([intervention] * n_rows):
                logits_NV, labels_N = supervised_logits(engine.model, **tokens)
            logprobs_NV = logits_NV.log_softmax(-1)
        kl_N = (base_NV.exp() * (base_NV - logprobs_NV)).sum(-1)
        return -logprobs_NV.gather(1, labels_N[:, None])[:, 0], kl_N
