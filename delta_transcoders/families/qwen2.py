"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and a tokenizer without BOS."""

from typing import ClassVar

from delta_transcoders.families.family import ModelFamily
from delta_transcoders.families.mlps import RMSGain, exact_mlps


class Qwen2(ModelFamily):
    title = "Qwen2"
    model_types = ("qwen2",)
    mlps: ClassVar = exact_mlps(RMSGain, "post_attention_layernorm")
