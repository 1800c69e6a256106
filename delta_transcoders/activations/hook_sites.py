"""How well outputs are reconstructed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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


class FitAccumulator:
    """Adds up a `ReconstructionFit` batch by batch, in float64."""

    def __init__(self) -> None:
        self._n_tokens = 0
        self._sums: Tensor | float = 0.0
        self._mean_times_n: Tensor | float = 0.0

    def update(self, y_ND: Tensor, reconstruction_ND: Tensor, n_active: Tensor | int) -> None:
        y_ND, reconstruction_ND = y_ND.double(), reconstruction_ND.double()
        self._n_tokens += len(y_ND)
        self._mean_times_n = self._mean_times_n + y_ND.sum(0)
        self._sums = self._sums + torch.stack(
            [
                (y_ND - reconstruction_ND).square().sum(),
                y_ND.square().sum(),
                torch.cosine_similarity(y_ND, reconstruction_ND, dim=1).sum(),
                torch.as_tensor(n_active, dtype=torch.float64, device=y_ND.device),
            ]
        )

    def compute(self) -> ReconstructionFit:
        """
        Raises:
            ValueError: there was no token.
        """
        if not isinstance(self._sums, Tensor):
            raise ValueError("no token to measure a reconstruction on")
        error, squares, cosines, active = self._sums.tolist()
        centred = squares - float(self._mean_times_n.square().sum()) / self._n_tokens
        return ReconstructionFit(self._n_tokens, error, max(centred, 0.0), cosines, active)
