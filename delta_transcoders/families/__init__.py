"""Families of language models: one file each, and nothing outside of this folder asks for a model type.

A new family is a subclass of `ModelFamily` in a file of its own, and its name in `FAMILIES`:
docs/NEW_FAMILY.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from delta_transcoders.families.family import ModelFamily
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.families.gemma3 import Gemma3, Gemma3Multimodal
from delta_transcoders.families.gpt2 import GPT2
from delta_transcoders.families.llama import Llama
from delta_transcoders.families.qwen2 import Qwen2
from delta_transcoders.families.qwen3 import Qwen3

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES = (Gemma2, Gemma3, Gemma3Multimodal, Llama, Qwen2, Qwen3, GPT2)


def family_by_type(model_type: str | None) -> type[ModelFamily]:
    """
    Raises:
        ValueError: no family has this `model_type`; names those that there are.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(f"{' or '.join(f.model_types)} ({f.title})" for f in FAMILIES)
    raise ValueError(
        f"model_type {model_type!r} is not supported, only {known}; what another family's file says is in "
        "docs/NEW_FAMILY.md"
    )


def family_of(config: PretrainedConfig) -> ModelFamily:
    """The anatomy of the model with this configuration.

    A multimodal model belongs to the family that names its own `model_type`, not that of its text part
    alone: its decoder is elsewhere.

    Raises:
        ValueError: as `family_by_type`.
    """
    return family_by_type(config.model_type)(config)
