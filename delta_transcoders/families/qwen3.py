"""Qwen3, whose public dictionaries leave out position 0: the tokenizer has no BOS."""

from typing import ClassVar

from delta_transcoders.families.family import ModelFamily
from delta_transcoders.families.mlps import RMSGain, exact_mlps


class Qwen3(ModelFamily):
    title = "Qwen3"
    model_types = ("qwen3",)
    mlps: ClassVar = exact_mlps(RMSGain, "post_attention_layernorm")
