"""How well MLP outputs are reconstructed, per group, as a torchmetric."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

COUNTS = ("n", "cosine", "relative_l2", "error", "squares")


class GroupedReconstruction(Metric):
    """Cosine, relative L2 and FVU of reconstructions, per group; sums and counts, divided once.

    cosine = Σ cos(y, ŷ) / n; relative L2 = Σ (‖y − ŷ‖ / ‖y‖) / n; FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖², where ȳ
    is the mean of the group.

    As input to `update`:
        group: its number.
        y_ND: what the MLP writes.
        reconstruction_ND: what is written in its place.

    As output of `compute`:
        a dictionary of float64 [n_groups]: `mean_cos`, `mean_l2`, `fvu`; nan for an empty group.

    Args:
        n_groups: number of groups.
        d_model: D.

    >>> metric = GroupedReconstruction(n_groups=1, d_model=2)
    >>> metric.update(0, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    >>> {name: value.item() for name, value in metric.compute().items()}
    {'mean_cos': 1.0, 'mean_l2': 0.5, 'fvu': 1.0}
    """

    full_state_update = False
    sums: Tensor
    y_sum: Tensor

    def __init__(self, n_groups: int, d_model: int) -> None:
        super().__init__()
        sums = torch.zeros(len(COUNTS), n_groups, dtype=torch.float64)
        self.add_state("sums", default=sums, dist_reduce_fx="sum")
        y_sum = torch.zeros(n_groups, d_model, dtype=torch.float64)
        self.add_state("y_sum", default=y_sum, dist_reduce_fx="sum")

    def update(self, group: int, y_ND: Tensor, reconstruction_ND: Tensor) -> None:
        """Add tokens of one group."""
        if y_ND.shape != reconstruction_ND.shape:
            raise ValueError(
                f"y is {list(y_ND.shape)}, its reconstruction {list(reconstruction_ND.shape)}"
            )
        y_ND, ours_ND = y_ND.double(), reconstruction_ND.double()
        error_N = (y_ND - ours_ND).norm(dim=1)
        self.sums[:, group] += torch.stack(
            [
                torch.tensor(len(y_ND), dtype=torch.float64, device=y_ND.device),
                torch.cosine_similarity(y_ND, ours_ND).sum(),
                (error_N / y_ND.norm(dim=1)).sum(),
                error_N.square().sum(),
                y_ND.square().sum(),
            ]
        )
        self.y_sum[group] += y_ND.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """`mean_cos`, `mean_l2` and `fvu` of each group, float64 [n_groups]."""
        n, cosine, relative_l2, error, squares = self.sums
        centred = squares - self.y_sum.square().sum(1) / n
        return {"mean_cos": cosine / n, "mean_l2": relative_l2 / n, "fvu": error / centred}

    def _apply(self, fn, *args, **kwargs) -> GroupedReconstruction:
        # As in GroupedMean: half-precision training must not reach the states.
        return super()._apply(lambda state: state.to(fn(state).device), *args, **kwargs)
