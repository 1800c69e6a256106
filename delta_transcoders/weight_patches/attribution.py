"""How much each component of a weight patch contributes: integrated gradients over its gates.

Shapes: E examples, C components of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delta_transcoders.language_models import TokenizedExample, supervised_logits, target_batch
from delta_transcoders.weight_patches.patch import WeightPatch, patched

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode(False)  # Lightning evaluates in it, and nothing could be differentiated
@torch.enable_grad()
def attribute_components(
    model: PreTrainedModel,
    patch: WeightPatch,
    rows: Sequence[TokenizedExample],
    pad_token_id: int,
    steps: int = 8,
    rows_per_pass: int = 16,
) -> dict[str, Tensor]:
    """By path, each component's integrated gradient of Σ log p(target) over its gate, float64 [E, C].

    As `interventions.attribution.attribute` does for features: all gates open at once from 0 to 1, by the
    midpoint rule; over components the attributions add up to the change that the whole patch makes.
    """
    found = {
        path: torch.zeros(len(rows), layer.n_components, dtype=torch.float64)
        for path, layer in patch.items()
    }
    device = next(model.parameters()).device
    for start in range(0, len(rows), rows_per_pass):
        part = rows[start : start + rows_per_pass]
        tokens = target_batch(part, pad_token_id)
        tokens = {f"{name}_BT": tensor.to(device) for name, tensor in tokens.items()}
        for step in range(steps):
            gates = {
                path: torch.full(
                    (len(part), 1, layer.n_components),
                    (step + 0.5) / steps,
                    device=device,
                    requires_grad=True,
                )
                for path, layer in patch.items()
            }
            with patched(model, patch, gates):
                logits_NV, labels_N = supervised_logits(model, **tokens)
            total = logits_NV.log_softmax(-1).gather(1, labels_N[:, None]).double().sum()
            gradients = torch.autograd.grad(total, list(gates.values()))
            for path, gradient_B1C in zip(gates, gradients, strict=True):
                mine_BC = gradient_B1C[:, 0].double().cpu() / steps
                found[path][start : start + len(part)] += mine_BC
    return found
