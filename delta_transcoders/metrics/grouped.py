"""Means over groups of rows, exact over batches and processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def _grouped_sums(groups: Tensor, values: Tensor, n_groups: int) -> Tensor:
    """Σ of values[n] within each group, float64 [n_groups]; groups[n] are indexes.

    >>> _grouped_sums(torch.tensor([0, 2, 0]), torch.tensor([1.0, 5.0, 2.0]), 3)
    tensor([3., 0., 5.], dtype=torch.float64)
    """
    sums = torch.zeros(n_groups, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, groups, values.double())


def _check(groups: Tensor, numerator: Tensor, denominator: Tensor, n_groups: int) -> None:
    shapes = [tuple(tensor.shape) for tensor in (groups, numerator, denominator)]
    if groups.ndim != 1 or len(set(shapes)) != 1:
        raise ValueError(
            "groups, numerator and denominator need one shape [n], got {}, {} and {}".format(
                *shapes
            )
        )
    if groups.dtype != torch.long:
        raise ValueError(f"groups must be int64 indexes, got {groups.dtype}")
    outside = groups[(groups < 0) | (groups >= n_groups)]
    if len(outside):
        raise ValueError(
            f"group indexes must lie in 0..{n_groups - 1}, got {outside.unique().tolist()}"
        )


class GroupedMean(Metric):
    r"""mean[g] = Σ_{i in group g} numerator_i / Σ_{i in group g} denominator_i.

    Sums and counts are kept in float64 and divided once, in `compute`, so that the result does not
    depend on how the rows were batched or spread over processes. A group may be any crossing
    (layer x subset x condition) that the caller numbers.

    As input to `update`:
        groups: int64 [n], the group of each row, in 0..n_groups - 1.
        numerator: [n], what is averaged (a rate: 0 or 1; a mean cross-entropy: the summed loss).
        denominator: [n], the weight of each row (tokens, say); by default 1 each.

    As output of `compute`:
        float64 [n_groups], nan where the denominators sum to 0. torchmetrics makes it a scalar
        for a single group.

    The states `numerator` and `denominator`, both float64 [n_groups], are the sums. They follow the
    module to a device but never to another dtype. Read straight, they are this process's part.

    Args:
        n_groups: number of groups, at least 1.
        kwargs: passed on to `torchmetrics.Metric`.

    Raises:
        ValueError: shapes differ, groups are not int64, or an index is out of range.

    >>> mean_ce = GroupedMean(n_groups=3)
    >>> mean_ce.update(torch.tensor([0, 0, 2]), torch.tensor([6.0, 2, 5]), torch.tensor([3, 1, 10]))
    >>> mean_ce.compute()
    tensor([2.0000,    nan, 0.5000], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    numerator: Tensor
    denominator: Tensor

    def __init__(self, n_groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n_groups < 1:
            raise ValueError(f"n_groups must be at least 1, got {n_groups}")
        self.n_groups = n_groups
        zeros = torch.zeros(n_groups, dtype=torch.float64)
        self.add_state("numerator", default=zeros, dist_reduce_fx="sum")
        self.add_state("denominator", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, groups: Tensor, numerator: Tensor, denominator: Tensor | None = None) -> None:
        """Add rows: groups[n], numerator[n], denominator[n] (by default 1 each)."""
        if denominator is None:
            denominator = torch.ones_like(numerator)
        _check(groups, numerator, denominator, self.n_groups)
        self.numerator += _grouped_sums(groups, numerator, self.n_groups)
        self.denominator += _grouped_sums(groups, denominator, self.n_groups)

    def compute(self) -> Tensor:
        """The mean of each group, float64 [n_groups]."""
        mean = self.numerator / self.denominator
        return mean.masked_fill(self.denominator == 0, torch.nan)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "GroupedMean":
        # `module.to(torch.bfloat16)`, which half-precision training calls, would reach the states,
        # and a bfloat16 count stops at 256.
        return super()._apply(lambda state: state.to(fn(state).device), *args, **kwargs)
