"""Where drawn features and neurons fire: on the half of the wordings that their rules are written from, and
on the other once these are committed."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from lightning import LightningModule
from torch import Tensor

from datamodules.evaluation_prompts import EvaluationPrompts, PromptRow
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.delta import load_deltas
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.features.rules.attribution import attributed, neurons_read
from delta_transcoders.features.rules.committed import committed, rules_sha256
from delta_transcoders.features.rules.firing import Text, write_firing
from delta_transcoders.features.rules.language import read_rules
from delta_transcoders.features.rules.units import (
    Unit,
    draw,
    margins,
    read_units,
    with_thresholds,
)
from delta_transcoders.features.texts import shown_tokens
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.language_models import (
    check_model_source,
    check_same_architecture,
    load_model,
    load_tokenizer,
    target_batch,
)
from lightning_modules.attribution import in_half
from lightning_modules.outputs import stage_output

say = logging.getLogger("delta_transcoders").info


class UnitFiring(LightningModule):
    """Draws features of a delta and as many neurons on half A, or reads drawn ones on half B.

    Without `rules`: of the features that fire on half A of the wordings (`wordings.half_of`), and of all
    neurons of the delta's layers, those with the largest attributions there (`features.rules.attribution`)
    and as many others at random. A feature fires where its activation is above 0. A neuron fires above the
    threshold that gives it the rate on half A of the feature that it stands beside, counted from its largest
    activation, which is made positive. Writes all tokens of half A: `features.rules.firing`.

    With `rules`: the same units on half B, at the same thresholds; refused unless units and rules are
    committed.

    Every activation is of the finetuned model's own run, on the evaluation prompts and their targets.

    Args:
        model: folder or hub id of the finetuned model.
        base_model: folder or hub id of the un-finetuned model.
        delta: folder or hub id of the trained deltas, of any target.
        output: folder of the result.
        rules: folder that `python -m delta_transcoders.features.rules draw` wrote, to open half B for.
        n: how many of each kind are drawn by attribution, and how many at random.
        seed: of the latter.
        rows_per_pass: of attributions; a pass holds all neurons of all layers three times.
        dtype: of both models' weights.

    Raises:
        ValueError: rules that are not committed or not valid; units of another model or delta; no example in
            the half; several processes.
    """

    def __init__(
        self,
        model: str,
        base_model: str,
        delta: str,
        output: str,
        rules: str | None = None,
        n: PositiveInt = 10,
        seed: int = 0,
        rows_per_pass: PositiveInt = 8,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (model, base_model):
            check_model_source(source)
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        h, data = self.hparams, self.trainer.datamodule
        if self.trainer.world_size > 1:
            raise ValueError(
                f"units are drawn by one process, not {self.trainer.world_size}: give --trainer.devices 1"
            )
        self.data: EvaluationPrompts = data
        self.half = "A" if h.rules is None else "B"
        self.opened_for = None if h.rules is None else self._check_rules(h.rules)
        check_same_architecture(h.base_model, h.model)
        self.tokenizer = load_tokenizer(data.hparams.model, h.model, h.base_model)
        if not in_half(data.task, data.rows, self.half):
            raise ValueError(
                f"no prompt of {data.hparams.jsonl} is in half {self.half} of the wordings: give more of "
                "them"
            )
        self.model = load_model(h.model, h.dtype).requires_grad_(False)
        # Gradients flow from here on; those of other weights would only take memory.
        self.model.get_input_embeddings().requires_grad_(True)
        self.family = family_of(self.model.config)
        data.check_context(self.family.context, 0)
        self.info = self._load_deltas()
        self.base = None
        if h.rules is None:
            self.base = load_model(h.base_model, h.dtype).requires_grad_(False)
        self.units: list[Unit] = []
        if h.rules is not None:
            self.units, drawn = read_units(h.rules)
            for what, name in (("model", "model_fingerprint"), ("delta", "delta_fingerprints")):
                if drawn.get(name) != self.info[name]:
                    raise ValueError(
                        f"the units in {h.rules} were drawn from another {what} than {h[what]}: give that "
                        f"one (--model.{what}), or draw anew"
                    )
            self.info = drawn
        self.found: dict[int, np.ndarray] = {}

    def _check_rules(self, folder: str) -> str:
        """That they may be scored, before anything is opened; their hash."""
        units, _ = read_units(folder)
        read_rules(folder, [unit.name for unit in units])
        say(f"  half B is opened for the rules of commit {committed(folder)[:12]}")
        return rules_sha256(folder)

    def _load_deltas(self) -> dict[str, Any]:
        """Load `deltas` and `site`; what units are drawn from."""
        fingerprint = model_fingerprint(self.model)
        loaded = load_deltas(self.hparams.delta, fingerprint)
        self.deltas = {layer: delta for layer, (_, delta, _) in loaded.items()}
        self.site = HOOK_SITES[next(iter(loaded.values()))[2].hook_site]
        fingerprints = {str(layer): delta.fingerprint() for layer, delta in self.deltas.items()}
        return {
            "delta": self.hparams.delta,
            "model_fingerprint": fingerprint,
            "delta_fingerprints": fingerprints,
        }

    def on_test_start(self) -> None:
        for delta in self.deltas.values():
            delta.to(self.device)
        # Before the bridge, which takes the model apart.
        self.downs = {layer: self.family.down(self.model, layer) for layer in self.deltas}
        with torch.inference_mode(False):  # what it copies may be differentiated through
            self.bridge = boot_bridge(self.model, self.tokenizer)
        if self.half == "A":
            self.units = self._drawn()
            self.base = None

    def _drawn(self) -> list[Unit]:
        h, data = self.hparams, self.data
        rows = [r for r in in_half(data.task, data.rows, "A") if r.tokens.target_ids]
        if not rows:
            raise ValueError("no prompt of half A has a target: there is nothing to attribute to")
        say(f"  attributions on {len(rows)} prompts of half A")
        # Of each layer the sums by subset, of features, neurons, and of how often features fire.
        sums: dict[int, tuple[Tensor, ...]] = {}
        subset_E = torch.tensor([data.subsets.index(row.example.subset) for row in rows])
        for start in range(0, len(rows), h.rows_per_pass):
            part = slice(start, start + h.rows_per_pass)
            tokens = [row.tokens for row in rows[part]]
            found = attributed(self.bridge, self.downs, self.base, self.deltas, self.site, tokens)
            for layer, of_layer in found.items():
                if layer not in sums:
                    sums[layer] = tuple(
                        torch.zeros(len(data.subsets), of_BF.shape[1], dtype=torch.float64)
                        for of_BF in of_layer
                    )
                for sums_SF, of_BF in zip(sums[layer], of_layer, strict=True):
                    sums_SF.index_add_(0, subset_E[part], of_BF.double().cpu())
        counts_S = torch.bincount(subset_E, minlength=len(data.subsets))
        features, neurons = {}, {}
        for layer, (features_SF, neurons_SF, fires_SF) in sums.items():
            scores = (_mean_size(sums_SF, counts_S) for sums_SF in (features_SF, neurons_SF))
            of_features, of_neurons = scores
            fires_F = fires_SF.sum(0) > 0
            features |= {(layer, k): v for k, v in enumerate(of_features) if fires_F[k]}
            neurons |= {(layer, k): v for k, v in enumerate(of_neurons)}
        return draw(features, neurons, h.n, h.seed)

    @torch.inference_mode()
    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        batch = in_half(self.data.task, batch, self.half)
        if not batch:
            return
        tokens = target_batch([row.tokens for row in batch], self.tokenizer.pad_token_id)
        layers = sorted({unit.layer for unit in self.units})
        with neurons_read({layer: self.downs[layer] for layer in layers}) as neurons:
            captured = capture(
                self.bridge, tokens["input_ids"], tokens["attention_mask"], layers, self.site
            )
        rows_N, positions_N = captured.rows, captured.positions  # rows are padded on the right
        features = {
            layer: self.deltas[layer].encode(x_ND)
            for layer, (x_ND, _) in captured.activations.items()
        }
        values_NU = torch.stack(
            [
                features[unit.layer][:, unit.number]
                if unit.kind == "feature"
                else neurons[unit.layer][rows_N, positions_N, unit.number].float()
                for unit in self.units
            ],
            dim=1,
        )
        rows_N, positions_N, values_NU = (t.cpu().numpy() for t in (rows_N, positions_N, values_NU))
        for b, row in enumerate(batch):
            values_TU = np.full((len(row.tokens), len(self.units)), np.nan, dtype=np.float32)
            values_TU[positions_N[rows_N == b]] = values_NU[rows_N == b]
            self.found[row.index] = values_TU

    def on_test_end(self) -> None:
        if self.trainer.fast_dev_run:
            return
        rows = [self.data.rows[index] for index in sorted(self.found)]
        values_PU = np.concatenate([self.found[row.index] for row in rows])
        if self.half == "A":
            read_P = ~np.isnan(values_PU).any(axis=1)
            self.units = with_thresholds(self.units, values_PU[read_P])
        with stage_output(self) as folder:
            values_PU = margins(self.units, values_PU)
            texts = [self._text(row) for row in rows]
            write_firing(folder, self.units, texts, values_PU, self.opened_for, self.info)

    def _text(self, row: PromptRow) -> Text:
        ids = [*row.tokens.prompt_ids, *row.tokens.target_ids]
        tokens = shown_tokens(self.tokenizer, ids)
        wording = self.data.task.wording(row.example)
        return Text(row.index, row.example.subset, wording, tuple(tokens))


def _mean_size(sums_SF: Tensor, counts_S: Tensor) -> list[float]:
    """The size of each subset's mean, averaged over subsets with examples."""
    there_S = counts_S > 0
    return (sums_SF[there_S] / counts_S[there_S, None]).abs().mean(0).tolist()
