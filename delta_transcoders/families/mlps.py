"""A decoder layer's MLP as a module of its own, from each site where dictionaries read.

Shapes: N positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from delta_transcoders.families.sites import AFTER_GAIN, GEMMA_SCOPE, RESIDUAL, HookSite

ExactMLPs = Mapping[HookSite, Callable[[nn.Module], nn.Module]]
"""By site, what makes of a decoder layer its MLP [N, D] to [N, D]; the layer's weights are shared."""

NEURON_READERS = ("down_proj", "c_proj")
"""Names of the linear layer of an MLP that reads its neurons, in all families; its others write them."""


class RMSGain(nn.Module):
    """What an RMSNorm does with the normalised stream: Llama's, Mistral's and Qwen's alike."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_ND: Tensor) -> Tensor:
        weight_D = self.norm.weight
        return weight_D * x_ND.to(weight_D.dtype)


class GemmaGain(nn.Module):
    """As `RMSGain`, of Gemma's norm: one plus the weight, in float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_ND: Tensor) -> Tensor:
        weight_D = self.norm.weight
        return (x_ND.float() * (1.0 + weight_D.float())).to(weight_D.dtype)


class LayerNormGain(nn.Module):
    """As `RMSGain`, of a LayerNorm: gain and bias."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_ND: Tensor) -> Tensor:
        return (x_ND * self.norm.weight + self.norm.bias).to(self.norm.weight.dtype)


class WeightsDtype(nn.Module):
    """The norm's dtype for an input that the model has in it, and that a cache holds as float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_ND: Tensor) -> Tensor:
        return x_ND.to(self.norm.weight.dtype)


def exact_mlps(
    gain: type[nn.Module], norm: str, mlp: str = "mlp", post_norm: str | None = None
) -> ExactMLPs:
    """The MLP from before its norm's gain, after it, and from the residual stream.

    Args:
        gain: what the norm does with the normalised stream.
        norm, mlp: names of the layer's submodules.
        post_norm: of the norm that the MLP's output passes, where there is one.
    """

    def after_gain(layer: nn.Module) -> list[nn.Module]:
        return [getattr(layer, name) for name in (mlp, post_norm) if name is not None]

    return {
        GEMMA_SCOPE: lambda layer: nn.Sequential(gain(getattr(layer, norm)), *after_gain(layer)),
        AFTER_GAIN: lambda layer: nn.Sequential(
            WeightsDtype(getattr(layer, norm)), *after_gain(layer)
        ),
        RESIDUAL: lambda layer: nn.Sequential(
            WeightsDtype(getattr(layer, norm)), getattr(layer, norm), *after_gain(layer)
        ),
    }
