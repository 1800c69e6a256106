"""What of a finetune is to be seen without any delta: in frozen dictionaries, and in the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SeenByDictionary(Metric):
    """How much of the change of an MLP's output, Δy = y_ft − y_base, a frozen dictionary T shows.

    As input to `update`, of n tokens that both models read:
        groups: int64 [n], the group of each token, in 0..n_groups - 1.
        change: [n, d_model], Δy.
        seen: [n, d_model], Δŷ = T(x_ft) − T(x_base), x being what either model's MLP reads.
        base: [n, d_model], y_base.

    As output of `compute`, each float64 [n_groups], over all tokens of a group together:
        `n_tokens`.
        `visible_change`: 1 − Σ‖Δy − Δŷ‖² / Σ‖Δy‖²; 1 where T shows all of it, 0 for nothing, less for what
            leads away; nan where nothing changed.
        `change_norm`: mean ‖Δy‖ / mean ‖y_base‖.

    Args:
        n_groups: number of groups.
        kwargs: passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, n_groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(n_groups, 5, dtype=torch.float64)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")

    def update(self, groups: Tensor, change: Tensor, seen: Tensor, base: Tensor) -> None:
        change, seen, base = change.double(), seen.double(), base.double()
        squares_N = change.square().sum(-1)
        missed_N = (change - seen).square().sum(-1)
        columns = (
            torch.ones_like(squares_N),
            missed_N,
            squares_N,
            squares_N.sqrt(),
            base.norm(dim=-1),
        )
        self.sums.index_add_(0, groups, torch.stack(columns, 1))

    def compute(self) -> dict[str, Tensor]:
        n_tokens, missed, squares, change, base = self.sums.unbind(1)
        return {
            "n_tokens": n_tokens,
            "visible_change": (1 - missed / squares).masked_fill(squares == 0, torch.nan),
            "change_norm": change / base,
        }


class LogprobChange(Metric):
    """The plain mean over positions of log p_ft − log p_base, for each entry of a vocabulary.

    As input to `update`:
        groups: int64 [n], the group of each position, in 0..n_groups - 1.
        change: [n, n_vocabulary], log p_ft − log p_base.

    As output of `compute`, float64:
        `n_positions`: [n_groups].
        `mean_change`: [n_groups, n_vocabulary], nan in groups without a position.

    Args:
        n_groups: number of groups.
        n_vocabulary: entries of the vocabulary.
        kwargs: passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, n_groups: int, n_vocabulary: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(n_groups, n_vocabulary, dtype=torch.float64)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")
        self.add_state("counts", default=zeros[:, 0].clone(), dist_reduce_fx="sum")

    def update(self, groups: Tensor, change: Tensor) -> None:
        self.sums.index_add_(0, groups, change.double())
        self.counts += groups.bincount(minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        return {"n_positions": self.counts, "mean_change": self.sums / self.counts[:, None]}
