"""What a study still has of its held-out tokens: what a dictionary can be looked at on, without a model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.layout import MANIFEST_NAME
from delta_transcoders.dictionaries.files.rounding import TokensOf
from delta_transcoders.families.sites import HookSite
from delta_transcoders.files import read_json

N_TOKENS = 4096


def held_out_inputs(cache: Path, site: HookSite | None, fingerprint: str | None) -> TokensOf:
    """The first held-out tokens' inputs by layer, as far as a cache is there, of this site and model.

    Args:
        fingerprint: of the model; None: whatever model.
    """
    try:
        held = ActivationCache(cache)
    except (FileNotFoundError, ValueError):  # never made, or thrown away for its size
        return lambda layer: None
    if held.meta.hook_site != site or fingerprint not in (None, held.meta.model_fingerprint):
        return lambda layer: None

    def tokens_of(layer: int) -> Tensor | None:
        if layer not in held.meta.layers:
            return None
        return held.load("validation", layer, ["x"])["x"][:N_TOKENS].float()

    return tokens_of


def captured_site(cache: Path) -> HookSite | None:
    """Where a cache was captured, which its manifest tells without its shards; None without one."""
    path = cache / MANIFEST_NAME
    return HookSite(**read_json(path)["meta"]["hook_site"]) if path.is_file() else None
