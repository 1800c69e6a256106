"""Does the configured hook site fit the base dictionaries? Asked of the base model, before any delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delta_transcoders.activations.capture import capture_hooks
from delta_transcoders.activations.hook_sites import (
    HookSite,
    SiteFit,
    hook_names,
    hook_site_check,
)
from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder
from delta_transcoders.language_models import encode, pad
from delta_transcoders.metrics.reconstruction import GroupedReconstruction, ReconstructionFit
from delta_transcoders.tasks.examples import Example

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def _activations(
    bridge: TransformerBridge, examples: Sequence[Example], layer: int, batch_size: int
) -> dict[str, Tensor]:
    """Tensors [n, d_model] at the layer's hook points, over all kept tokens of the prompts."""
    names = hook_names(layer)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(examples), batch_size):
        rows = [encode(bridge.tokenizer, e)[0] for e in examples[start : start + batch_size]]
        input_ids = pad(rows, bridge.tokenizer.pad_token_id, "right")
        mask = pad([[1] * len(row) for row in rows], 0, "right")
        found = capture_hooks(bridge, input_ids, mask, names, stop_at_layer=layer + 1)
        for name, tensor in found.items():
            parts[name].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def base_model_fits(
    bridge: TransformerBridge,
    layer: int,
    bases: Mapping[str, JumpReLUTranscoder],
    examples: Sequence[Example],
    site: HookSite,
    batch_size: int = 32,
) -> tuple[list[SiteFit], dict[str, ReconstructionFit]]:
    """What one layer's base dictionaries do on the model they were made for.

    Args:
        bridge: the un-finetuned model.
        bases: by key, on the model's device; the first is tried at every candidate site.
        examples: whose prompts are read; a base model would not have written the targets.
        site: where the fits are measured.

    Returns:
        The table of `hook_site_check`, and by key the fit at `site`.
    """
    activations = _activations(bridge, examples, layer, batch_size)
    table = hook_site_check(activations, next(iter(bases.values())), layer)
    x, y = (activations[name].float() for name in site.names(layer))
    factor = site.factor(x.shape[1])
    fits = {}
    for key, base in bases.items():
        metric = GroupedReconstruction(1, y.shape[1]).to(y.device)
        for x_ND, y_ND in zip((x * factor).split(1024), (y * factor).split(1024), strict=True):
            a_NF = base.encode(x_ND)
            metric.update(0, y_ND, base.decode(a_NF), (a_NF > 0).sum())
        fits[key] = metric.fit()
    return table, fits
