"""Which delta features matter: every one ablated alone, with error bars."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from delta_transcoders.activations.capture import capture
from delta_transcoders.interventions.engine import TeacherForced
from delta_transcoders.interventions.intervention import (
    Intervention,
    Term,
    Write,
    from_spec,
    layer_groups,
)
from delta_transcoders.interventions.loading import DictionarySet, relabel
from delta_transcoders.language_models import target_batch
from delta_transcoders.metrics.feature_effects import effect, ranks
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.report.figures import effects_by_rank
from delta_transcoders.report.ranking import write_ranking
from delta_transcoders.tasks.examples import Example
from lightning_modules.intervention_evaluation import Column, InterventionEvaluation, grouped


@dataclass(frozen=True)
class FeatureColumn(Column):
    """One feature of one layer, dropped or alone kept, and what that is compared with."""

    feature_layer: int
    feature: int
    ablation: Literal["dropped", "kept"]
    reference: int
    """Index of the column that differs in this feature only."""


class FeatureRanking(InterventionEvaluation):
    """Every delta feature of the ranked layers dropped alone and kept alone, all else in place.

    Around the ablated layer every layer of `full_at` has base + delta. A dropped feature is compared
    with all features there; one kept alone with none of its layer, where the delta's bias, which has no
    feature, stays on both sides. What is ranked is the change of the log-probability of the call's first
    token where the target starts.

    Writes to `output`, beside what an experiment writes: `ranking.csv`, a row for each (layer, feature,
    ablation, subset); `effects.jsonl`, the change of every example; `ranking.json`, the delta's folder.
    `python -m delta_transcoders.report.ranking` reads them.

    Args:
        delta: folder or hub id of the trained deltas.
        layers: numbers of the layers whose features are ranked.
        full_at: the layers that have base + delta: several numbers joined by `+`, or `all`.
        base_model: folder or hub id of the un-finetuned model, for deltas of its MLPs' change.
        generate: also generate text, and give the rates' changes.
        experiment, model, base_transcoders, output, max_new_tokens, rows_per_pass, dtype: see
            `InterventionEvaluation`.
    """

    def __init__(
        self,
        experiment: str,
        model: str,
        base_transcoders: str,
        delta: str,
        output: str,
        layers: list[int],
        full_at: int | str = "all",
        base_model: str | None = None,
        generate: bool = False,
        max_new_tokens: int = 64,
        rows_per_pass: int = 256,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        if not layers:
            raise ValueError("layers is empty: name the layers whose features are to be ranked")
        fixed = {
            "conditions": [],
            "deltas": [delta],
            "percentile": None,
            "finetuned_model": None,
            "controls": {},
            "reconstruction": False,
            "prompt_only": False,
            "bare_text": False,
        }
        super().__init__(
            experiment,
            model,
            base_transcoders,
            output,
            layers,
            base_model=base_model,
            generate=generate,
            max_new_tokens=max_new_tokens,
            rows_per_pass=rows_per_pass,
            dtype=dtype,
            **fixed,
        )
        # Under the command line the parent has saved only what this class was given.
        self.save_hyperparameters(fixed)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        (self.dictionaries,) = self.sets
        n_groups = len(self.hparams.layers) * self.dictionaries.d_new * len(self.subsets)
        self.mean_activation = GroupedMean(n_groups)
        self.density = GroupedMean(n_groups)

    def _layer_specs(self) -> list[int | str]:
        return [*self.hparams.layers, self.hparams.full_at]

    def _columns(self, dictionaries: DictionarySet) -> list[Column]:
        """`full`; for each ranked layer its delta gone, its features gone, and each feature's two."""
        h, n_layers = self.hparams, self.family.n_layers
        (group,) = layer_groups([h.full_at], n_layers, dictionaries.layers)
        ranked = [layer for (layer,) in layer_groups(h.layers, n_layers, group)]
        full = from_spec("full", group)
        label = full.layer_label(n_layers)
        columns: list[Column] = []
        first = len(self.columns)

        def add(intervention: Intervention, *ablation: Any) -> int:
            """Append a column and return its index."""
            ours = relabel(intervention, dictionaries.label, set(dictionaries.sources))
            kind = FeatureColumn if ablation else Column
            columns.append(kind(label, ours, dictionaries, *ablation))
            return first + len(columns) - 1

        def instead(layer: int, name: str, *delta: Term) -> Intervention:
            """`full`, but with this delta at one layer."""
            write = Write(0.0, (Term("base"), *delta))
            return Intervention(f"layer_{layer}_{name}", full.writes | {layer: write})

        all_features = add(full)
        for layer in ranked:
            add(instead(layer, "no_delta"))
            none = Term("delta", keep_features=())
            no_features = add(instead(layer, "no_features", none))
            for k in range(dictionaries.d_new):
                dropped = instead(layer, f"dropped_{k}", Term("delta", drop_features=(k,)))
                kept = instead(layer, f"kept_{k}", Term("delta", keep_features=(k,)))
                add(dropped, layer, k, "dropped", all_features)
                add(kept, layer, k, "kept", no_features)
        return columns

    def _teacher_forced(
        self, examples: list[Example], rows: list[tuple[int, int]]
    ) -> list[TeacherForced]:
        """As the parent's, but a feature that is silent on an example changes nothing and is not run.

        A feature's activations depend on the layers below only, which are full in every column: one
        pass tells for all ablations where it is active.
        """
        fires = self._firing(examples)

        def stands_for(c: int, i: int) -> tuple[int, int]:
            column = self.columns[c]
            silent = (
                isinstance(column, FeatureColumn)
                and not fires[column.feature_layer][i, column.feature]
            )
            return (column.reference, i) if silent else (c, i)

        run_as = [stands_for(c, i) for c, i in rows]
        distinct = sorted(set(run_as))
        scores = dict(zip(distinct, super()._teacher_forced(examples, distinct), strict=True))
        return [scores[row] for row in run_as]

    @torch.inference_mode()
    def _firing(self, examples: list[Example]) -> dict[int, Tensor]:
        """By layer, whether a feature is active on an example's text, bool [B, F] on the CPU; counts
        them too."""
        full = self.columns[1].intervention
        tokens = target_batch(self.tokenizer, examples)
        with self.engine.applied([full] * len(examples)):
            captured = capture(
                self.engine.bridge,
                tokens["input_ids"],
                tokens["attention_mask"],
                full.layers,
                self.engine.site,
            )
        rows_N = captured.rows
        subset_B = torch.tensor(
            [self.subsets.index(e.subset) for e in examples], device=self.device
        )
        fires = {}
        for position, layer in enumerate(self.hparams.layers):
            x_ND, _ = captured.activations[layer]
            _, a_NF = self.dictionaries.sources["delta"][layer](x_ND, None)
            n_features = a_NF.shape[1]
            fires_BF = torch.zeros(len(examples), n_features, device=self.device)
            fires_BF.index_add_(0, rows_N, (a_NF > 0).float())
            fires[layer] = (fires_BF > 0).cpu()
            feature_F = position * n_features + torch.arange(n_features, device=self.device)
            groups_NF = feature_F * len(self.subsets) + subset_B[rows_N][:, None]
            self.mean_activation.update(groups_NF.flatten(), a_NF.flatten())
            self.density.update(groups_NF.flatten(), (a_NF > 0).flatten().double())
        return fires

    def on_test_epoch_end(self) -> None:
        shape = (len(self.hparams.layers), self.dictionaries.d_new, len(self.subsets))
        # Computed on every rank: the sums are gathered.
        self.activity = {
            "mean_activation": self.mean_activation.compute().reshape(shape).cpu(),
            "density": self.density.compute().reshape(shape).cpu(),
        }
        super().on_test_epoch_end()

    def _log_row(self, row: dict[str, Any], column: Column) -> None:
        # Thousands of curves with one point each would bury the references.
        if not isinstance(column, FeatureColumn):
            super()._log_row(row, column)

    def _write(self, folder: Path, table: list[dict], records: list[dict]) -> None:
        rows, effects = self._effects(records)
        write_ranking(folder, rows, effects, self.hparams.delta)
        self._write_tables(folder, table, records)
        self._write_figures(folder, {"ranking": effects_by_rank(rows)})

    def _effects(self, records: list[dict]) -> tuple[list[dict], list[dict]]:
        """The ranking's rows, and each row's change of every example."""
        by_group = grouped(records)
        rows, effects = [], []
        lists = defaultdict(list)
        for c, column in enumerate(self.columns):
            if not isinstance(column, FeatureColumn):
                continue
            position = self.hparams.layers.index(column.feature_layer)
            for s, subset in enumerate(self.subsets):
                ablated, reference = by_group[c, subset], by_group[column.reference, subset]
                where = {
                    "layer": column.feature_layer,
                    "feature": column.feature,
                    "ablation": column.ablation,
                    "subset": subset,
                }
                row = where | {"n_examples": len(ablated)} | effect(ablated, reference)
                for name, values in self.activity.items():
                    row[name] = float(values[position, column.feature, s])
                rows.append(row)
                lists[column.feature_layer, column.ablation, subset].append(row)
                pairs = zip(ablated, reference, strict=True)
                changes = [ours["call_logprob"] - theirs["call_logprob"] for ours, theirs in pairs]
                effects.append(where | {"d_call_logprob": changes})
        for members in lists.values():
            order = ranks([row["d_call_logprob"] for row in members])
            for row, rank in zip(members, order, strict=True):
                row["rank"] = rank
        return rows, effects
