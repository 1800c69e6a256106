"""What a model's size decides where a study's file does not say it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STEPS = 600
"""Optimiser steps of a delta; the tiny study's reaches its loss after about as many."""


@dataclass(frozen=True)
class ModelSize:
    """A model's sizes, from its `config.json`."""

    d_model: int
    n_layers: int
    d_mlp: int
    vocabulary: int
    context: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelSize:
        """
        Args:
            config: a Hugging Face configuration; of a multimodal model its text part is looked at.

        Raises:
            ValueError: it does not say how wide and deep the model is.
        """
        text = config.get("text_config") or config

        def first(*names: str, default: int | None = None) -> int | None:
            return next((text[name] for name in names if text.get(name)), default)

        d_model = first("hidden_size", "n_embd")
        n_layers = first("num_hidden_layers", "n_layer")
        if d_model is None or n_layers is None:
            raise ValueError("its config.json names no hidden_size or num_hidden_layers")
        return cls(
            d_model=d_model,
            n_layers=n_layers,
            d_mlp=first("intermediate_size", "n_inner", default=4 * d_model),
            # Gemma 3's multimodal configurations leave it out where it is the family's own.
            vocabulary=first("vocab_size", default=262_208),
            context=first("max_position_embeddings", "n_positions"),
        )

    @property
    def n_parameters(self) -> int:
        """About: attention of four square matrices, an MLP of three, and one embedding."""
        layer = 4 * self.d_model**2 + 3 * self.d_model * self.d_mlp
        return self.n_layers * layer + self.vocabulary * self.d_model


@dataclass(frozen=True)
class Defaults:
    """Options of the stages that a study's file may leave open; each is named as its stage's option.

    Attributes:
        dtype: of the models' weights: float32 up to half a billion parameters (2 GB), bfloat16 above.
        cache_dtype: of the stored activations, half of float32's disk.
        d_new: a delta's features: a sixteenth of d_model as a power of two, from 32 to 128.
        lr: those of the tiny study and of Gemma 2 2B, which were tried.
        batch_tokens: of an optimiser step, likewise.
        passes: over the activations, for about `STEPS` steps.
        batch_size, rows_per_pass: examples and rows at once: [tokens, vocabulary] float32 logits of each
            are held.
        max_new_tokens: the longest target and a quarter more, 64 where there are no targets.
    """

    dtype: str
    cache_dtype: str
    d_new: int
    lr: float
    batch_tokens: int
    passes: int
    batch_size: int
    rows_per_pass: int
    max_new_tokens: int


def defaults_for(
    size: ModelSize, n_tokens: int, n_target: int, dtype: str | None = None
) -> Defaults:
    """Defaults for a model and the examples that it is looked at on.

    Args:
        n_tokens: of all examples.
        n_target: of the longest target; 0 where there are no targets.
        dtype: that the study file names.
    """
    is_small, has_few_words = size.n_parameters < 5e8, size.vocabulary < 32_000
    batch_tokens = 1024 if is_small else 2048
    return Defaults(
        dtype=dtype or ("float32" if is_small else "bfloat16"),
        cache_dtype="float16" if is_small else "bfloat16",
        d_new=min(128, max(32, 2 ** round(math.log2(size.d_model / 16)))),
        lr=5e-3 if is_small else 1e-3,
        batch_tokens=batch_tokens,
        passes=min(64, max(4, math.ceil(STEPS * batch_tokens / n_tokens))),
        batch_size=100 if has_few_words else 32,
        rows_per_pass=256 if has_few_words else 64,
        max_new_tokens=max(16, 8 * math.ceil(1.25 * n_target / 8)) if n_target else 64,
    )
