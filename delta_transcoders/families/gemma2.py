"""Gemma 2, whose public dictionaries are Gemma Scope's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from delta_transcoders.families.family import ModelFamily
from delta_transcoders.families.mlps import GemmaGain, exact_mlps
from delta_transcoders.families.sites import (
    BEFORE_POST_NORM,
    GEMMA_SCOPE,
    MLP_OUT,
    NORM_OUT,
    NORMALIZED,
    RESIDUAL_STREAM,
    sites_between,
)
from delta_transcoders.families.tokens import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Gemma2(ModelFamily):
    title = "Gemma 2"
    model_types = ("gemma2",)
    site = GEMMA_SCOPE
    candidates = sites_between((RESIDUAL_STREAM, NORMALIZED, NORM_OUT), (BEFORE_POST_NORM, MLP_OUT))
    mlps: ClassVar = exact_mlps(
        GemmaGain, "pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"
    )
    tokens = TokenPolicy(needs_bos=True)

    def logits(self, model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
        logits_NV = super().logits(model, hidden_ND)
        softcap = model.config.final_logit_softcapping
        return logits_NV if softcap is None else torch.tanh(logits_NV / softcap) * softcap
