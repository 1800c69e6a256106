"""One dictionary per layer out of a folder of deltas and the bases they were trained on."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from delta_transcoders.dictionaries.bases import SIZES, choose_l0, entry_of, held, load_base
from delta_transcoders.dictionaries.delta import (
    ON_DICTIONARIES,
    DeltaConfig,
    load_base_of,
    load_deltas,
)
from delta_transcoders.dictionaries.files.exported import LayerCard
from delta_transcoders.dictionaries.files.tensors import for_other_tools, padded
from delta_transcoders.dictionaries.identity import BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder, concatenate
from delta_transcoders.families.sites import HOOK_SITES, HookSite
from delta_transcoders.hub import portable_name, split_layer


class FusedDeltas:
    """base(x) + alpha · delta(x), or alpha · delta(x) alone, layer by layer.

    Args:
        deltas: folder of `layer_L`, all of one configuration.
        base_transcoders: folder or hub id of the bases; None: `DeltaConfig.base_id` says where.
        alpha: goes into the delta's decoder rows and bias.
        delta_only: leave the base out.

    Attributes:
        config: of the first layer; hook site, model, percentile and target are every layer's.
        layers: those that have a delta.
        alpha, delta_only: as given.

    Raises:
        FileNotFoundError: no delta in the folder.
        ValueError: several configurations in it, or deltas that correct no dictionary but another model.
            From `layer` too: nothing tells the base of a layer without a delta.
    """

    config: DeltaConfig
    site: HookSite
    layers: list[int]

    def __init__(
        self, deltas: Path, base_transcoders: str | None, alpha: float, delta_only: bool
    ) -> None:
        self._deltas = load_deltas(deltas)
        self.layers = list(self._deltas)
        self.config = self._deltas[self.layers[0]][2]
        self.site = HOOK_SITES[self.config.hook_site]
        self.alpha, self.delta_only = alpha, delta_only
        if self.config.target not in ON_DICTIONARIES and not delta_only:
            raise ValueError(
                f"{deltas}: the deltas correct the base model's MLP (target {self.config.target!r}), so "
                "there is no base dictionary to join them with; export them alone (--delta-only)"
            )
        self._source = (
            base_transcoders or split_layer(self.config.base_id, self.config.base_file)[0]
        )

    def hashes(self) -> dict[int, str]:
        """Of the deltas as they were trained, by layer."""
        return {layer: delta.fingerprint() for layer, (_, delta, _) in self._deltas.items()}

    def widest(self) -> int:
        """Number of features of the widest layer; reads the bases where no file's name says theirs."""
        return max(
            config.d_new + (0 if self.delta_only else self._base_width(path, delta, config))
            for path, delta, config in self._deltas.values()
        )

    def layer(self, layer: int, n_features: int | None = None) -> tuple[Transcoder, LayerCard]:
        """The dictionary of a layer, which may be one without a delta, and what it is made of.

        A layer that has no base either gets no feature but the padding, and writes nothing.

        Args:
            n_features: pad to so many, a delta alone in front.
        """
        path, delta, config = self._deltas.get(layer, (None, None, None))
        base, base_id = self._base(layer, path, config)
        if base and base.k is not None:
            raise ValueError(
                f"layer {layer}: {base_id.path} is a TopK dictionary (k {base.k}): a delta joined to it "
                "would change which of its features are kept, and circuit-tracer reads TopK from a "
                "folder as ReLU; keep them apart (--format deltas), or export the delta alone "
                "(--delta-only)"
            )
        empty = _empty(self.config)
        try:
            joined = concatenate(base or empty, delta or empty, self.alpha)
        except ValueError as error:  # an alpha that float32 cannot hold
            raise ValueError(f"layer {layer}, alpha {self.alpha}: {error}") from error
        joined = for_other_tools(joined, self.site)
        n_base, n_joined = base.n_features if base else 0, joined.n_features
        whole = padded(joined, n_features or n_joined, in_front=self.delta_only)
        n_padding = whole.n_features - n_joined
        first = n_padding if self.delta_only else 0
        hook_in, hook_out = self.site.hook_points(layer)
        base_name = None
        if base_id:
            base_name = portable_name(base_id.path, base_id.file)
        elif config:
            base_name = portable_name(config.base_id, config.base_file)
        measured = config.measured if config else {}
        l0s = [
            base_id and (base_id.average_l0 or measured.get("l0_base")),
            measured.get("l0_delta"),
        ]
        return whole, LayerCard(
            path="",
            hash=whole.fingerprint(),
            hook_in=hook_in,
            hook_out=hook_out,
            base_features=(0, n_base),
            delta_features=(first + n_base, first + n_joined),
            padding_features=(0, n_padding) if self.delta_only else (n_joined, whole.n_features),
            base_id=base_name,
            base_hash=base_id.hash if base_id else config and config.base_hash,
            delta_hash=delta and delta.fingerprint(),
            average_l0=round(sum(l0 for l0 in l0s if l0)),
        )

    def _base(
        self, layer: int, path: Path | None, config: DeltaConfig | None
    ) -> tuple[Transcoder | None, BaseId | None]:
        if self.delta_only:
            return None, None
        if config is not None:
            return load_base_of(path, config, self._source)
        if layer not in {entry.layer for entry in held(self._source)}:
            return None, None
        return load_base(self._source, layer, **self._which, d_model=self.config.d_in)

    @cached_property
    def _which(self) -> dict[str, Any]:
        """Arguments of `load_base` for layers without a delta: those that give the deltas their bases.

        Deltas record the percentile, and not which files it was to choose among.
        """
        bases = [entry_of(self._source, config.base_id) for _, _, config in self._deltas.values()]
        kind, size, percentile = bases[0].kind, bases[0].l0, self.config.percentile
        if size in SIZES and all(base.l0 == size for base in bases):
            return {"files": kind, "average_l0": size}
        there = held(self._source)
        for base in bases:
            l0s = [
                entry.l0 for entry in there if (entry.layer, entry.kind) == (base.layer, base.kind)
            ]
            chosen = choose_l0(l0s, percentile=percentile)
            if chosen != base.l0:
                raise ValueError(
                    f"{self._source}: the base of layer {base.layer}'s delta is {base.path}, and percentile "
                    f"{percentile} would be average L0 {chosen}: nothing says which base a layer without a "
                    "delta is to have; give a folder with none but those that are meant "
                    "(--base-transcoders)"
                )
        return {"files": kind, "percentile": percentile}

    def _base_width(self, path: Path, delta: Transcoder, config: DeltaConfig) -> int:
        named = entry_of(self._source, config.base_id).width
        return named or load_base_of(path, config, self._source)[1].width


def _empty(config: DeltaConfig) -> Transcoder:
    """A dictionary without features, which writes nothing."""
    return Transcoder(
        W_enc=torch.zeros(config.d_in, 0),
        b_enc=torch.zeros(0),
        W_dec=torch.zeros(0, config.d_out),
        b_dec=torch.zeros(config.d_out),
        threshold=torch.zeros(0),
    )
