"""GPT-2: LayerNorm, biases, learned positions, and linear layers that are stored transposed (Conv1D).

The bridge computes LayerNorm step by step: from the residual stream the MLP is exact to float rounding, from
the other sites bit for bit.
"""

from typing import ClassVar

from delta_transcoders.families.family import ModelFamily
from delta_transcoders.families.mlps import LayerNormGain, exact_mlps
from delta_transcoders.families.sites import GEMMA_SCOPE


class GPT2(ModelFamily):
    title = "GPT-2"
    model_types = ("gpt2",)
    site = GEMMA_SCOPE  # before the gain, as Dunefsky's transcoders; those write the output less its mean
    mlps: ClassVar = exact_mlps(LayerNormGain, "ln_2")
    lora_targets = ("c_attn", "c_proj", "c_fc")
    decoder_path = "transformer"
    blocks_path = "transformer.h"
    final_norm_path = "transformer.ln_f"
    down_path = "mlp.c_proj"
