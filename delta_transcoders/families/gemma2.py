"""Gemma 2, whose public dictionaries are Gemma Scope's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from delta_transcoders.families.family import ModelFamily
from delta_transcoders.families.sites import (
    AFTER_GAIN,
    BEFORE_POST_NORM,
    GEMMA_SCOPE,
    MLP_OUT,
    NORMALIZED,
    RESIDUAL_STREAM,
    sites_between,
)
from delta_transcoders.families.tokens import AfterBOS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Gemma2MLP(nn.Module):
    """A layer's norms and MLP [N, D] to [N, D], from the normalised residual stream before the gain."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.gain = layer.pre_feedforward_layernorm
        self.mlp = layer.mlp
        self.post_norm = layer.post_feedforward_layernorm

    def forward(self, x_ND: Tensor) -> Tensor:
        # As the norm itself does it: product in float32, then the model's dtype.
        scaled_ND = x_ND.float() * (1.0 + self.gain.weight.float())
        return self.post_norm(self.mlp(scaled_ND.to(self.gain.weight.dtype)))


class Gemma2(ModelFamily):
    title = "Gemma 2"
    model_types = ("gemma2",)
    site = GEMMA_SCOPE
    candidates = sites_between(
        (RESIDUAL_STREAM, NORMALIZED, AFTER_GAIN), (BEFORE_POST_NORM, MLP_OUT)
    )
    mlps: ClassVar = {GEMMA_SCOPE: Gemma2MLP}
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    decoder_path = "model"
    blocks_path = "model.layers"
    tokens = AfterBOS()

    def logits(self, model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
        logits_NV = model.get_output_embeddings()(hidden_ND).float()
        softcap = model.config.final_logit_softcapping
        return logits_NV if softcap is None else torch.tanh(logits_NV / softcap) * softcap
