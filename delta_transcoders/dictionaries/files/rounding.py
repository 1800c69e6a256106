"""Dictionaries in half the bytes: rounded to bfloat16, and what the rounding costs.

Shapes: N tokens, I = d_in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from delta_transcoders.dictionaries.files import DType
from delta_transcoders.dictionaries.transcoder import Transcoder, rows_at_once

TokensOf = Callable[[int], Tensor | None]
"""A layer's inputs [N, I] in the site's unit, to measure the cost on; None where there are none."""


@dataclass(frozen=True)
class RoundingCost:
    """What changes when a dictionary is rounded; y is its output before, ŷ after."""

    n_tokens: int
    overall: float
    """√(Σ‖ŷ − y‖² / Σ‖y‖²)"""
    worst: float
    """The largest ‖ŷ − y‖ of a token, over the root mean square of ‖y‖: on some tokens a delta writes
    nothing."""
    n_active: int
    """Active features before, summed over tokens."""
    n_changed: int
    """Features active before and not after, or the other way round."""


def rounded(dictionary: Transcoder, dtype: DType) -> Transcoder:
    """The dictionary with all tensors rounded to the nearest, and computed in float32 as before."""
    tensors = {n: t.to(getattr(torch, dtype)) for n, t in dictionary.state_dict().items()}
    return Transcoder(
        **tensors,
        activation=dictionary.activation,
        k=dictionary.k,
        scale_in=dictionary.scale_in,
        scale_out=dictionary.scale_out,
    )


@torch.inference_mode()
def rounding_cost(before: Transcoder, after: Transcoder, x_NI: Tensor) -> RoundingCost:
    """Compare a dictionary with its rounded self on some inputs."""
    squared_error = squares = worst = 0.0
    n_active = n_changed = 0
    for part_NI in x_NI.float().split(rows_at_once(before.n_features)):
        a, b = before.encode(part_NI), after.encode(part_NI)
        y, difference = before.decode(a, part_NI), after.decode(b, part_NI)
        difference_N = (difference - y).square().sum(1)
        squared_error += difference_N.sum().item()
        squares += y.square().sum().item()
        worst = max(worst, difference_N.max().item())
        n_active += int((a != 0).sum())
        n_changed += int(((a != 0) != (b != 0)).sum())
    mean_square = squares / len(x_NI)
    return RoundingCost(
        n_tokens=len(x_NI),
        overall=math.sqrt(squared_error / squares) if squares else math.nan,
        worst=math.sqrt(worst / mean_square) if squares else math.nan,
        n_active=n_active,
        n_changed=n_changed,
    )
