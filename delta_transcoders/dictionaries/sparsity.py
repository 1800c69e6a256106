"""What keeps a dictionary sparse while it is trained, for V dictionaries at once.

Each module turns pre-activations into activations and a penalty per variant, holds what it must
remember (so that a checkpoint resumes exactly), and names the JumpReLU threshold under which the
trained dictionary is exported. No variant ever sees another.

Shape suffixes: V variants, F features of each, B tokens, D width of the decoder's output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jsonargparse.typing import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    restricted_number_type,
)
from torch import Tensor, nn

Momentum = restricted_number_type("Momentum", float, [(">=", 0), ("<", 1)])


@dataclass(frozen=True)
class SparsityConfig:
    """How activations are kept sparse. How many (k, or the L0 aimed at) is each variant's `l0`."""

    mode: Literal["batch_topk", "jumprelu", "l1"] = "batch_topk"
    """batch_topk keeps the l0 · B largest of a batch; jumprelu learns thresholds that reach l0;
    l1 penalises activations and has no l0."""
    threshold_momentum: Momentum = 0.99
    """batch_topk: memory of the running mean of the smallest kept activation."""
    bandwidth: PositiveFloat = 0.1
    """jumprelu: width of the window around the threshold in which it receives a gradient."""
    l0_weight: NonNegativeFloat = 1.0
    """jumprelu: weight of (L0 / l0 − 1)²."""
    l1_weight: NonNegativeFloat = 1e-3
    """l1: weight of the mean activation."""
    l1_warmup_steps: NonNegativeInt = 1000
    """l1: steps over which the weight rises linearly to its value."""
    l1_threshold: NonNegativeFloat = 1e-3
    """l1: fixed threshold, never trained."""
    unit_rows: bool = False
    """l1: keep decoder rows at norm 1; otherwise activations are weighted by their row's norm."""

    def __post_init__(self) -> None:
        if self.mode not in ("batch_topk", "jumprelu", "l1"):
            raise ValueError(f"mode is {self.mode!r}, expected batch_topk, jumprelu or l1")
        if self.unit_rows and self.mode != "l1":
            raise ValueError(f"unit_rows belongs to mode l1, not to {self.mode}")


class Sparsity(nn.Module):
    """From pre-activations z_VFB to (activations a_VFB, penalty_V); one call per training step."""

    unit_rows = False

    def forward(self, z_VFB: Tensor, W_dec_VFD: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def threshold_VF(self) -> Tensor:
        """The JumpReLU threshold to export, [V, F]."""
        raise NotImplementedError

    def calibrate(self, z_VFB: Tensor) -> None:
        """Look at the pre-activations of a first batch, before the first step."""

    def finish_step(self) -> None:
        """Restore constraints after an optimiser step."""


class BatchTopK(Sparsity):
    """Keeps the k_v · B largest pre-activations of a batch over all its tokens and features.

    Attributes:
        smallest_V, weight_V: running sum of the smallest kept activation and of its weights;
            their ratio is the bias-corrected mean that becomes the threshold
    """

    smallest_V: Tensor
    weight_V: Tensor

    def __init__(self, k_V: Sequence[float], n_features: int, momentum: float):
        super().__init__()
        for k in k_V:
            if not 0 < k <= n_features:
                raise ValueError(f"k = {k} active of {n_features} features is not possible")
        self.k_V = tuple(k_V)
        self.n_features = n_features
        self.momentum = momentum
        self.register_buffer("smallest_V", torch.zeros(len(self.k_V)))
        self.register_buffer("weight_V", torch.zeros(len(self.k_V)))

    def forward(self, z_VFB: Tensor, W_dec_VFD: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.zeros_like(z_VFB, dtype=torch.bool)
        smallest_V = z_VFB.new_full((len(self.k_V),), torch.inf)
        # Close below the last thresholds, so that only a fraction of all values is compared.
        floor_V = 0.75 * self.threshold_VF()[:, 0]
        for v, k in enumerate(self.k_V):
            n_kept = max(1, round(k * z_VFB.shape[2]))
            z_N = z_VFB[v].detach().flatten()
            if z_N.device.type == "cpu":
                values, index = largest_positive(z_N, n_kept, floor_V[v])
                mask[v].view(-1)[index] = True
                if len(values):
                    smallest_V[v] = values.min()
            else:
                # The host would wait for every variant's number of candidates.
                values, index = z_N.topk(n_kept, sorted=False)
                mask[v].view(-1)[index] = values > 0
                smallest_V[v] = torch.where(values > 0, values, torch.inf).min()
        self._remember(smallest_V)
        return torch.where(mask, z_VFB, 0), z_VFB.new_zeros(len(self.k_V))

    def _remember(self, smallest_V: Tensor) -> None:
        # A batch with nothing above 0 says nothing about the threshold: keep the old mean.
        momentum_V = torch.where(smallest_V.isfinite(), self.momentum, 1.0)
        smallest_V = torch.where(smallest_V.isfinite(), smallest_V, 0)
        self.smallest_V.mul_(momentum_V).add_((1 - momentum_V) * smallest_V)
        self.weight_V.mul_(momentum_V).add_(1 - momentum_V)

    def threshold_VF(self) -> Tensor:
        mean_V = torch.where(self.weight_V > 0, self.smallest_V / self.weight_V, 0)
        return mean_V[:, None].expand(-1, self.n_features)


def largest_positive(values_N: Tensor, n: int, floor: Tensor | float) -> tuple[Tensor, Tensor]:
    """The n largest of the positive values and their indices, all of them if there are fewer.

    `floor` >= 0 is a guess from below at the smallest of them; it changes the time, never the
    result: sorting out candidates first is several times as fast as topk over everything.

    >>> largest_positive(torch.tensor([3.0, -1.0, 2.0, 5.0]), 2, floor=4.0)[0].tolist()
    [5.0, 3.0]
    """
    index = (values_N > floor).nonzero().squeeze(1)
    if len(index) < n:
        index = (values_N > 0).nonzero().squeeze(1)
    candidates = values_N[index]
    if len(index) > n:
        candidates, chosen = candidates.topk(n, sorted=False)
        index = index[chosen]
    return candidates, index


class _JumpReLUWithL0(torch.autograd.Function):
    """(a, L0 per token) with straight-through gradients to the threshold θ.

    With the rectangle K(u) = 1[|u| < ½] and bandwidth ε:
    da/dθ = −(θ/ε)·K((z − θ)/ε), dL0/dθ = −(1/ε)·K((z − θ)/ε); L0 sends no gradient to z.
    """

    @staticmethod
    def forward(ctx, z_VFB: Tensor, threshold_VF: Tensor, bandwidth: float):
        ctx.save_for_backward(z_VFB, threshold_VF)
        ctx.bandwidth = bandwidth
        active = (z_VFB > threshold_VF[..., None]) & (z_VFB > 0)
        l0_V = active.sum((1, 2)).to(z_VFB.dtype) / z_VFB.shape[2]
        return torch.where(active, z_VFB, 0), l0_V

    @staticmethod
    def backward(ctx, grad_a_VFB: Tensor, grad_l0_V: Tensor):
        z_VFB, threshold_VF = ctx.saved_tensors
        threshold_VF1 = threshold_VF[..., None]
        active = (z_VFB > threshold_VF1) & (z_VFB > 0)
        near = (z_VFB - threshold_VF1).abs() < ctx.bandwidth / 2
        through_a_VF = threshold_VF * torch.where(near, grad_a_VFB, 0).sum(2)
        through_l0_VF = grad_l0_V[:, None] * near.sum(2) / z_VFB.shape[2]
        grad_threshold_VF = -(through_a_VF + through_l0_VF) / ctx.bandwidth
        return torch.where(active, grad_a_VFB, 0), grad_threshold_VF, None


class JumpReLU(Sparsity):
    """Learned thresholds with a quadratic penalty on the distance of L0 from its target.

    Attributes:
        threshold: [V, F] parameter, float32 and direct: log θ stalls under Adam
        target_V: the L0 aimed at
    """

    target_V: Tensor

    def __init__(self, target_V: Sequence[float], n_features: int, bandwidth: float, weight: float):
        super().__init__()
        for target in target_V:
            if not 0 < target <= n_features:
                raise ValueError(f"l0 = {target} of {n_features} features is not possible")
        self.bandwidth = bandwidth
        self.weight = weight
        self.threshold = nn.Parameter(torch.zeros(len(target_V), n_features))
        self.register_buffer("target_V", torch.tensor(target_V, dtype=torch.float32))

    def calibrate(self, z_VFB: Tensor) -> None:
        """Start at the threshold that gives the L0 aimed at: from 0 it is a long way for Adam."""
        for v, target in enumerate(self.target_V.tolist()):
            n_kept = max(1, round(target * z_VFB.shape[2]))
            self.threshold.data[v] = z_VFB[v].flatten().topk(n_kept).values[-1].clamp_min(0)

    def forward(self, z_VFB: Tensor, W_dec_VFD: Tensor) -> tuple[Tensor, Tensor]:
        a_VFB, l0_V = _JumpReLUWithL0.apply(z_VFB, self.threshold, self.bandwidth)
        return a_VFB, self.weight * (l0_V / self.target_V - 1) ** 2

    @torch.no_grad()
    def finish_step(self) -> None:
        self.threshold.clamp_min_(0)

    def threshold_VF(self) -> Tensor:
        return self.threshold.detach()


class L1(Sparsity):
    """A fixed threshold and a penalty on the mean activation, its weight warmed up.

    Attributes:
        step: training steps so far
    """

    step: Tensor

    def __init__(self, n_variants: int, n_features: int, config: SparsityConfig):
        super().__init__()
        self.shape = (n_variants, n_features)
        self.config = config
        self.unit_rows = config.unit_rows
        self.register_buffer("step", torch.zeros(()))

    def forward(self, z_VFB: Tensor, W_dec_VFD: Tensor) -> tuple[Tensor, Tensor]:
        a_VFB = torch.where(z_VFB > self.config.l1_threshold, z_VFB, 0)
        mean_VF = a_VFB.mean(2)
        if not self.unit_rows:
            # Without it, growing the decoder and shrinking the activations evades the penalty.
            mean_VF = mean_VF * W_dec_VFD.norm(dim=2)
        self.step += 1
        warmup = (self.step / max(1, self.config.l1_warmup_steps)).clamp(max=1)
        return a_VFB, self.config.l1_weight * warmup * mean_VF.mean(1)

    def threshold_VF(self) -> Tensor:
        return self.step.new_full(self.shape, self.config.l1_threshold)


def build_sparsity(config: SparsityConfig, l0_V: Sequence[float], n_features: int) -> Sparsity:
    """The module for a stack of len(l0_V) dictionaries; l1 ignores the values."""
    if config.mode == "batch_topk":
        return BatchTopK(l0_V, n_features, config.threshold_momentum)
    if config.mode == "jumprelu":
        return JumpReLU(l0_V, n_features, config.bandwidth, config.l0_weight)
    return L1(len(l0_V), n_features, config)
