"""What differs between families of language models.

Shapes: N positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from delta_transcoders.families.mlps import ExactMLPs
from delta_transcoders.families.sites import (
    AFTER_GAIN,
    BEFORE_POST_NORM,
    MLP_OUT,
    NORM_OUT,
    NORMALIZED,
    RESIDUAL_STREAM,
    HookSite,
    sites_between,
)
from delta_transcoders.families.tokens import TokenPolicy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class ModelFamily:
    """One model's anatomy, by its family. A family is a subclass of this in a file of its own.

    What is set here is as most families have it: they are built like Llama.

    Args:
        config: the model's; of a multimodal model its text part is looked at.

    Attributes:
        title: the family's name in prose.
        model_types: `model_type` of the Hugging Face configurations that belong to it.
        site: where the family's public dictionaries read and write.
        candidates: sites that could be meant instead, `site` among them; the site check tries them all.
        mlps: by site at which a layer's MLP can be put back exactly, what makes it of a decoder layer: a
            module from the site's input [N, D] to its output [N, D], which shares the layer's weights.
        lora_targets: names of the linear layers that get an adapter.
        lora_excluded: regular expression of paths that get none, whatever the layer's name; None: no path.
        decoder_path, blocks_path: submodules of the causal model: what turns ids into hidden states, and
            the list of its layers.
        final_norm_path: the norm after the last layer.
        down_path: within a layer, the linear layer that reads the MLP's neurons.
        tokens: which positions are neither captured nor replaced.
        n_layers, d_model: numbers of layers, and of entries of the residual stream.
        context: longest text in tokens.
    """

    title: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    site: ClassVar[HookSite] = AFTER_GAIN
    candidates: ClassVar[tuple[HookSite, ...]] = sites_between(
        (RESIDUAL_STREAM, NORMALIZED, NORM_OUT), (MLP_OUT,)
    )
    mlps: ClassVar[ExactMLPs]
    lora_targets: ClassVar[tuple[str, ...]] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    lora_excluded: ClassVar[str | None] = None
    decoder_path: ClassVar[str] = "model"
    blocks_path: ClassVar[str] = "model.layers"
    final_norm_path: ClassVar[str] = "model.norm"
    down_path: ClassVar[str] = "mlp.down_proj"
    tokens: ClassVar[TokenPolicy] = TokenPolicy()

    def __init__(self, config: PretrainedConfig) -> None:
        text = config.get_text_config()
        self.n_layers: int = text.num_hidden_layers
        self.d_model: int = text.hidden_size
        self.context: int = text.max_position_embeddings

    @property
    def has_post_norm(self) -> bool:
        """Whether a norm follows the MLP, so that its output can be meant before it or after it."""
        return any(site.hook_out == BEFORE_POST_NORM for site in self.candidates)

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        return model.get_submodule(self.decoder_path)

    def mlp(self, model: PreTrainedModel, layer: int, site: HookSite) -> nn.Module:
        """The exact function of a layer's MLP at a site; the model must not be wrapped by a bridge.

        Raises:
            ValueError: the site is not one of `mlps`.
        """
        if site not in self.mlps:
            known = ", ".join(repr(exact.name) for exact in self.mlps)
            raise ValueError(
                f"hook site {site.name!r} is not where an MLP of {self.title} can be put back exactly; use "
                f"{known}"
            )
        return self.mlps[site](model.get_submodule(f"{self.blocks_path}.{layer}"))

    def down(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """The linear layer of a layer's MLP that reads its neurons."""
        return model.get_submodule(f"{self.blocks_path}.{layer}.{self.down_path}")

    def through_final_norm(self, model: PreTrainedModel, rows_ND: Tensor) -> Tensor:
        """Directions of the residual stream times the final norm's gain, float32; what it divides by, which
        depends on the text, is left out. The model must not be wrapped by a bridge."""
        norm = model.get_submodule(self.final_norm_path)
        # Mean 0 and variance 1, so that the norm gives the gain alone, in whatever way it is stored.
        signs_D = torch.ones(self.d_model, dtype=model.dtype, device=model.device)
        signs_D[1::2] = -1
        gain_D = (norm(signs_D).float() - norm(torch.zeros_like(signs_D)).float()) * signs_D
        rows_ND = rows_ND.to(gain_D)
        if isinstance(norm, nn.LayerNorm):
            rows_ND = rows_ND - rows_ND.mean(-1, keepdim=True)
        return rows_ND * gain_D

    def logits(self, model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
        """The model's logits [N, V] in float32 from the decoder's last hidden states."""
        return model.get_output_embeddings()(hidden_ND).float()
