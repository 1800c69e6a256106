"""What a model's size decides where a study's file does not say it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STEPS = 600
"""Optimiser steps of a delta; the tiny study's reaches its loss after about as many."""
LOGITS = 2**29
"""Numbers in the logits of one pass, at most: 2 GB in float32."""
MOST_NEW_TOKENS = 256
"""Longest answer by default."""


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

    @property
    def is_small(self) -> bool:
        """Up to half a billion parameters: 2 GB of weights in float32."""
        return self.n_parameters < 5e8

    @property
    def dtype(self) -> str:
        """Of the weights, where a study's file does not say it."""
        return "float32" if self.is_small else "bfloat16"


@dataclass(frozen=True)
class Defaults:
    """Options of the stages that a study's file may leave open; each is named as its stage's option.

    Attributes:
        dtype: of the models' weights: see `ModelSize`.
        cache_dtype: of the stored activations, half of float32's disk.
        d_new: a delta's features: a sixteenth of d_model as a power of two, from 32 to 128.
        lr: the tiny study's for small models; a fifth of it for others, which was not tried.
        batch_tokens: of an optimiser step: the tiny study's, or twice as many.
        passes: over the activations of the training examples, for about `STEPS` steps.
        batch_size, rows_per_pass: examples and rows at once. Targets' logits are
            [rows x tokens of the longest, vocabulary], which `LOGITS` bounds.
        max_new_tokens: the longest target and a quarter more, 64 where there are no targets;
            `MOST_NEW_TOKENS` at most.
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
        n_tokens: of the examples that are trained on.
        n_target: of the longest target; 0 where there are no targets.
        dtype: that the study file names.
    """
    is_small, has_few_words = size.is_small, size.vocabulary < 32_000
    batch_tokens = 1024 if is_small else 2048
    most_rows = max(1, LOGITS // (size.vocabulary * max(1, n_target)))
    return Defaults(
        dtype=dtype or size.dtype,
        cache_dtype="float16" if is_small else "bfloat16",
        d_new=min(128, max(32, 2 ** round(math.log2(size.d_model / 16)))),
        lr=5e-3 if is_small else 1e-3,
        batch_tokens=batch_tokens,
        passes=min(64, max(4, math.ceil(STEPS * batch_tokens / n_tokens))),
        batch_size=min(100 if has_few_words else 32, most_rows),
        rows_per_pass=min(256 if has_few_words else 64, most_rows),
        max_new_tokens=min(MOST_NEW_TOKENS, with_a_quarter_more(n_target)) if n_target else 64,
    )


def with_a_quarter_more(n_target: int) -> int:
    """Tokens that an answer may have which is about as long as a target.

    >>> with_a_quarter_more(4), with_a_quarter_more(20)
    (16, 32)
    """
    return max(16, 8 * math.ceil(1.25 * n_target / 8))
