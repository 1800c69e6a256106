"""Corrections without features: controls that a sparse delta has to beat, fitted in closed form.

All learn the same residual r = y − base(x) as a delta does:

    bias       E[r]: one constant vector
    low_rank   the best affine map of a given rank (reduced-rank ridge regression)
    ridge      the best affine map of any rank: an upper bound for every linear correction
    steering   a constant vector too, but of another origin: the mean difference of y between two subsets,
               scaled to the mean norm of what the delta writes

Shapes: N tokens, I = d_in, D = d_out, S subsets.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from delta_transcoders.files import read_config, replace_folder, write_json
from delta_transcoders.tensor_files import load_tensors, save_tensors

FORMAT_VERSION = 1
TENSORS_NAME = "correction.safetensors"
CONFIG_NAME = "config.json"


class AffineCorrection(nn.Module):
    """x @ W + b, or b alone where there is no W.

    Attributes (buffers):
        W: [d_in, d_out] or None
        b: [d_out]
    """

    W: Tensor | None
    b: Tensor

    def __init__(self, *, b: Tensor, W: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("W", W)
        self.register_buffer("b", b)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] to [..., d_out]."""
        if self.W is None:
            return self.b.expand(*x.shape[:-1], -1)
        return x @ self.W + self.b


@dataclass(frozen=True)
class CorrectionConfig:
    """What a correction is and how well it does."""

    layer: int
    d_in: int
    kind: str
    n_parameters: int
    hook_site: str
    model_fingerprint: str
    base_hash: str
    fvu: float
    """Of base + correction on validation tokens."""
    format_version: int = FORMAT_VERSION


class Moments:
    """Sums over the training tokens of one layer, float64; what every correction is solved from.

    Add with `update`, over all batches; `tensors` are then to be summed over processes.
    """

    def __init__(self, d_in: int, d_out: int, n_subsets: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.xx, self.xr = zeros(d_in + 1, d_in + 1), zeros(d_in + 1, d_out)
        self.y_by_subset, self.n_by_subset = zeros(n_subsets, d_out), zeros(n_subsets)
        self.delta_norms = zeros(1)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.xx, self.xr, self.y_by_subset, self.n_by_subset, self.delta_norms]

    def update(
        self, x_NI: Tensor, r_ND: Tensor, y_ND: Tensor, subset_N: Tensor, delta_ND: Tensor
    ) -> None:
        """
        Args:
            subset_N: int64, which subset a token's example belongs to.
            delta_ND: what the delta writes there.
        """
        x1_NI = torch.nn.functional.pad(x_NI.double(), (0, 1), value=1.0)
        self.xx += x1_NI.T @ x1_NI
        self.xr += x1_NI.T @ r_ND.double()
        self.y_by_subset.index_add_(0, subset_N, y_ND.double())
        self.n_by_subset += torch.bincount(subset_N, minlength=len(self.n_by_subset))
        self.delta_norms += delta_ND.norm(dim=1).double().sum()

    def bias(self) -> AffineCorrection:
        return AffineCorrection(b=(self.xr[-1] / self.xx[-1, -1]).float())

    def ridge(self, penalty: float, rank: int | None = None) -> AffineCorrection:
        """The affine map with the least mean squared error + penalty · mean ‖x‖² / d_in · ‖W‖².

        With a rank, the best map of that rank: the full one projected onto the leading principal
        directions of what it predicts (A. J. Izenman (1975), Reduced-rank regression for the
        multivariate linear model, Journal of Multivariate Analysis 5). The intercept is free.
        """
        n = self.xx[-1, -1]
        mean_x, mean_r = self.xx[-1, :-1] / n, self.xr[-1] / n
        cov_xx = self.xx[:-1, :-1] / n - torch.outer(mean_x, mean_x)
        cov_xr = self.xr[:-1] / n - torch.outer(mean_x, mean_r)
        ridge = penalty * self.xx[:-1, :-1].diagonal().mean() / n
        cov_xx = cov_xx + ridge * torch.eye(len(cov_xx), dtype=cov_xx.dtype, device=cov_xx.device)
        W = torch.linalg.solve(cov_xx, cov_xr)
        if rank is not None:
            directions = torch.linalg.eigh(W.T @ cov_xx @ W).eigenvectors[:, -rank:]
            W = W @ directions @ directions.T
        return AffineCorrection(W=W.float(), b=(mean_r - mean_x @ W).float())

    def steering(self, towards: int, away: int) -> AffineCorrection:
        """The mean difference of y between two subsets, at the delta's mean norm.

        Raises:
            ValueError: a subset without tokens.
        """
        for subset in (towards, away):
            if not self.n_by_subset[subset]:
                raise ValueError(f"no training token of subset {subset}: no mean to steer with")
        mean_SD = self.y_by_subset / self.n_by_subset[:, None]
        direction_D = mean_SD[towards] - mean_SD[away]
        norm = self.delta_norms / self.xx[-1, -1]
        return AffineCorrection(b=(direction_D / direction_D.norm() * norm).float())


def matched_rank(n_parameters: int, d_in: int, d_out: int) -> int:
    """The largest rank whose affine map, kept as two factors and a bias, has no more parameters.

    >>> matched_rank(32 * (96 + 96 + 2), 96, 96)
    31
    """
    return max(1, min(d_in, d_out, (n_parameters - d_out) // (d_in + d_out)))


def save_correction(
    folder: str | Path, correction: AffineCorrection, config: CorrectionConfig
) -> None:
    """Write `correction.safetensors` (`b` [d_out] and, except for constants, `W` [d_in, d_out]) and
    `config.json`, both or neither."""
    with replace_folder(folder) as partial:
        save_tensors(partial / TENSORS_NAME, correction.state_dict())
        write_json(partial / CONFIG_NAME, asdict(config))


def load_corrections(
    folder: str | Path,
) -> dict[int, tuple[AffineCorrection, CorrectionConfig]]:
    """Every `layer_L` of a folder, by layer."""
    found = {}
    for path in sorted(Path(folder).glob("layer_*")):
        config = read_config(
            path / CONFIG_NAME,
            CorrectionConfig,
            remake="fit it anew with `python train.py --config …/corrections.yaml`",
        )
        found[config.layer] = (AffineCorrection(**load_tensors(path / TENSORS_NAME)), config)
    return found
