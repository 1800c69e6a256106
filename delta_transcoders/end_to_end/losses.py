"""How far a student is from its teacher: in what it predicts, and in its residual stream.

Shapes: N target tokens, n positions, D d_model, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Head = Callable[[Tensor], Tensor]
"""A model's logits [N, V] in float32 from its last hidden states [N, D]."""

CHUNK_ENTRIES = 2**24  # logits of a chunk, in float32 and of one model, are 64 MB


def kl_of_tokens(
    teacher: Head, teacher_ND: Tensor, student: Head, student_ND: Tensor, n_vocabulary: int
) -> Tensor:
    """KL(teacher ‖ student) of each token in nats, [N], in float32; a gradient flows to `student_ND` alone.

    Never more than a chunk of positions has its logits in memory.
    """
    at_once = max(1, CHUNK_ENTRIES // n_vocabulary)
    if torch.is_grad_enabled() and student_ND.requires_grad:
        return _TokenKL.apply(student_ND, teacher_ND, student, teacher, at_once)
    parts = zip(teacher_ND.split(at_once), student_ND.split(at_once), strict=True)
    return torch.cat([_kl(teacher(theirs), student(ours)) for theirs, ours in parts])


def _kl(theirs_NV: Tensor, ours_NV: Tensor) -> Tensor:
    theirs_NV, ours_NV = theirs_NV.log_softmax(-1), ours_NV.log_softmax(-1)
    return (theirs_NV.exp() * (theirs_NV - ours_NV)).sum(-1)


class _TokenKL(torch.autograd.Function):
    """A chunk's gradient is taken while its logits are at hand, so that nothing is computed again: a token's
    KL depends on its own hidden state only."""

    @staticmethod
    def forward(
        ctx: Any, student_ND: Tensor, teacher_ND: Tensor, student: Head, teacher: Head, at_once: int
    ) -> Tensor:
        kl, gradients = [], []
        for theirs_ND, ours_ND in zip(
            teacher_ND.split(at_once), student_ND.split(at_once), strict=True
        ):
            theirs_NV = teacher(theirs_ND)
            with torch.enable_grad():
                ours_ND = ours_ND.detach().requires_grad_()
                kl_N = _kl(theirs_NV, student(ours_ND))
                gradients += torch.autograd.grad(kl_N.sum(), ours_ND)
            kl.append(kl_N.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(kl)

    @staticmethod
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return (upstream_N[:, None] * gradient_ND).to(gradient_ND.dtype), None, None, None, None


def squared_distances(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """‖one − other‖² over all positions of each layer, [L], of streams [n, D] each."""
    pairs = zip(one, other, strict=True)
    return torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs])


def nmse(error_L: Tensor, change_L: Tensor) -> Tensor:
    """‖h_student − h_finetuned‖² / ‖h_base − h_finetuned‖² of each layer, [L].

    A layer whose stream finetuning left alone has 0: there is nothing to measure by.
    """
    return torch.where(change_L > 0, error_L / change_L.clamp_min(1e-30), 0)
