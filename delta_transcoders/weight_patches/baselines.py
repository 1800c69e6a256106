"""What a delta is measured against at equal numbers of parameters: parts of the finetune's own change.

α·ΔW; the leading singular components of ΔW, as they are or trained on; the differences of some MLP neurons; a
bias alone.

Shapes: I a linear layer's input, D its output, C components of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from delta_transcoders.families.mlps import NEURON_READERS
from delta_transcoders.weight_patches.patch import LayerPatch, WeightPatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = 1e-5
"""Singular values below this share of the largest are rounding of the merged weights."""


def delta_parameters(n_features: int, d_model: int) -> int:
    """Numbers of so many features of a delta: encoder row, bias, decoder row.

    >>> delta_parameters(32, 96)
    6176
    """
    return n_features * (2 * d_model + 1)


def differences(base: PreTrainedModel, finetuned: PreTrainedModel) -> dict[str, Tensor]:
    """W_finetuned − W_base of every linear layer that differs, [I, D] float32, by path.

    Raises:
        ValueError: the models are the same, or differ in more than linear layers' weights; names the first.
    """
    from transformers.pytorch_utils import Conv1D

    theirs = dict(finetuned.named_parameters())
    changed = [n for n, w in base.named_parameters() if not torch.equal(w, theirs[n])]
    found = {}
    for path, module in base.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and f"{path}.weight" in changed:
            changed.remove(f"{path}.weight")
            difference = theirs[f"{path}.weight"].detach().float() - module.weight.detach().float()
            found[path] = difference if isinstance(module, Conv1D) else difference.T
    if changed:
        raise ValueError(
            f"the finetune changed {changed[0]!r}, which is no weight of a linear layer: these baselines are "
            "for finetunes of linear layers, as LoRA's"
        )
    if not found:
        raise ValueError("the finetuned model's weights are the base model's: there is no change")
    return found


def singular_values(difference_ID: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [I, C], S [C] and V [C, D] of a weight difference, S descending and none of it rounding."""
    U, S, V = torch.linalg.svd(difference_ID.double(), full_matrices=False)
    rank = int((S / S[0] > NOISE).sum())
    return U[:, :rank], S[:rank], V[:rank]


def scaled_difference(changes: Mapping[str, Tensor], alpha: float) -> WeightPatch:
    """α·ΔW as it is. Merged in bfloat16 it has full rank, so that its components would be more work."""
    return WeightPatch(
        {path: LayerPatch(A=alpha * change_ID) for path, change_ID in changes.items()}
    )


def all_components(changes: Mapping[str, Tensor]) -> WeightPatch:
    """ΔW as all of its singular components."""
    layers = {}
    for path, change_ID in changes.items():
        U, S, V = singular_values(change_ID)
        layers[path] = LayerPatch(U * S.sqrt(), S.sqrt()[:, None] * V)
    return WeightPatch(layers)


def truncated(changes: Mapping[str, Tensor], n_parameters: int) -> WeightPatch:
    """The singular components of all ΔW that tell most of Σ‖ΔW‖² for the numbers that they take.

    A component of singular value σ tells σ² and takes I + D numbers: they are taken in the order of
    σ² / (I + D) as long as they fit.

    Raises:
        ValueError: not one fits.
    """
    parts = {path: singular_values(change_ID) for path, change_ID in changes.items()}
    offered = [
        (float(s**2) / sum(changes[path].shape), path, c)
        for path, (_, S, _) in parts.items()
        for c, s in enumerate(S.tolist())
    ]
    kept, left = defaultdict(list), n_parameters
    for _, path, c in sorted(offered, key=lambda offer: (-offer[0], *offer[1:])):
        if sum(changes[path].shape) <= left:
            kept[path].append(c)
            left -= sum(changes[path].shape)
    if not kept:
        smallest = min(sum(change.shape) for change in changes.values())
        raise ValueError(
            f"{n_parameters} parameters hold no singular component, the smallest takes {smallest}"
        )
    layers = {}
    for path, chosen in kept.items():
        U, S, V = parts[path]
        roots = S[chosen].sqrt()
        layers[path] = LayerPatch(U[:, chosen] * roots, roots[:, None] * V[chosen])
    return WeightPatch(layers)


def biases(changes: Mapping[str, Tensor]) -> WeightPatch:
    """A bias of zeros at every layer that the finetune changed."""
    return WeightPatch({path: LayerPatch(b=torch.zeros(c.shape[1])) for path, c in changes.items()})


def neuron_differences(changes: Mapping[str, Tensor]) -> WeightPatch:
    """ΔW of the MLPs, with a gate for every neuron in each of its layers.

    Raises:
        ValueError: the finetune changed no MLP.
    """
    layers = {
        path: LayerPatch(B=change) if _reads_neurons(path) else LayerPatch(A=change)
        for path, change in changes.items()
        if _mlp_of(path)
    }
    if not layers:
        raise ValueError("the finetune changed no MLP, and so no neuron")
    return WeightPatch(layers)


def best_neurons(
    changes: Mapping[str, Tensor], scores: Mapping[str, Tensor], n_parameters: int
) -> WeightPatch:
    """The differences of the neurons with the largest scores, over all layers jointly, as long as they fit.

    Args:
        scores: by path of `neuron_differences`, of every neuron [C]; those of an MLP's layers are added up.

    Raises:
        ValueError: not one neuron fits.
    """
    whole = dict(neuron_differences(changes).items())
    by_mlp: dict[str, Tensor] = {}
    cost: dict[str, int] = defaultdict(int)
    for path, layer in whole.items():
        mlp = _mlp_of(path)
        by_mlp[mlp] = by_mlp.get(mlp, 0) + scores[path]
        cost[mlp] += sum(changes[path].shape) - layer.n_components
    ordered = sorted(
        (-score, mlp, neuron)
        for mlp, scores_C in by_mlp.items()
        for neuron, score in enumerate(scores_C.tolist())
    )
    chosen, left = defaultdict(list), n_parameters
    for _, mlp, neuron in ordered:
        if cost[mlp] <= left:
            chosen[mlp].append(neuron)
            left -= cost[mlp]
    if not chosen:
        raise ValueError(
            f"{n_parameters} parameters hold no neuron, one takes {min(cost.values())}"
        )
    layers = {}
    for path, layer in whole.items():
        if neurons := chosen[_mlp_of(path)]:
            one_hot = torch.eye(layer.n_components)[neurons]
            if _reads_neurons(path):
                layers[path] = LayerPatch(one_hot.T, layer.B[neurons])
            else:
                layers[path] = LayerPatch(layer.A[:, neurons], one_hot)
    return WeightPatch(layers, n_parameters - left)


def _reads_neurons(path: str) -> bool:
    return path.endswith(NEURON_READERS)


def _mlp_of(path: str) -> str:
    """The MLP that a linear layer belongs to; empty for one of no MLP.

    >>> _mlp_of("model.layers.3.mlp.up"), _mlp_of("model.layers.3.self_attn.q")
    ('model.layers.3.mlp', '')
    """
    parent = path.rpartition(".")[0]
    return parent if parent.endswith(".mlp") else ""
