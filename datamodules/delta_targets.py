"""What a frozen base dictionary leaves of the finetuned model's MLP outputs, as training batches."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from datamodules.activations import ActivationData, TokenStream
from datamodules.batching import ResumableDataLoader
from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.activations.site_check import base_model_fits, require_site
from delta_transcoders.activations.targets import add_residuals, add_target
from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.bases import check_held, load_base
from delta_transcoders.dictionaries.identity import BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families import ModelFamily, family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.files import read_json, write_json
from delta_transcoders.hub import are_two_models
from delta_transcoders.interventions.loading import load_mlps
from delta_transcoders.language_models import (
    check_model_source,
    load_model,
    load_tokenizer,
    tokenize,
)
from delta_transcoders.metrics.reconstruction import ReconstructionFit
from delta_transcoders.tasks.task import Task

SITE_CHECK_NAME = "hook_site_check.json"


class DeltaData(ActivationData):
    """A cache of the finetuned model with residuals r = y − base(x), added to it where they are missing.

    r = d + e, where d = y − baseMLP(x) is what finetuning changed (`MLPDifferenceData`) and e is the
    dictionary's own error on the same input: what a delta of e brings back is repair of the dictionary.

    Before anything is trained, the base dictionaries are tried on the *base* model at every candidate
    hook site: if another than the cache's fits better, this stops and names it. (A cache of a site
    that is wrong on purpose, not the family's, only warns where the dictionaries' files name none.)

    Args:
        cache: folder that `ActivationWriter` wrote.
        model: folder or hub id of the finetuned model.
        base_transcoders: folder or hub id of the base dictionaries, in any layout of `dictionaries.bases`.
        base_model: folder or hub id of the un-finetuned model.
        task: reads the examples.
        examples: file of held-out examples, whose prompts the base model reads for the check.
        target: what deltas learn: `residual`, r, or `dictionary_error`, e = baseMLP(x) − base(x).
        percentiles: which base of a layer, in the order of its average L0; several for a sweep.
        width: features of the bases; needed where there are several widths.
        base_files: which files, where a layer has several kinds: a pattern of paths below
            `base_transcoders`, as in `transcoder_all/*_l0_small`.
        n_check_examples: first so many examples for the check.
        require_site: refuse dictionaries that the check finds out of place; false warns, for those that have
            hardly been trained.
        model_dtype: of both models' weights.
        layers, batch_tokens, buffer_tokens, passes, seed: see `ActivationData`.
    """

    def __init__(
        self,
        cache: str,
        model: str,
        base_transcoders: str,
        base_model: str,
        task: Task,
        examples: str,
        target: Literal["residual", "dictionary_error"] = "residual",
        percentiles: list[ClosedUnitInterval] = (0.5,),
        width: PositiveInt | None = None,
        base_files: str | None = None,
        n_check_examples: PositiveInt = 128,
        require_site: bool = True,
        model_dtype: str = "float32",
        layers: list[NonNegativeInt] | None = None,
        batch_tokens: PositiveInt = 2048,
        buffer_tokens: PositiveInt = 65536,
        passes: PositiveInt = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(
            cache, model, model_dtype, layers, batch_tokens, buffer_tokens, passes, seed
        )
        check_model_source(base_model)
        if not percentiles:
            raise ValueError("percentiles is empty, expected at least one")
        self.save_hyperparameters(ignore=["task"])
        self.task = task
        self._percentiles = {f"p{p:g}": p for p in self.hparams.percentiles}

    @property
    def target_kind(self) -> str:
        return self.hparams.target

    @property
    def base_keys(self) -> list[str]:
        """A name for each base of a layer, like `p0.5`."""
        return list(self._percentiles)

    @property
    def targets(self) -> list[str]:
        return [self._target_name(key) for key in self.base_keys]

    def _target_name(self, key: str) -> str:
        return f"{self.hparams.target}-{self._source_key(key)}"

    def _source_key(self, key: str) -> str:
        """Like `base_transcoders-p0.5`: one cache holds the residuals of several sets of bases."""
        folder = os.path.abspath(self.hparams.base_transcoders)  # `.` has no name of its own
        return f"{os.path.basename(folder)}-{key}"

    def percentile(self, key: str) -> float:
        return self._percentiles[key]

    def _which(self, key: str) -> dict[str, Any]:
        h = self.hparams
        return {"width": h.width, "files": h.base_files, "percentile": self._percentiles[key]}

    def prepare_data(self) -> None:
        super().prepare_data()
        cache, layers, source = self.cache, self.layers, self.hparams.base_transcoders
        for key in self.base_keys:
            check_held(source, layers, **self._which(key))
        examples = list(self.task.read(self.hparams.examples).values())
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        # The finetuned model's: their ids are the same, and a base model often has no chat template.
        tokenizer = load_tokenizer(self.hparams.model, self.hparams.base_model)
        checked = tokenize(tokenizer, self.task, examples[: self.hparams.n_check_examples])
        prompts = [row.prompt_ids for row in checked]
        model = load_model(self.hparams.base_model, self.hparams.model_dtype).to(device)
        bridge = boot_bridge(model, tokenizer)
        site, family = cache.meta.hook_site, family_of(model.config)
        rows = []
        for number, layer in enumerate(layers, start=1):
            bases, ids = {}, {}
            for key in self.base_keys:
                base, ids[key] = load_base(
                    source, layer, **self._which(key), d_model=cache.meta.d_in
                )
                bases[key] = base.to(device)
            if number == 1:
                self._check_model(next(iter(ids.values())))
            leading = max(family.tokens.leading, *(base_id.leading for base_id in ids.values()))
            self._check_cache(next(iter(ids.values())), family, leading)
            table, fits = base_model_fits(bridge, layer, bases, prompts, site, leading=leading)
            self._require(table, site, ids, family)
            for key, base in bases.items():
                add_residuals(cache, layer, self._source_key(key), base, asdict(ids[key]), device)
                if self.target_kind == "dictionary_error":
                    self._add_error(layer, key, base, ids[key], device)
            logging.getLogger("delta_transcoders").info(
                f"  layer {layer}: hook site checked, residuals stored ({number} of {len(layers)} layers)"
            )
            rows.append(
                {
                    "layer": layer,
                    "sites": [
                        {"site": row.site.name, "fvu": row.fvu, "cosine": row.cosine}
                        for row in table
                    ],
                    "base_model": {key: asdict(fit) for key, fit in fits.items()},
                }
            )
        # Read by this run's processes alone, and by people.
        write_json(
            Path(self.hparams.cache) / SITE_CHECK_NAME, {"format_version": 1, "layers": rows}
        )
        del model, bridge
        gc.collect()  # the two refer to each other: the model would stay in memory while deltas are trained

    def _check_model(self, base_id: BaseId) -> None:
        of, given = base_id.base_model, self.hparams.base_model
        if are_two_models(of, given):
            warnings.warn(
                f"{base_id.source} says that it is for {of}, and base_model is {given}",
                StudyWarning,
                stacklevel=2,
            )

    def _add_error(
        self, layer: int, key: str, base: Transcoder, base_id: BaseId, device: torch.device | str
    ) -> None:
        h, site = self.hparams, self.cache.meta.hook_site
        mlps = load_mlps(h.base_model, h.model_dtype, site, [layer])
        mlp = mlps.sources[layer].to(device)
        identity = {"base": asdict(base_id), "hash": f"{base_id.hash} {mlps.fingerprint}"}
        add_target(
            self.cache,
            layer,
            self._target_name(key),
            identity,
            base.reconstruct,
            device,
            whole=lambda x_ND: mlp(x_ND, None)[0].float(),
        )

    def _check_cache(self, base_id: BaseId, family: ModelFamily, leading: int) -> None:
        """Refuse a cache that was made for other dictionaries."""
        meta, cache = self.cache.meta, self.hparams.cache
        if base_id.hook_site not in (None, meta.hook_site.name):
            raise ValueError(
                f"{base_id.path} is for hook site {base_id.hook_site!r}, the cache {cache} was captured at "
                f"{meta.hook_site.name!r}: capture it with --model.hook_site {base_id.hook_site}"
            )
        if (
            leading > family.tokens.leading
            and meta.token_policy != replace(family.tokens, leading=leading).name
        ):
            raise ValueError(
                f"{base_id.path} was not trained on a text's first {leading} tokens, the cache {cache} is "
                f"{meta.token_policy}: capture it with --model.leading {leading}"
            )

    def _require(
        self, table, site: HookSite, ids: Mapping[str, BaseId], family: ModelFamily
    ) -> None:
        try:
            require_site(table, site, next(iter(ids.values())).average_l0)
        except ValueError as error:
            known = (family.site.name, *(base_id.hook_site for base_id in ids.values()))
            if self.hparams.require_site and site.name in known:
                raise
            warnings.warn(str(error), StudyWarning, stacklevel=2)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        rows = read_json(Path(self.hparams.cache) / SITE_CHECK_NAME)["layers"]
        self._base_model_fits = {row["layer"]: row["base_model"] for row in rows}

    def base_id(self, layer: int, key: str) -> BaseId:
        identity = self._target(layer, key)["identity"]
        return BaseId(**identity.get("base", identity))

    def base_fit(self, layer: int, key: str) -> ReconstructionFit:
        """The base alone on the finetuned model's validation tokens."""
        return ReconstructionFit(**self._target(layer, key)["fit"]["validation"])

    def _target(self, layer: int, key: str) -> dict:
        return self.cache.target(self._target_name(key), layer)

    def base_model_fit(self, layer: int, key: str) -> ReconstructionFit:
        """The base alone on the base model's activations of the checked examples."""
        return ReconstructionFit(**self._base_model_fits[layer][key])


class CorrectionData(DeltaData):
    """The same, with y as the last target of each layer in training batches too."""

    def train_dataloader(self) -> ResumableDataLoader:
        h = self.hparams
        stream = TokenStream(self.cache, self.layers, [*self.targets, "y"], h.passes, h)
        return self.training_loader(stream, stream)
