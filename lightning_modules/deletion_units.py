"""What is deleted for a deletion matrix: features of a delta, or singular components of a weight change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.end_to_end.student import WRITES
from delta_transcoders.families import family_of
from delta_transcoders.fingerprints import check_hash, model_fingerprint
from delta_transcoders.generation import greedy_texts
from delta_transcoders.interventions.attribution import attribute
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import Intervention, Write
from delta_transcoders.interventions.loading import load_delta_set, load_mlps, load_transplant
from delta_transcoders.language_models import (
    check_model_source,
    load_model,
    load_tokenizer,
    target_batch,
    token_nll,
)
from delta_transcoders.weight_patches.attribution import attribute_components
from delta_transcoders.weight_patches.baselines import all_components, differences
from delta_transcoders.weight_patches.patch import load_patch, patched
from lightning_modules.deletion_matrix import DeletionMatrix


class FeatureDeletion(DeletionMatrix):
    """Units are the features of a delta, in the model that it was trained for.

    That is the finetuned model with base + delta in place of the MLPs, or with `transplant` the base model
    with the delta added to its MLPs.

    Args:
        base_model, finetuned_model: folders or hub ids.
        delta: folder or hub id of the deltas.
        base_transcoders: folder or hub id of the base dictionaries, where the deltas correct any.
        transplant: see above.
        dtype: of the model's weights.
        kwargs: of `DeletionMatrix`.
    """

    def __init__(
        self,
        base_model: str,
        finetuned_model: str,
        delta: str,
        base_transcoders: str | None = None,
        transplant: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        for source in (base_model, finetuned_model):
            check_model_source(source)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h, data = self.hparams, self.trainer.datamodule
        self.tokenizer = load_tokenizer(data.hparams.model, h.base_model, h.finetuned_model)
        finetuned = load_model(h.finetuned_model, h.dtype)
        if h.transplant:
            self.model = load_model(h.base_model, h.dtype)
            hashes = model_fingerprint(finetuned), model_fingerprint(self.model)
            self.deltas = load_transplant(h.delta, *hashes)
        else:
            self.model = finetuned
            self.deltas = load_delta_set(
                h.delta,
                h.base_transcoders,
                finetuned,
                lambda site: load_mlps(h.base_model, h.dtype, site),
            )
            if self.deltas.target == "end_to_end_transplant":
                raise ValueError(f"{h.delta} was trained in the base model: set transplant")
        data.check_context(family_of(self.model.config).context, h.max_new_tokens)
        by_name = self.deltas.sources.values()
        self.sources = nn.ModuleList(s for by_layer in by_name for s in by_layer.values())
        self.features = [
            (layer, feature)
            for layer, source in sorted(self.deltas.sources["delta"].items())
            for feature in range(source.n_features)
        ]
        self.n_units = len(self.features)

    def unit_name(self, unit: int) -> str:
        return "layer_{}/feature_{}".format(*self.features[unit])

    def student(self, deleted: Sequence[int] = ()) -> Intervention:
        """The model that the delta was trained for, without some of its units."""
        dropped = [self.features[unit] for unit in deleted]
        writes = {}
        for layer in self.deltas.sources["delta"]:
            features = tuple(feature for of, feature in dropped if of == layer)
            write = WRITES["transplant" if self.hparams.transplant else "dictionary"]
            *others, delta = write.terms
            dropped_delta = replace(delta, drop_features=features)
            writes[layer] = Write(write.keep, (*others, dropped_delta))
        return Intervention("student", writes)

    def on_test_start(self) -> None:
        # The bridge must find the weights on the device where Lightning has put them.
        bridge = boot_bridge(self.model, self.tokenizer)
        sources, site = self.deltas.sources, self.deltas.site
        self.engine = InterventionEngine(bridge, self.tokenizer, sources, site)
        super().on_test_start()

    def attributed(self, rows: Sequence[PromptRow]) -> Tensor:
        by_layer = attribute(self.engine, [r.tokens for r in rows], self.student(), "delta")
        return torch.cat([by_layer[layer] for layer in sorted(by_layer)], 1)

    def answers(
        self, rows: Sequence[PromptRow], deleted: Sequence[int]
    ) -> tuple[list[str], list[float]]:
        interventions = [self.student(deleted)] * len(rows)
        scores = self.engine.teacher_forced([row.tokens for row in rows], interventions)
        prompts = [row.tokens.prompt_ids for row in rows]
        texts = self.engine.generate(
            prompts, interventions, self.hparams.max_new_tokens, self.reader
        )
        return texts, [score.nll for score in scores]


class ComponentDeletion(DeletionMatrix):
    """Units are the singular components of the finetune's change of the weights, added to the base model.

    Args:
        base_model, finetuned_model: folders or hub ids.
        patch: folder of one patch of `WeightRefit`; all components of the change itself where None.
        dtype: of the model's weights.
        kwargs: of `DeletionMatrix`.
    """

    def __init__(
        self,
        base_model: str,
        finetuned_model: str,
        patch: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        for source in (base_model, finetuned_model):
            check_model_source(source)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h, data = self.hparams, self.trainer.datamodule
        self.tokenizer = load_tokenizer(data.hparams.model, h.base_model, h.finetuned_model)
        self.model = load_model(h.base_model, h.dtype).requires_grad_(False)
        data.check_context(family_of(self.model.config).context, h.max_new_tokens)
        finetuned = load_model(h.finetuned_model, h.dtype)
        if h.patch is None:
            self.patch = all_components(differences(self.model, finetuned))
        else:
            self.patch, config = load_patch(h.patch)
            recorded = config.base_fingerprint, config.finetuned_fingerprint
            for hash_, model in zip(recorded, (self.model, finetuned), strict=True):
                problem = f"{h.patch} is for another model"
                check_hash(problem, hash_, "this one", model_fingerprint(model))
        self.components = [
            f"{path}/component_{c}"
            for path, layer in self.patch.items()
            for c in range(layer.n_components)
        ]
        self.n_units = len(self.components)

    def unit_name(self, unit: int) -> str:
        return self.components[unit]

    def attributed(self, rows: Sequence[PromptRow]) -> Tensor:
        tokens = [row.tokens for row in rows]
        found = attribute_components(self.model, self.patch, tokens, self.tokenizer.pad_token_id)
        return torch.cat(list(found.values()), 1)

    def answers(
        self, rows: Sequence[PromptRow], deleted: Sequence[int]
    ) -> tuple[list[str], list[float]]:
        gate_U = torch.ones(self.n_units, device=self.device)
        gate_U[list(deleted)] = 0
        sizes = [layer.n_components for _, layer in self.patch.items()]
        gates = dict(zip(self.patch.paths, gate_U.split(sizes), strict=True))
        tokens = target_batch([row.tokens for row in rows], self.tokenizer.pad_token_id)
        tokens = {f"{name}_BT": tensor.to(self.device) for name, tensor in tokens.items()}
        prompts = [row.tokens.prompt_ids for row in rows]
        with patched(self.model, self.patch, gates):
            nll_N = token_nll(self.model, **tokens)
            texts = greedy_texts(self.model, prompts, self.hparams.max_new_tokens, self.reader)
        parts = nll_N.split([len(row.tokens.target_ids) for row in rows])
        return texts, [part.double().sum().item() for part in parts]
