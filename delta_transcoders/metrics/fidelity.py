"""Whether a delta writes what finetuning changed, or something else that does the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Fidelity(Metric):
    """How like the change of an MLP, d = MLP_ft(x) − MLP_base(x), what a delta writes on the same x is.

    As input to `update`:
        group: index of the group, as of a layer and a delta.
        delta: [n, d_model], what the delta writes.
        change: [n, d_model], d.

    As output of `compute`, each float64 [n_groups], over all tokens of a group together:
        `cos`: Σ⟨delta, d⟩ / √(Σ‖delta‖² Σ‖d‖²); nan where either is 0 throughout.
        `unexplained`: Σ‖d − delta‖² / Σ‖d‖²; 0 for d itself, 1 for nothing, more for what leads away.
        `norm_ratio`: √(Σ‖delta‖² / Σ‖d‖²).

    unexplained = 1 − 2 · cos · norm_ratio + norm_ratio².

    Args:
        n_groups: number of groups.
        kwargs: passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, n_groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(n_groups, 3, dtype=torch.float64)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")

    def update(self, group: int, delta: Tensor, change: Tensor) -> None:
        delta, change = delta.double(), change.double()
        products = [(a * b).sum() for a, b in ((delta, change), (delta, delta), (change, change))]
        self.sums[group] += torch.stack(products).to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        inner, delta, change = self.sums.unbind(1)
        return {
            "cos": inner / (delta * change).sqrt(),
            "unexplained": (change - 2 * inner + delta) / change,
            "norm_ratio": (delta / change).sqrt(),
        }
