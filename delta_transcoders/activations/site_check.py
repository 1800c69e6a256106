"""Does the configured hook site fit the base dictionaries? Asked of the base model, before any delta."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from delta_transcoders.activations.capture import capture_hooks
from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.language_models import pad
from delta_transcoders.metrics.reconstruction import GroupedReconstruction, ReconstructionFit

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CLEARLY = 0.8
"""A site is wrong where a rival leaves less than this share of its unexplained variance. On text that the
tiny study's dictionaries know, the right site leaves a quarter of any other's at most; on other text the two
draw near."""

PUBLISHED = "Gemma Scope has FVU .08 to .50 near an L0 of 76, Gemma Scope 2 .31 to .34"
"""What others measured on the models that the sets are of (docs/DICTIONARIES.md)."""

SMALL_L0 = 10
"""Of so few features a poor fit is to be expected: some sets hold such dictionaries for single layers."""


class SiteFit(NamedTuple):
    """How well one layer's base dictionary reconstructs at one candidate site."""

    site: HookSite
    layer: int
    fvu: float
    cosine: float


def hook_names(candidates: Sequence[HookSite], layer: int) -> list[str]:
    """The hook points of a layer that `hook_site_check` needs."""
    return sorted({name for site in candidates for name in site.hook_points(layer)})


@torch.inference_mode()
def hook_site_check(
    activations: Mapping[str, Tensor],
    base: Transcoder,
    layer: int,
    candidates: Sequence[HookSite],
) -> list[SiteFit]:
    """Fit of a base dictionary at every candidate site, the best first.

    Args:
        activations: [n, d_model] by hook point (`hook_names`), of the *base* model, unscaled: what
            `capture.capture_hooks` returns.
        base: the dictionary of that layer.
        candidates: the model family's.
    """
    table = []
    for site in candidates:
        x, y = (activations[name].float() for name in site.hook_points(layer))
        x, y = x * site.factor(x.shape[1]), y * site.factor(y.shape[1])
        metric = GroupedReconstruction(1, y.shape[1]).to(y.device)
        for x_ND, y_ND in zip(x.split(1024), y.split(1024), strict=True):
            metric.update(0, y_ND, base.reconstruct(x_ND)[0])
        fit = metric.fit()
        table.append(SiteFit(site, layer, fit.fvu, fit.cosine))
    return sorted(table, key=lambda row: (math.isnan(row.fvu), row.fvu))


def require_site(
    table: Sequence[SiteFit], configured: HookSite, average_l0: float | None = None
) -> SiteFit:
    """The configured site's fit, if no candidate of the table fits clearly better (`CLEARLY`).

    A rival that is better by less only warns, and so do bounds on the fit itself: how well a dictionary does
    is the dictionary's affair, as long as it beats the mean somewhere.

    Args:
        average_l0: the dictionary's, where it is known.

    Raises:
        ValueError: no site fits better than the output's mean would; or another site than the configured
            one fits clearly better: names it and both fits.
    """
    best = min(table, key=lambda row: (math.isnan(row.fvu), row.fvu))
    ours = next(row for row in table if row.site == configured)
    if not best.fvu < 1:
        raise ValueError(
            f"the base dictionary of layer {ours.layer} fits at no site (best FVU {best.fvu:.3g}, at "
            f"{best.site.name!r}): another model's set, or a transposed matrix"
        )
    rival = (
        f"FVU {ours.fvu:.3g} and cosine {ours.cosine:.2f} there, but FVU {best.fvu:.3g} and cosine "
        f"{best.cosine:.2f} at {best.site.name!r} ({' -> '.join(best.site.names(best.layer))}, times "
        f"{best.site.scale})"
    )
    if not CLEARLY * ours.fvu <= best.fvu:
        raise ValueError(
            f"hook site {configured.name!r} is not where the base dictionary of layer {ours.layer} "
            f"belongs: {rival}"
        )
    if best.fvu < ours.fvu:
        warnings.warn(
            f"layer {ours.layer}: the base dictionary fits about as well at another hook site, as it does "
            f"on text unlike its own: {rival}",
            StudyWarning,
            stacklevel=2,
        )
    if ours.fvu > 0.7 or ours.cosine < 0.7:
        why = "does it belong to this model?"
        if average_l0 is not None and average_l0 <= SMALL_L0:
            why = f"an average L0 of {average_l0:g} is small; choose a larger one for a better fit"
        warnings.warn(
            f"layer {ours.layer}: at {configured.name!r} the base dictionary reconstructs the base model "
            f"with FVU {ours.fvu:.2f} and cosine {ours.cosine:.2f} (expected below .7 and above .7; "
            f"{PUBLISHED}): {why}",
            StudyWarning,
            stacklevel=2,
        )
    return ours


def _activations(
    bridge: TransformerBridge,
    prompts: Sequence[Sequence[int]],
    layer: int,
    candidates: Sequence[HookSite],
    batch_size: int,
    leading: int | None,
) -> dict[str, Tensor]:
    """Tensors [n, d_model] at the layer's hook points, over all captured tokens of the prompts."""
    names = hook_names(candidates, layer)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        input_ids = pad(rows, bridge.tokenizer.pad_token_id, "right")
        mask = pad([[1] * len(row) for row in rows], 0, "right")
        found = capture_hooks(bridge, input_ids, mask, names, layer + 1, leading)
        for name, tensor in found.items():
            parts[name].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def base_model_fits(
    bridge: TransformerBridge,
    layer: int,
    bases: Mapping[str, Transcoder],
    prompts: Sequence[Sequence[int]],
    site: HookSite,
    batch_size: int = 32,
    leading: int | None = None,
) -> tuple[list[SiteFit], dict[str, ReconstructionFit]]:
    """What one layer's base dictionaries do on the model they were made for.

    Args:
        bridge: the un-finetuned model.
        bases: by key, on the model's device; the first is tried at every candidate site.
        prompts: token ids; without targets, which a base model would not have written.
        site: where the fits are measured.
        leading: as of `capture.capture`.

    Returns:
        The table of `hook_site_check`, and by key the fit at `site`.
    """
    candidates = family_of(bridge.original_model.config).candidates
    activations = _activations(bridge, prompts, layer, candidates, batch_size, leading)
    table = hook_site_check(activations, next(iter(bases.values())), layer, candidates)
    x, y = (activations[name].float() for name in site.hook_points(layer))
    factor = site.factor(x.shape[1])
    fits = {}
    for key, base in bases.items():
        metric = GroupedReconstruction(1, y.shape[1]).to(y.device)
        for x_ND, y_ND in zip((x * factor).split(1024), (y * factor).split(1024), strict=True):
            metric.update(0, y_ND, *base.reconstruct(x_ND))
        fits[key] = metric.fit()
    return table, fits
