"""The MLP's own neurons as a dictionary: what any dictionary of as many active features has to beat.

Shapes: N tokens, D d_model, F neurons.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.interventions.sources import LayerSources, Source
from delta_transcoders.weights import StoredWeights


class NeuronSource(Source):
    """An MLP of which each token's k largest neurons write, largest by |activation|·‖row‖.

    A norm that the MLP's output passes scales them as it does the whole output, so that all neurons together
    are the MLP.

    Args:
        mlp: what a `ModelFamily` gives for this site.
        down: the linear layer in it that reads the neurons; its bias is always written.
        k: neurons of a token.
    """

    def __init__(self, mlp: nn.Module, down: nn.Module, site: HookSite, k: int) -> None:
        super().__init__()
        self.mlp, self.down, self.site, self.k = mlp, down, site, k
        is_stored_transposed = not isinstance(down, nn.Linear)  # GPT-2's Conv1D
        norm_F = torch.linalg.vector_norm(down.weight, dim=1 if is_stored_transposed else 0)
        if not 1 <= k <= len(norm_F):
            raise ValueError(f"k is {k}, expected 1 to {len(norm_F)}, the MLP's neurons")
        self.register_buffer("norm_F", norm_F.detach())

    def forward(self, x_ND: Tensor, feature_mask_NF: None = None) -> tuple[Tensor, None]:
        seen: dict[str, Tensor] = {}
        handle = self.down.register_forward_hook(
            lambda module, args, out: seen.update(read_NF=args[0], written_ND=out)
        )
        try:
            y_ND = self.mlp(x_ND)
        finally:
            handle.remove()
        read_NF, written_ND = seen["read_NF"], seen["written_ND"]
        top_NK = (read_NF.abs() * self.norm_F).topk(self.k, dim=-1).indices
        kept_NF = torch.zeros_like(read_NF).scatter(-1, top_NK, read_NF.gather(-1, top_NK))
        share_ND = torch.where(written_ND == 0, 0, self.down(kept_NF) / written_ND)
        return y_ND * share_ND, None


class TopNeurons(LayerSources):
    """A model's MLPs, each token's k largest neurons alone.

    Args:
        model: folder or hub id.
        k: neurons of a token, as many as the dictionary that they stand beside has active features.
        dtype: of the model's weights.
    """

    def __init__(self, model: str, k: int, dtype: str = "float32") -> None:
        self.model, self.k, self.dtype = model, k, dtype

    def load(self, layers: Collection[int], site: HookSite, d_model: int) -> dict[int, Source]:
        weights = StoredWeights(self.model, self.dtype)
        family = family_of(weights.config)
        model = weights.with_layers(layers)
        return {
            layer: NeuronSource(
                family.mlp(model, layer, site), family.down(model, layer), site, self.k
            )
            for layer in layers
        }
