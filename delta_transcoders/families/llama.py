"""Llama and what is built like it: Llama 3, SmolLM2, Mistral."""

from typing import ClassVar

from delta_transcoders.families.family import ModelFamily
from delta_transcoders.families.mlps import RMSGain, exact_mlps


class Llama(ModelFamily):
    title = "Llama, Mistral"
    model_types = ("llama", "mistral")
    mlps: ClassVar = exact_mlps(RMSGain, "post_attention_layernorm")
