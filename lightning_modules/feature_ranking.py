"""Which delta features matter: by their attributions, and each ablated alone, with error bars."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.activations.capture import capture
from delta_transcoders.console import StudyWarning
from delta_transcoders.interventions.attribution import (
    Measure,
    largest,
    minus_kl_from,
    prefix_rows,
    target_logprob,
)
from delta_transcoders.interventions.engine import TeacherForced
from delta_transcoders.interventions.intervention import (
    Intervention,
    Term,
    Write,
    from_spec,
    layer_groups,
)
from delta_transcoders.interventions.loading import DictionarySet, relabel
from delta_transcoders.language_models import (
    TokenizedExample,
    check_model_source,
    target_batch,
)
from delta_transcoders.metrics.feature_effects import ranks
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.metrics.pooling import Record, effect_cells, measures_of
from delta_transcoders.report import markdown
from delta_transcoders.report.columns import ranked_measures
from delta_transcoders.report.figures import effects_by_rank
from delta_transcoders.report.ranking import write_ranking
from lightning_modules.attribution import in_half, mean_attributions
from lightning_modules.interventions import Column, InterventionModule
from lightning_modules.loggers import tensorboards
from lightning_modules.sufficiency import check_half


@dataclass(frozen=True)
class FeatureColumn(Column):
    """One feature of one layer, dropped or alone kept, and what that is compared with."""

    feature_layer: int
    feature: int
    ablation: Literal["dropped", "kept"]
    reference: int
    """Index of the column that differs in this feature only."""


class FeatureRanking(InterventionModule):
    """Every delta feature of the ranked layers dropped alone and kept alone, all else in place.

    Every layer around the ablated one has base + delta. A dropped feature is compared with all features
    there; one kept alone with none of its layer, where the delta's bias, which has no feature, stays on both
    sides. What is ranked is the change of the log-probability of what the behaviour begins with, or of the
    cross-entropy where it begins with nothing in particular; `rank_…` ranks by the others. A feature
    that acts later in an answer changes nothing where it starts: cross-entropy and attributions find it.

    Before all that, every feature is attributed to by integrated gradients over gates, from no feature at all
    to `full`, on the wordings of half A (`wordings.half_of`), in nats of an example: `ig_target` by
    log p(target), `ig_kl` by −KL(raw ‖ ·), `ig_prefix` by log p of all tokens that begin the behaviour, which
    is missing where a task has none.

    Writes to `output`, beside what an experiment writes: `ranking.csv`, a row for each (layer, feature,
    ablation, subset); `effects.jsonl`, the change of every example; `ranking.json`, the delta's folder and
    fingerprints. `python -m delta_transcoders.report.ranking` reads them.

    Args:
        delta: folder or hub id of the trained deltas.
        layers: numbers of the layers whose features are ranked; all that have a delta if None.
        first: ablate so many alone, those with the largest |ig_target| (its mean over subsets), and score
            them on the wordings of half B, which had no part in the choice; all, on all wordings, if None.
        steps: of the attributions' path.
        base_model: folder or hub id of the un-finetuned model, for deltas of its MLPs' change.
        generate: also generate text, and give the rates' changes.
        experiment, model, base_transcoders, output, max_new_tokens, rows_per_pass, dtype: see
            `InterventionEvaluation`.
    """

    def __init__(
        self,
        experiment: str,
        model: str,
        delta: str,
        output: str,
        layers: list[int] | None = None,
        first: PositiveInt | None = None,
        steps: PositiveInt = 8,
        base_transcoders: str | None = None,
        base_model: str | None = None,
        generate: bool = False,
        max_new_tokens: PositiveInt = 64,
        rows_per_pass: PositiveInt = 256,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if layers == []:
            raise ValueError("layers is empty: name the layers whose features are to be ranked")
        for source in filter(None, (model, base_model)):
            check_model_source(source)
        self.save_hyperparameters()
        self.chosen: dict[int, tuple[int, ...]] | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h = self.hparams
        if not any(row.tokens.target_ids for row in self.trainer.datamodule.rows):
            raise ValueError(
                "the examples have no targets, and so there is nothing to rank features by"
            )
        sizes = [self.dictionaries.sources["delta"][layer].n_features for layer in self.ranked]
        if h.first is not None and h.first > sum(sizes):
            raise ValueError(
                f"first is {h.first}, but layers {self.ranked} have {sum(sizes)} features together"
            )
        if h.first is not None:
            for half, does in (("A", "choose features by"), ("B", "score them")):
                check_half(self.trainer.datamodule, half, does, self.subsets)
        starts = itertools.accumulate(sizes[:-1], initial=0)
        self.start_of = dict(zip(self.ranked, starts, strict=True))
        self.mean_activation = GroupedMean(sum(sizes) * len(self.subsets))
        self.density = GroupedMean(sum(sizes) * len(self.subsets))

    def load_sets(self) -> list[DictionarySet]:
        (self.dictionaries,) = sets = self.load_deltas([self.hparams.delta])
        self.ranked = self.hparams.layers or list(self.dictionaries.layers)
        return sets

    def on_test_start(self) -> None:
        super().on_test_start()
        rows = in_half(self.task, self.trainer.datamodule.rows, "A")
        self.attributions = {
            "ig_target": self._attributed(rows, lambda tokens: target_logprob),
            "ig_kl": self._attributed(rows, lambda t: minus_kl_from(self.engine.logprobs(t))),
        }
        examples, tokens = [r.example for r in rows], [r.tokens for r in rows]
        if (prefixed := prefix_rows(self.task, examples, tokens)) is not None:
            rows = [r._replace(tokens=p) for r, p in zip(rows, prefixed, strict=True)]
            self.attributions["ig_prefix"] = self._attributed(rows, lambda tokens: target_logprob)
        else:
            rank_zero_warn(
                f"{type(self.task).__name__}: no `opening` that all answers with the behaviour begin with; "
                "features are ranked by cross-entropy and KL, without ig_prefix",
                category=StudyWarning,
            )
        if self.hparams.first is not None:
            scores = {
                layer: self.attributions["ig_target"][layer].abs().nanmean(0).nan_to_num()
                for layer in self.ranked
            }
            self.chosen = largest(scores, self.hparams.first)
            self.columns = self.columns[: len(self.whole_models)]
            self.columns += self.columns_of(self.dictionaries)
            self.label_columns()

    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        if self.hparams.first is not None:
            batch = in_half(self.task, batch, "B")
        if batch:
            super().test_step(batch, batch_idx)

    def _attributed(
        self, rows: list[PromptRow], measure_for: Callable[[list[TokenizedExample]], Measure]
    ) -> dict[int, Tensor]:
        """By layer, each subset's mean attributions, [S, F]."""
        full = self.columns[1].intervention
        source, steps = f"delta@{self.dictionaries.label}", self.hparams.steps
        return mean_attributions(
            self.trainer, self.engine, rows, self.subsets, full, source, measure_for, steps
        )

    def columns_of(self, dictionaries: DictionarySet) -> list[Column]:
        """`full`; for each layer with features to ablate its delta gone, its features gone, and each
        feature's two."""
        groups = layer_groups(self.ranked, self.family.n_layers, dictionaries.layers)
        full = from_spec("full", dictionaries.layers)
        label = full.layer_label(self.family.n_layers)
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
        for (layer,) in groups:
            everything = range(dictionaries.sources["delta"][layer].n_features)
            features = everything if self.chosen is None else self.chosen[layer]
            if not features:
                continue
            add(instead(layer, "no_delta"))
            none = Term("delta", keep_features=())
            no_features = add(instead(layer, "no_features", none))
            for k in features:
                dropped = instead(layer, f"dropped_{k}", Term("delta", drop_features=(k,)))
                kept = instead(layer, f"kept_{k}", Term("delta", keep_features=(k,)))
                add(dropped, layer, k, "dropped", all_features)
                add(kept, layer, k, "kept", no_features)
        return columns

    def teacher_forced(
        self, batch: list[PromptRow], pairs: list[tuple[int, int]]
    ) -> list[TeacherForced]:
        """As the parent's, but a feature that is silent on an example changes nothing and is not run.

        A feature's activations depend on the layers below only, which are full in every column: one
        pass tells for all ablations where it is active.
        """
        fires = self._firing(batch)

        def stands_for(c: int, i: int) -> tuple[int, int]:
            column = self.columns[c]
            silent = (
                isinstance(column, FeatureColumn)
                and not fires[column.feature_layer][i, column.feature]
            )
            return (column.reference, i) if silent else (c, i)

        run_as = [stands_for(c, i) for c, i in pairs]
        distinct = sorted(set(run_as))
        scores = dict(zip(distinct, super().teacher_forced(batch, distinct), strict=True))
        return [scores[pair] for pair in run_as]

    @torch.inference_mode()
    def _firing(self, batch: list[PromptRow]) -> dict[int, Tensor]:
        """By layer, whether a feature is active on an example's text, bool [B, F] on the CPU; counts
        them too."""
        full = self.columns[1].intervention
        tokens = target_batch([row.tokens for row in batch], self.tokenizer.pad_token_id)
        with self.engine.applied([full] * len(batch)):
            captured = capture(
                self.engine.bridge,
                tokens["input_ids"],
                tokens["attention_mask"],
                full.layers,
                self.engine.site,
            )
        rows_N = captured.rows
        subset_B = torch.tensor(
            [self.subsets.index(row.example.subset) for row in batch], device=self.device
        )
        fires = {}
        for layer in self.ranked:
            x_ND, _ = captured.activations[layer]
            _, a_NF = self.dictionaries.sources["delta"][layer](x_ND, None)
            n_features = a_NF.shape[1]
            fires_BF = torch.zeros(len(batch), n_features, device=self.device)
            fires_BF.index_add_(0, rows_N, (a_NF > 0).float())
            fires[layer] = (fires_BF > 0).cpu()
            feature_F = self.start_of[layer] + torch.arange(n_features, device=self.device)
            groups_NF = feature_F * len(self.subsets) + subset_B[rows_N][:, None]
            self.mean_activation.update(groups_NF.flatten(), a_NF.flatten())
            self.density.update(groups_NF.flatten(), (a_NF > 0).flatten().double())
        return fires

    def on_test_epoch_end(self) -> None:
        shape = (-1, len(self.subsets))
        # Computed on every rank: the sums are gathered.
        self.activity = {
            "mean_activation": self.mean_activation.compute().reshape(shape).cpu(),
            "density": self.density.compute().reshape(shape).cpu(),
        }
        super().on_test_epoch_end()

    def is_logged(self, column: int) -> bool:
        return not isinstance(self.columns[column], FeatureColumn)

    def write(self, folder: Path, table: list[dict], records: list[Record]) -> None:
        super().write(folder, table, records)
        rows, effects = self._effects(records)
        deltas = self.dictionaries.sources["delta"]
        fingerprints = {layer: deltas[layer].transcoder.fingerprint() for layer in self.ranked}
        write_ranking(folder, rows, effects, self.hparams.delta, fingerprints)
        self.write_figures(folder, {"ranking": effects_by_rank(rows)})
        for tensorboard in tensorboards(self.trainer):
            tensorboard.add_text("features/top", markdown.features(rows))

    def _effects(self, records: list[Record]) -> tuple[list[dict], list[dict]]:
        """The ranking's rows, and each row's change of every example."""
        by_group, measures = self.by_group(records), measures_of(records)
        ranked_by = f"d_{self.opening}" if self.opening else "dce"
        rows, effects = [], []
        lists = defaultdict(list)
        for c, column in enumerate(self.columns):
            if not isinstance(column, FeatureColumn):
                continue
            position = self.start_of[column.feature_layer] + column.feature
            for s, subset in enumerate(self.subsets):
                ablated, reference = by_group[c, subset], by_group[column.reference, subset]
                where = {
                    "layer": column.feature_layer,
                    "feature": column.feature,
                    "ablation": column.ablation,
                    "subset": subset,
                }
                row = where | {"n_examples": len(ablated)}
                row |= effect_cells(ablated, reference, measures, self.opening)
                for name, values in self.activity.items():
                    row[name] = float(values[position, s])
                for name, by_layer in self.attributions.items():
                    row[name] = float(by_layer[column.feature_layer][s, column.feature])
                rows.append(row)
                lists[column.feature_layer, column.ablation, subset].append(row)
                pairs = zip(ablated, reference, strict=True)
                changes = [self._score(ours) - self._score(theirs) for ours, theirs in pairs]
                effects.append(where | {ranked_by: changes})
        for members in lists.values():
            for measure in (*ranked_measures(members[0]), *self.attributions):
                name = "rank" if measure == ranked_by else f"rank_{measure}"
                order = ranks([row[measure] for row in members])
                for row, rank in zip(members, order, strict=True):
                    row[name] = None if math.isnan(row[measure]) else rank
        return rows, effects

    def _score(self, record: Record) -> float:
        """What an example adds to the effect that features are ranked by."""
        if self.opening:
            return record[self.opening]
        return record["nll"] / record["n_tokens"] if record["n_tokens"] else 0.0
