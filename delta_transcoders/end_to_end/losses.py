"""How far a student is from its teacher: in what it predicts, and in its residual stream.

Shapes: N target tokens, n positions, D d_model, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""A model's logits [N, V] in float32 from its last hidden states [N, D]."""

# Logits of a chunk, in float32 and of one model, are 64 MB; a pass of several chunks computes them twice.
CHUNK_ENTRIES = 2**24


def kl_of_tokens(
    teacher: Head, teacher_ND: Tensor, student: Head, student_ND: Tensor, n_vocabulary: int
) -> Tensor:
    """KL(teacher ‖ student) of each token in nats, [N], in float32.

    Never more than a chunk of positions has its logits in memory: with several chunks, the backward pass
    computes them anew.
    """

    def kl(theirs_ND: Tensor, ours_ND: Tensor) -> Tensor:
        theirs_NV = teacher(theirs_ND).log_softmax(-1)
        ours_NV = student(ours_ND).log_softmax(-1)
        return (theirs_NV.exp() * (theirs_NV - ours_NV)).sum(-1)

    at_once = max(1, CHUNK_ENTRIES // n_vocabulary)
    if len(student_ND) <= at_once:
        return kl(teacher_ND, student_ND)
    parts = zip(teacher_ND.split(at_once), student_ND.split(at_once), strict=True)
    return torch.cat([checkpoint(kl, *part, use_reentrant=False) for part in parts])


def squared_distances(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """‖one − other‖² over all positions of each layer, [L], of streams [n, D] each."""
    pairs = zip(one, other, strict=True)
    return torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs])


def nmse(error_L: Tensor, change_L: Tensor) -> Tensor:
    """‖h_student − h_finetuned‖² / ‖h_base − h_finetuned‖² of each layer, [L].

    A layer whose stream finetuning left alone has 0: there is nothing to measure by.
    """
    return torch.where(change_L > 0, error_L / change_L.clamp_min(1e-30), 0)
