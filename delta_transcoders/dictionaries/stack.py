"""Training many small dictionaries at once, as a few large matrix products.

V variants (layer × base × seed …) of equal width F read the same tokens: x is stored once per
layer and the target once per base, and neither is copied per variant. Every variant's loss,
gradient, clipping and optimiser state (Adam is elementwise) are its own, and its first weights
come from a generator seeded by its key: it takes the path that it would take alone.

Shape suffixes: V variants, F features of each, B tokens, L layers of x, T targets, I width of x,
D width of the target.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from delta_transcoders.dictionaries.products import GramLoss, Preactivations, reconstructions
from delta_transcoders.dictionaries.sparsity import SparsityConfig, build_sparsity
from delta_transcoders.dictionaries.transcoder import Transcoder

AUX_WEIGHT = 1 / 32


@dataclass(frozen=True)
class Variant:
    """One dictionary of a stack."""

    key: str
    """Stable name, like "layer_3/d32/p0.5"; with the seed it decides the first weights."""
    layer: int
    """Index into x_LBI."""
    target: int
    """Index into targets_TBD."""
    l0: float
    """Active features per token aimed at (mode l1 has no use for it)."""


class StackLoss(NamedTuple):
    """Losses of one batch. `total` is for backward; the rest is detached, one value per variant."""

    total: Tensor
    reconstruction_V: Tensor
    """Squared error per element, in units of the variant's target scale squared."""
    penalty_V: Tensor
    l0_V: Tensor


class DictionaryStack(nn.Module):
    """V transcoders in training.

    The loss of a variant is Σ‖r/s − a·W_dec − b_dec‖² / (B·D) plus its sparsity penalty. s is its
    target scale: 1, or after `calibrate` the RMS of its target, so that one learning rate suits
    layers of very different size; `export` multiplies it back in.

    Attributes:
        W_enc: [V, F, I], features as rows, so that the variants of a layer are one matrix
        b_enc: [V, F]
        W_dec: [V, F, D], in units of the target scale
        b_dec: [V, D], in units of the target scale; None without `decoder_bias`
        sparsity: thresholds and what is remembered for them
        target_scale_V: s
        idle_VF: training tokens since a feature was last active; there with `aux_k` alone
    """

    target_scale_V: Tensor
    idle_VF: Tensor

    def __init__(
        self,
        variants: Sequence[Variant],
        *,
        d_in: int,
        d_out: int,
        n_features: int,
        sparsity: SparsityConfig,
        seed: int,
        decoder_init: Literal["zero", "tied", "kaiming"] = "zero",
        decoder_bias: bool = False,
        aux_k: int = 0,
        dead_after_tokens: int = 100_000,
    ):
        """
        decoder_init: zero starts at "no correction"; tied at the encoder's unit rows; kaiming
            draws encoder and decoder alike (the others draw unit encoder rows).
        aux_k: dead features per token that also learn to reconstruct the remaining error; a
            feature is dead when it has not fired for `dead_after_tokens` training tokens.
        """
        super().__init__()
        keys = [variant.key for variant in variants]
        if not keys or len(set(keys)) != len(keys):
            raise ValueError(f"variants need one distinct key each, got {keys}")
        if decoder_init == "tied" and d_in != d_out:
            raise ValueError(f"a tied decoder needs d_in = d_out, got {d_in} and {d_out}")
        if not 0 <= aux_k <= n_features:
            raise ValueError(f"aux_k is {aux_k}, expected 0 to n_features = {n_features}")
        self.variants = tuple(variants)
        self.layer_V = tuple(variant.layer for variant in variants)
        self.target_V = tuple(variant.target for variant in variants)

        n = len(keys)
        first = [first_weights(seed, key, n_features, d_in, d_out, decoder_init) for key in keys]
        self.W_enc = nn.Parameter(torch.stack([W_enc for W_enc, _ in first]))
        self.W_dec = nn.Parameter(torch.stack([W_dec for _, W_dec in first]))
        self.b_enc = nn.Parameter(torch.zeros(n, n_features))
        self.b_dec = nn.Parameter(torch.zeros(n, d_out)) if decoder_bias else None
        self.sparsity = build_sparsity(sparsity, [v.l0 for v in variants], n_features)
        self.register_buffer("target_scale_V", torch.ones(n))
        self.aux_k = aux_k
        self.dead_after_tokens = dead_after_tokens
        if aux_k:
            self.register_buffer("idle_VF", torch.zeros(n, n_features, dtype=torch.int64))
        self.finish_step()

    @torch.no_grad()
    def calibrate(self, x_LBI: Tensor, targets_TBD: Tensor) -> None:
        """Set target scales and starting thresholds from a first batch, before training."""
        rms_T = targets_TBD.square().mean((1, 2)).sqrt()
        if not (rms_T > 0).all():
            raise ValueError(f"a target is zero everywhere in the first batch; RMS: {rms_T}")
        self.target_scale_V.copy_(rms_T[list(self.target_V)])
        self.sparsity.calibrate(self._preactivations(x_LBI))

    def training_loss(self, x_LBI: Tensor, targets_TBD: Tensor) -> StackLoss:
        """Loss of one batch; also moves the running thresholds and the count of idle tokens."""
        z_VFB = self._preactivations(x_LBI)
        a_VFB, penalty_V = self.sparsity(z_VFB, self.W_dec)
        if self.b_dec is None and self.W_dec.shape[1] < self.W_dec.shape[2]:
            loss_V = self._gram_loss(a_VFB, targets_TBD)
        else:
            loss_V = self._plain_loss(a_VFB, targets_TBD)
        l0_V = (a_VFB.detach() > 0).sum((1, 2)) / a_VFB.shape[2]
        total = (loss_V + penalty_V).sum()
        if self.aux_k:
            total = total + self._aux_loss(z_VFB, a_VFB.detach(), targets_TBD)
        return StackLoss(total, loss_V.detach(), penalty_V.detach(), l0_V)

    @torch.no_grad()
    def prepare_gradients(self, max_norm: float | None = None) -> None:
        """After backward, before the optimiser: keep unit rows tangent, clip each variant alone."""
        if self.sparsity.unit_rows:
            grad = self.W_dec.grad
            grad -= (grad * self.W_dec).sum(2, keepdim=True) * self.W_dec
        if max_norm is not None:
            grads = [parameter.grad for parameter in self.parameters()]
            norm_V = sum(grad.flatten(1).square().sum(1) for grad in grads).sqrt()
            factor_V = (max_norm / (norm_V + 1e-6)).clamp(max=1)
            for grad in grads:
                grad *= factor_V.view(-1, *[1] * (grad.ndim - 1))

    @torch.no_grad()
    def finish_step(self) -> None:
        """After the optimiser: unit rows and thresholds >= 0, where the sparsity asks for them."""
        if self.sparsity.unit_rows:
            self.W_dec /= self.W_dec.norm(dim=2, keepdim=True).clamp_min(1e-8)
        self.sparsity.finish_step()

    @torch.no_grad()
    def encode(self, x_LBI: Tensor) -> Tensor:
        """Activations [V, F, B] of what would be exported, with its JumpReLU thresholds."""
        z_VFB = self._preactivations(x_LBI)
        threshold_VF1 = self.sparsity.threshold_VF()[..., None]
        return torch.where((z_VFB > threshold_VF1) & (z_VFB > 0), z_VFB, 0)

    @torch.no_grad()
    def decode(self, v: int, a_FB: Tensor) -> Tensor:
        """One variant's reconstruction [B, D] of its target: those of all can be gigabytes."""
        ours_BD = a_FB.T @ self.W_dec[v]
        if self.b_dec is not None:
            ours_BD += self.b_dec[v]
        return ours_BD * self.target_scale_V[v]

    @torch.no_grad()
    def export_tensors(self) -> dict[str, Tensor]:
        """The five tensors of `Transcoder`, each with a leading V; the scale folded in."""
        scale_V1 = self.target_scale_V[:, None]
        b_dec = self.W_dec.new_zeros(self.W_dec.shape[::2]) if self.b_dec is None else self.b_dec
        return {
            "W_enc": self.W_enc.detach().mT,
            "b_enc": self.b_enc.detach(),
            "W_dec": self.W_dec.detach() * scale_V1[..., None],
            "b_dec": b_dec.detach() * scale_V1,
            "threshold": self.sparsity.threshold_VF(),
        }

    def export(self, v: int) -> Transcoder:
        """The present weights of one variant as a frozen transcoder of its own."""
        return transcoder_at(self.export_tensors(), v)

    def get_extra_state(self) -> dict[str, list[str]]:
        return {"keys": [variant.key for variant in self.variants]}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        if state != self.get_extra_state():
            raise ValueError(
                f"the checkpoint holds the variants {state['keys']}, "
                f"this stack {self.get_extra_state()['keys']}"
            )

    def _preactivations(self, x_LBI: Tensor) -> Tensor:
        return Preactivations.apply(self.W_enc, self.b_enc, x_LBI, self.layer_V)

    def _gram_loss(self, a_VFB: Tensor, targets_TBD: Tensor) -> Tensor:
        return GramLoss.apply(a_VFB, self.W_dec, targets_TBD, self.target_scale_V, self.target_V)

    def _plain_loss(self, a_VFB: Tensor, targets_TBD: Tensor) -> Tensor:
        return self._error(a_VFB, targets_TBD).square().mean((1, 2))

    def _error(self, a_VFB: Tensor, targets_TBD: Tensor) -> Tensor:
        """Target minus reconstruction, [V, B, D], in units of the target scale."""
        ours_VBD = reconstructions(a_VFB, self.W_dec)
        if self.b_dec is not None:
            ours_VBD = ours_VBD + self.b_dec[:, None]
        return targets_TBD[list(self.target_V)] / self.target_scale_V[:, None, None] - ours_VBD

    def _aux_loss(self, z_VFB: Tensor, a_VFB: Tensor, targets_TBD: Tensor) -> Tensor:
        """The most active dead features of a token reconstruct the error that the live ones leave.

        AuxK of L. Gao et al. (2024), Scaling and evaluating sparse autoencoders, with its weight of 1/32.
        """
        self.idle_VF.add_(a_VFB.shape[2]).masked_fill_(a_VFB.amax(2) > 0, 0)
        dead_VF = self.idle_VF >= self.dead_after_tokens
        if not dead_VF.any():
            return z_VFB.new_zeros(())
        with torch.no_grad():
            error_VBD = self._error(a_VFB, targets_TBD)
            chosen_VFB = torch.zeros_like(z_VFB, dtype=torch.bool)
            for z_FB, chosen_FB, dead_F in zip(z_VFB, chosen_VFB, dead_VF, strict=True):
                # Among the dead alone, token by token: less to sort, and it lies side by side.
                dead_N = dead_F.nonzero()[:, 0]
                z_BN = z_FB[dead_N].T.contiguous()
                top = z_BN.topk(min(self.aux_k, len(dead_N)), dim=1, sorted=False)
                chosen_FB.scatter_(0, dead_N[top.indices].T, (top.values > 0).T)
        a_dead_VFB = torch.where(chosen_VFB, z_VFB, 0)
        ours_VBD = reconstructions(a_dead_VFB, self.W_dec)
        loss_V = (error_VBD - ours_VBD).square().mean((1, 2))
        return AUX_WEIGHT * torch.where(dead_VF.any(1), loss_V, 0).sum()


def transcoder_at(tensors: dict[str, Tensor], v: int) -> Transcoder:
    """Variant v of `DictionaryStack.export_tensors`."""
    return Transcoder(
        **{name: stacked[v].contiguous().clone() for name, stacked in tensors.items()}
    )


def first_weights(
    seed: int, key: str, n_features: int, d_in: int, d_out: int, decoder_init: str
) -> tuple[Tensor, Tensor]:
    """W_enc [F, I] and W_dec [F, D] of one variant, drawn from its own generator.

    Drawn on the CPU, so that they are the same on every device; returned on the default one.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    with torch.device("cpu"):
        if decoder_init == "kaiming":
            draw = [torch.rand(n_features, d, generator=generator) * 2 - 1 for d in (d_in, d_out)]
            W_enc, W_dec = draw[0] * math.sqrt(6 / d_in), draw[1] * math.sqrt(6 / n_features)
        elif decoder_init in ("zero", "tied"):
            W_enc = torch.randn(n_features, d_in, generator=generator)
            W_enc /= W_enc.norm(dim=1, keepdim=True)
            W_dec = W_enc if decoder_init == "tied" else torch.zeros(n_features, d_out)
        else:
            raise ValueError(f"decoder_init is {decoder_init!r}, expected zero, tied or kaiming")
    device = torch.get_default_device()
    return W_enc.to(device), W_dec.to(device)
