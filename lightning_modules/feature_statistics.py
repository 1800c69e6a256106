"""What every delta feature fires on: on the texts the delta was trained on, and on others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule

from datamodules.evaluation_prompts import PromptRow
from datamodules.feature_texts import FeatureTexts
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.delta import load_deltas
from delta_transcoders.families import family_of
from delta_transcoders.families.tokens import special_ids
from delta_transcoders.features.contexts import ContextChooser
from delta_transcoders.features.files import write_features
from delta_transcoders.features.firing import Firing, n_looked_at, read_cache
from delta_transcoders.features.statistics import (
    Look,
    features_of,
    logit_extremes,
    nearest_rows,
)
from delta_transcoders.features.texts import Texts, shown_tokens
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.language_models import check_model_source, load_model, target_batch
from lightning_modules.outputs import stage_output

say = logging.getLogger("delta_transcoders").info


class FeatureStatistics(LightningModule):
    """Densities, histograms, tokens, logits, companions, matches and contexts of every feature of a delta.

    The cache of `FeatureTexts` gives the finetuned model's activations on the texts that the delta was
    trained on, read once, layer by layer; the evaluation prompts go through the model here, and count as
    held out. Every activation is of the finetuned model's own run, whatever the delta is made for.

    Writes `output`, see `features.files`.

    Args:
        model: folder or hub id of the finetuned model.
        delta: folder or hub id of the trained deltas, of any target.
        output: folder of the statistics.
        others: folders or hub ids of deltas of the same model with other seeds, in which each feature's
            nearest is looked for.
        dtype: of the model's weights.

    Raises:
        ValueError: a cache or delta of another model, hook site or layers; several processes.
    """

    def __init__(
        self,
        model: str,
        delta: str,
        output: str,
        others: list[str] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        check_model_source(model)
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        h, data = self.hparams, self.trainer.datamodule
        if self.trainer.world_size > 1:
            raise ValueError(
                f"features are counted by one process, not {self.trainer.world_size}: give "
                "--trainer.devices 1"
            )
        self.data: FeatureTexts = data
        self.model = load_model(h.model, h.dtype)
        self.family = family_of(self.model.config)
        data.check_context(self.family.context, 0)
        self.fingerprint = model_fingerprint(self.model)
        data.cache.expect(model_fingerprint=self.fingerprint)
        self.deltas = self._load(h.delta)
        self.others = {other: self._load(other) for other in h.others or ()}
        self.layers = [layer for layer, (_, d, _) in self.deltas.items() if d.n_features]
        data.cache.check_layers(self.layers)
        self.leading = self._leading()
        self.texts = Texts(data.text_rows, data.text_subsets)
        self.firings = {layer: Firing(self.deltas[layer][1].n_features) for layer in self.layers}

    def _load(self, source: str) -> dict:
        deltas = load_deltas(source, self.fingerprint)
        for path, _, config in deltas.values():
            site = self.data.cache.meta.hook_site.name
            if config.hook_site != site:
                raise ValueError(
                    f"{path} is of hook site {config.hook_site!r}, the cache {self.data.cache.folder} of "
                    f"{site!r}"
                )
        return deltas

    def _leading(self) -> int:
        """How many of a text's first tokens the cache leaves out."""
        cache, tokens = self.data.cache, self.family.tokens
        leading = tokens.leading_of(cache.meta.token_policy)
        if leading is None:
            cache.expect(token_policy=tokens.name)
        return leading

    @torch.inference_mode()
    def on_test_start(self) -> None:
        for _, delta, _ in self.deltas.values():
            delta.to(self.device)
        # Before the bridge, which takes the model apart. Some models have more rows than tokens.
        unembedding_VD = self.model.get_output_embeddings().weight[: len(self.data.tokenizer)]
        factor = self.data.cache.meta.hook_site.factor(self.family.d_model)
        rows_GD = torch.cat([self.deltas[layer][1].W_dec.float() for layer in self.layers]) / factor
        rows_GD = self.family.through_final_norm(self.model, rows_GD)
        self.logits = logit_extremes(rows_GD, unembedding_VD)
        with torch.inference_mode(False):
            self.bridge = boot_bridge(self.model, self.data.tokenizer)

    @torch.inference_mode()
    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        tokens = target_batch([row.tokens for row in batch], self.data.tokenizer.pad_token_id)
        captured = capture(
            self.bridge,
            tokens["input_ids"],
            tokens["attention_mask"],
            self.layers,
            self.data.cache.meta.hook_site,
            self.leading,
        )
        texts_B = self.data.n_cached + np.array([row.index for row in batch])
        rows_N, positions_N = (t.cpu().numpy() for t in (captured.rows, captured.positions))
        places_N = self.texts.places(texts_B[rows_N], positions_N)
        for layer in self.layers:
            x_ND, _ = captured.activations[layer]
            self.firings[layer].add(places_N, self.deltas[layer][1].encode(x_ND))

    @torch.inference_mode()
    def on_test_epoch_end(self) -> None:
        cache = self.data.cache
        index = {name: of.numpy() for name, of in cache.index("train").items()}
        places_N = self.texts.places(index["example_ids"], index["positions"])
        for layer in self.layers:
            firing, delta = self.firings[layer], self.deltas[layer][1]
            for row, a_NF in read_cache(cache, layer, delta, self.device):
                firing.add(places_N[row : row + len(a_NF)], a_NF)
            firing.finish()
            n_active = sum(len(firing.of(k)[0]) for k in range(firing.n_features))
            say(
                f"  layer {layer}: {firing.n_features} features, "
                f"{n_active / self.texts.read_P.sum():.1f} of them active on a token"
            )

    def on_test_end(self) -> None:
        if self.trainer.fast_dev_run:
            return
        tokenizer = self.data.tokenizer
        shown = shown_tokens(tokenizer, range(len(tokenizer)))
        chooser = ContextChooser(self.texts, shown, set(special_ids(tokenizer).tolist()))
        with stage_output(self) as folder:
            features = features_of(self.firings, self._looks(shown), chooser)
            write_features(folder, features, self._info())

    def _looks(self, shown: list[str]) -> dict[int, list[Look]]:
        """What decoder rows say, by layer and number."""
        looks: dict[int, list[Look]] = {}
        values_GN, ids_GN = (t.tolist() for t in self.logits)
        of_all = zip(values_GN, ids_GN, strict=True)
        for layer in self.layers:
            _, delta, _ = self.deltas[layer]
            nearest = {
                other: nearest_rows(delta, deltas[layer][1])
                for other, deltas in self.others.items()
                if layer in deltas
            }
            looks[layer] = []
            for number in range(delta.n_features):
                values, ids = next(of_all)
                words = [(shown[i], v) for i, v in zip(ids, values, strict=True)]
                middle = len(words) // 2
                matches = tuple(
                    (other, numbers[number], cosines[number])
                    for other, (numbers, cosines) in nearest.items()
                )
                looks[layer].append(Look(tuple(words[:middle]), tuple(words[middle:]), matches))
        return looks

    def _info(self) -> Mapping[str, Any]:
        h, data, meta = self.hparams, self.data, self.data.cache.meta
        _, _, config = self.deltas[self.layers[0]]
        n_features = sum(firing.n_features for firing in self.firings.values())
        n_places = len(self.texts.ids_P)
        return {
            "delta": h.delta,
            "target": config.target,
            "seed": config.seed,
            "hook_site": config.hook_site,
            "model": h.model,
            "n_layers": self.family.n_layers,
            "cache": data.hparams.cache,
            "held_out": data.hparams.jsonl,
            "others": list(h.others or ()),
            "together": {"n_looked_at": n_looked_at(n_features, n_places), "n_places": n_places},
            "model_fingerprint": self.fingerprint,
            "tokenizer_fingerprint": meta.tokenizer_fingerprint,
            "texts_sha256": meta.texts_sha256["train"],
            "delta_fingerprints": {
                str(layer): self.deltas[layer][1].fingerprint() for layer in self.layers
            },
        }
