"""Gemma 3, whose public dictionaries are Gemma Scope 2's: text models, and those that see images too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from delta_transcoders.families.family import ModelFamily
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.families.sites import AFTER_GAIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Gemma3(Gemma2):
    title = "Gemma 3"
    model_types = ("gemma3_text",)
    site = AFTER_GAIN


class Gemma3Multimodal(Gemma3):
    """From 4b up: the text model stands inside of one that reads images, which stay out of it here.

    The decoder is the outer of the two: the inner one is given embeddings, no ids.
    """

    title = "Gemma 3 with images"
    model_types = ("gemma3",)
    blocks_path = "model.language_model.layers"
    lora_excluded = r"model\.(vision_tower|multi_modal_projector)\..*"

    def logits(self, model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
        return ModelFamily.logits(self, model, hidden_ND)  # no softcap
