"""Where a dictionary reads and writes, under TransformerLens names, and whether that is right.

Shapes: n tokens, d_model.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder
from delta_transcoders.metrics.reconstruction import GroupedReconstruction

Scale = Literal["1", "1/sqrt(d_model)"]
SiteName = Literal["gemma_scope", "original", "residual"]
"""The keys of `HOOK_SITES`."""


@dataclass(frozen=True)
class HookSite:
    """A pair of hook points, `{layer}` standing for the layer, and the unit both are given in."""

    name: str
    hook_in: str
    hook_out: str
    scale: Scale

    def names(self, layer: int) -> tuple[str, str]:
        """Hook points of the input and the output.

        >>> HOOK_SITES["gemma_scope"].names(3)
        ('blocks.3.ln2.hook_normalized', 'blocks.3.hook_mlp_out')
        """
        return self.hook_in.format(layer=layer), self.hook_out.format(layer=layer)

    def factor(self, d_model: int) -> float:
        """What input and output are both multiplied by before a dictionary sees them."""
        return 1.0 if self.scale == "1" else 1 / math.sqrt(d_model)


_RESIDUAL = "blocks.{layer}.hook_mlp_in"
_NORMALIZED = "blocks.{layer}.ln2.hook_normalized"
_AFTER_GAIN = "blocks.{layer}.ln2.hook_out"
_BEFORE_POST_NORM = "blocks.{layer}.mlp.hook_out"
_AFTER_POST_NORM = "blocks.{layer}.hook_mlp_out"

HOOK_SITES: dict[SiteName, HookSite] = {
    # Where the published transcoders were trained; their parameters need no other scaling.
    "gemma_scope": HookSite("gemma_scope", _NORMALIZED, _AFTER_POST_NORM, "1"),
    # Where the original study applied them: kept to reproduce its numbers, never a default.
    "original": HookSite("original", _RESIDUAL, _AFTER_POST_NORM, "1/sqrt(d_model)"),
    # Its first fault alone, to tell the two apart.
    "residual": HookSite("residual", _RESIDUAL, _AFTER_POST_NORM, "1"),
}

_KNOWN = {(site.hook_in, site.hook_out, site.scale): site for site in HOOK_SITES.values()}

ALTERNATIVES = tuple(
    _KNOWN.get(parts) or HookSite(f"{parts[0]} -> {parts[1]}, times {parts[2]}", *parts)
    for parts in itertools.product(
        (_RESIDUAL, _NORMALIZED, _AFTER_GAIN),
        (_BEFORE_POST_NORM, _AFTER_POST_NORM),
        ("1", "1/sqrt(d_model)"),
    )
)
"""Every site that could be meant, `HOOK_SITES` among them: 3 inputs x 2 outputs x 2 scales."""


class SiteFit(NamedTuple):
    """How well one layer's base dictionary reconstructs at one candidate site."""

    site: HookSite
    layer: int
    fvu: float
    cosine: float


def hook_names(layer: int) -> list[str]:
    """The hook points of a layer that `hook_site_check` needs."""
    return sorted({name for site in ALTERNATIVES for name in site.names(layer)})


@torch.inference_mode()
def hook_site_check(
    activations: Mapping[str, Tensor], base: JumpReLUTranscoder, layer: int
) -> list[SiteFit]:
    """Fit of a base dictionary at every candidate site, the best first.

    Args:
        activations: [n, d_model] by hook point (`hook_names(layer)`), of the *base* model,
            unscaled: what `capture.capture_hooks` returns.
        base: the dictionary of that layer.
    """
    table = []
    for site in ALTERNATIVES:
        x, y = (activations[name].to(base.W_enc) for name in site.names(layer))
        x, y = x * site.factor(x.shape[1]), y * site.factor(y.shape[1])
        metric = GroupedReconstruction(1, y.shape[1]).to(y.device)
        for x_ND, y_ND in zip(x.split(1024), y.split(1024), strict=True):
            metric.update(0, y_ND, base(x_ND))
        fit = metric.fit()
        table.append(SiteFit(site, layer, fit.fvu, fit.cosine))
    return sorted(table, key=lambda row: (math.isnan(row.fvu), row.fvu))


def require_site(table: Sequence[SiteFit], configured: HookSite) -> SiteFit:
    """The configured site's fit, if no candidate of the table fits better.

    Bounds on the fit itself only warn: how well a dictionary does is the dictionary's affair.

    Raises:
        ValueError: another site fits better; names it and both fits.
    """
    best = min(table, key=lambda row: (math.isnan(row.fvu), row.fvu))
    ours = next(row for row in table if row.site == configured)
    if not ours.fvu <= best.fvu:
        raise ValueError(
            f"hook site {configured.name!r} is not where the base dictionary of layer {ours.layer} "
            f"belongs: FVU {ours.fvu:.3g} and cosine {ours.cosine:.2f} there, but FVU "
            f"{best.fvu:.3g} and cosine {best.cosine:.2f} at {best.site.name!r} "
            f"({' -> '.join(best.site.names(best.layer))}, times {best.site.scale})"
        )
    if ours.fvu > 0.7 or ours.cosine < 0.7:
        warnings.warn(
            f"layer {ours.layer}: at {configured.name!r}, the best of all sites, the base "
            f"dictionary reconstructs the base model with FVU {ours.fvu:.2f} and cosine {ours.cosine:.2f} "
            "(expected below .7 and above .7): does it belong to this model?",
            StudyWarning,
            stacklevel=2,
        )
    return ours
