"""How well MLP outputs are reconstructed: FVU, cosine, relative L2 and L0, as one torchmetric."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

SUMS = ("n_tokens", "squared_error", "squares", "cosines", "relative_l2s", "active")


@dataclass(frozen=True)
class ReconstructionFit:
    """How well outputs are reconstructed: sums over tokens, divided once, when read."""

    n_tokens: int
    squared_error: float
    """Σ‖y − ŷ‖²"""
    squares: float
    """Σ‖y − ȳ‖²"""
    cosines: float
    """Σ cos(y, ŷ)"""
    active: float
    """Σ number of active features"""

    @property
    def fvu(self) -> float:
        """Σ‖y − ŷ‖² / Σ‖y − ȳ‖²; nan where y never varies."""
        return self.squared_error / self.squares if self.squares else math.nan

    @property
    def cosine(self) -> float:
        return self.cosines / self.n_tokens

    @property
    def l0(self) -> float:
        return self.active / self.n_tokens


class GroupedReconstruction(Metric):
    """FVU, cosine and relative L2 of reconstructions, per group; sums in float64, divided once.

    FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖², where ȳ is the mean of the group; cosine = Σ cos(y, ŷ) / n;
    relative L2 = Σ (‖y − ŷ‖ / ‖y‖) / n.

    As input to `update`:
        group: its number.
        y_ND: what the MLP writes, any floating dtype.
        reconstruction_ND: what is written in its place.
        n_active: active features summed over the n tokens, where that is known.

    As output of `compute`:
        a dictionary of float64 [n_groups]: `mean_cos`, `mean_l2`, `fvu`; nan for an empty group, and
        the FVU also where y never varies.

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
        sums = torch.zeros(len(SUMS), n_groups, dtype=torch.float64)
        self.add_state("sums", default=sums, dist_reduce_fx="sum")
        y_sum = torch.zeros(n_groups, d_model, dtype=torch.float64)
        self.add_state("y_sum", default=y_sum, dist_reduce_fx="sum")

    def update(
        self, group: int, y_ND: Tensor, reconstruction_ND: Tensor, n_active: Tensor | int = 0
    ) -> None:
        """Add tokens of one group."""
        if y_ND.shape != reconstruction_ND.shape:
            raise ValueError(
                f"y is {list(y_ND.shape)}, its reconstruction {list(reconstruction_ND.shape)}"
            )
        # Tokens in float32 and their sums in float64: all of it in float64 takes twice as long.
        y_ND, ours_ND = y_ND.float(), reconstruction_ND.float()
        error_N = torch.linalg.vector_norm(y_ND - ours_ND, dim=1)
        y_N, ours_N = (torch.linalg.vector_norm(rows_ND, dim=1) for rows_ND in (y_ND, ours_ND))
        cosine_N = torch.linalg.vecdot(y_ND, ours_ND) / (y_N * ours_N).clamp_min(1e-16)
        exact_ND = y_ND.double()  # Σ‖y‖² − n‖ȳ‖² cancels where y hardly varies
        sums = (
            torch.tensor(len(y_ND), device=y_ND.device),
            error_N.double().square().sum(),
            exact_ND.square().sum(),
            cosine_N.double().sum(),
            (error_N / y_N).double().sum(),
            torch.as_tensor(n_active, device=y_ND.device),
        )
        self.sums[:, group] += torch.stack([part.double() for part in sums])
        self.y_sum[group] += exact_ND.sum(0)

    def _centred(self) -> Tensor:
        """Σ‖y − ȳ‖² of each group."""
        n, _, squares, *_ = self.sums
        return (squares - self.y_sum.square().sum(1) / n).clamp_min(0)

    def compute(self) -> dict[str, Tensor]:
        """`mean_cos`, `mean_l2` and `fvu` of each group, float64 [n_groups]."""
        n, error, _, cosines, relative_l2s, _ = self.sums
        centred = self._centred()
        fvu = torch.where(centred > 0, error / centred, torch.nan)
        return {"mean_cos": cosines / n, "mean_l2": relative_l2s / n, "fvu": fvu}

    def fit(self, group: int = 0) -> ReconstructionFit:
        """The sums of one group, of this process alone.

        Raises:
            ValueError: there was no token.
        """
        n, error, _, cosines, _, active = self.sums[:, group].tolist()
        if not n:
            raise ValueError("no token to measure a reconstruction on")
        return ReconstructionFit(int(n), error, float(self._centred()[group]), cosines, active)

    def _apply(self, fn, *args, **kwargs) -> GroupedReconstruction:
        # As in GroupedMean: half-precision training must not reach the states.
        return super()._apply(lambda state: state.to(fn(state).device), *args, **kwargs)
