"""Where a dictionary reads and writes: pairs of hook points under TransformerLens names."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Scale = Literal["1", "1/sqrt(d_model)"]
SiteName = Literal["gemma_scope", "after_gain", "original", "residual"]
"""The keys of `HOOK_SITES`, as configurations and stored files say them."""


@dataclass(frozen=True)
class HookSite:
    """A pair of hook points, `{layer}` standing for the layer, and the unit both are given in."""

    name: str
    hook_in: str
    hook_out: str
    scale: Scale

    def names(self, layer: int) -> tuple[str, str]:
        """Hook points of the input and the output, as files name them.

        >>> GEMMA_SCOPE.names(3)
        ('blocks.3.ln2.hook_normalized', 'blocks.3.hook_mlp_out')
        """
        return self.hook_in.format(layer=layer), self.hook_out.format(layer=layer)

    def hook_points(self, layer: int) -> tuple[str, str]:
        """The same two tensors under names that always fire, here and in other tools.

        `hook_mlp_in` must be switched on in TransformerLens and is unknown to other backends; the same
        tensor is `hook_resid_mid`.

        >>> RESIDUAL.hook_points(3)
        ('blocks.3.hook_resid_mid', 'blocks.3.hook_mlp_out')
        """
        hook_in, hook_out = self.names(layer)
        return hook_in.replace("hook_mlp_in", "hook_resid_mid"), hook_out

    def factor(self, d_model: int) -> float:
        """What input and output are both multiplied by before a dictionary sees them."""
        return 1.0 if self.scale == "1" else 1 / math.sqrt(d_model)


RESIDUAL_STREAM = "blocks.{layer}.hook_mlp_in"
NORMALIZED = "blocks.{layer}.ln2.hook_normalized"
NORM_OUT = "blocks.{layer}.ln2.hook_out"
BEFORE_POST_NORM = "blocks.{layer}.mlp.hook_out"
MLP_OUT = "blocks.{layer}.hook_mlp_out"

# Public transcoders read at one of three places, and their parameters need no other scaling: before the
# norm's gain (Gemma Scope, Llama Scope, GPT-2's), after it (Gemma Scope 2, Qwen3's, CRV's Llama), and the
# residual stream itself (Llama 3.2's by mntss; also the original study's first fault alone).
GEMMA_SCOPE = HookSite("gemma_scope", NORMALIZED, MLP_OUT, "1")
AFTER_GAIN = HookSite("after_gain", NORM_OUT, MLP_OUT, "1")
RESIDUAL = HookSite("residual", RESIDUAL_STREAM, MLP_OUT, "1")
# Where the original study applied Gemma Scope: kept to reproduce its numbers, never a default.
ORIGINAL = HookSite("original", RESIDUAL_STREAM, MLP_OUT, "1/sqrt(d_model)")

HOOK_SITES: dict[SiteName, HookSite] = {
    site.name: site for site in (GEMMA_SCOPE, AFTER_GAIN, ORIGINAL, RESIDUAL)
}


GEMMA_MODULES = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")
"""`AFTER_GAIN` of a Gemma, as Gemma Scope 2's files name its two ends."""

# What published files call a layer's hook points, after TransformerLens or Hugging Face modules. Outside
# Gemma `mlp.hook_out` is the tensor of `hook_mlp_out`; of a set for Gemma it would be none of our sites, and
# the site check says so.
PUBLISHED_INPUTS = {
    "ln2.hook_normalized": GEMMA_SCOPE,
    "ln2.hook_out": AFTER_GAIN,
    "mlp.hook_in": AFTER_GAIN,
    GEMMA_MODULES[0]: AFTER_GAIN,
    "hook_resid_mid": RESIDUAL,
    "hook_mlp_in": RESIDUAL,
}
PUBLISHED_OUTPUTS = ("hook_mlp_out", "mlp.hook_out", GEMMA_MODULES[1])


def site_between(hook_in: object, hook_out: object) -> HookSite:
    """The site that a published file names by its hook points, without the layer.

    >>> site_between("mlp.hook_in", "mlp.hook_out").name
    'after_gain'

    Raises:
        ValueError: unknown hook points; names them and those that are known.
    """
    for does, name, known in (
        ("reads", hook_in, PUBLISHED_INPUTS),
        ("writes", hook_out, PUBLISHED_OUTPUTS),
    ):
        if name not in [*known]:  # a file may say anything, a list too
            raise ValueError(f"{does} at {name!r}, expected one of {', '.join(known)}")
    return PUBLISHED_INPUTS[hook_in]


def sites_between(inputs: Iterable[str], outputs: Iterable[str]) -> tuple[HookSite, ...]:
    """Every site of these inputs, outputs and both scales; those of `HOOK_SITES` under their names."""
    known = {(site.hook_in, site.hook_out, site.scale): site for site in HOOK_SITES.values()}
    return tuple(
        known.get(parts) or HookSite(f"{parts[0]} -> {parts[1]}, times {parts[2]}", *parts)
        for parts in itertools.product(inputs, outputs, get_args(Scale))
    )
