"""The large matrix products behind a stack of dictionaries: inputs shared, nothing copied.

Shape suffixes: V variants, F features of each, B tokens, T targets, G layers or targets,
D width of an input or target.
"""

import torch
from torch import Tensor

# Where adding rows up one by one pays, measured on two cores: 4 times as fast as the whole product at
# density .06 and width 2304, as fast at .25; slower at width 96 whatever the density.
MIN_SPARSE_WIDTH = 512
MAX_SPARSE_DENSITY = 0.15


class Preactivations(torch.autograd.Function):
    """z[v] = W_enc[v] @ x[index[v]].T + b_enc[v]: [V, F, B]; the inputs x receive no gradient."""

    @staticmethod
    def forward(
        ctx, W_enc_VFI: Tensor, b_enc_VF: Tensor, x_LBI: Tensor, index_V: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x_LBI)
        ctx.index_V = index_V
        return _grouped(W_enc_VFI, x_LBI.mT, index_V).add_(b_enc_VF[..., None])

    @staticmethod
    def backward(ctx, grad_VFB: Tensor):
        (x_LBI,) = ctx.saved_tensors
        return _weighted_rows(grad_VFB, x_LBI, ctx.index_V), grad_VFB.sum(2), None, None


def reconstructions(a_VFB: Tensor, W_dec_VFD: Tensor) -> Tensor:
    """a[v].T @ W_dec[v]: [V, B, D]."""
    if a_VFB.device.type == "cpu" and W_dec_VFD.shape[2] >= MIN_SPARSE_WIDTH:
        return _SparseReconstructions.apply(a_VFB, W_dec_VFD)
    return a_VFB.mT @ W_dec_VFD


class _SparseReconstructions(torch.autograd.Function):
    """Rows of the decoder added up, where few activations are not zero; likewise the decoder's gradient."""

    @staticmethod
    def forward(ctx, a_VFB: Tensor, W_dec_VFD: Tensor) -> Tensor:
        ctx.save_for_backward(a_VFB, W_dec_VFD)
        if not _is_sparse(a_VFB):
            return torch.bmm(a_VFB.mT, W_dec_VFD)
        return torch.stack([_sum_by_token(*of) for of in zip(a_VFB, W_dec_VFD, strict=True)])

    @staticmethod
    def backward(ctx, grad_VBD: Tensor):
        a_VFB, W_dec_VFD = ctx.saved_tensors
        grad_a_VFB = torch.bmm(W_dec_VFD, grad_VBD.mT)
        return grad_a_VFB, _weighted_rows(a_VFB, grad_VBD, tuple(range(len(a_VFB))))


class GramLoss(torch.autograd.Function):
    """Mean squared error of a sparse reconstruction through the Gram matrix of its decoder.

    ‖r − aD‖² = ‖r‖² − 2⟨a, Dr⟩ + ⟨a, DDᵀa⟩, so neither the value nor the gradients
        d/da = 2 (DDᵀa − Dr),  d/dD = 2 (aaᵀD − ar)
    need the [B, D] reconstruction: what is left beside two products with r is F × F. The value
    cancels for a near-perfect fit (the gradients do not), so FVU is never read off it.
    """

    @staticmethod
    def forward(
        ctx,
        a_VFB: Tensor,
        W_dec_VFD: Tensor,
        targets_TBD: Tensor,
        scale_V: Tensor,
        index_V: tuple[int, ...],
    ) -> Tensor:
        """Loss per variant [V], per element of r / scale."""
        projected_VFB = _grouped(W_dec_VFD, targets_TBD.mT, index_V).div_(scale_V[:, None, None])
        ours_VFB = torch.bmm(torch.bmm(W_dec_VFD, W_dec_VFD.mT), a_VFB)
        square_T = torch.linalg.vector_norm(targets_TBD, dim=(1, 2)).square()
        slope_VFB = ours_VFB - projected_VFB
        cross_V = torch.linalg.vecdot(a_VFB.flatten(1), (slope_VFB - projected_VFB).flatten(1))
        ctx.save_for_backward(a_VFB, W_dec_VFD, targets_TBD, scale_V, slope_VFB)
        ctx.index_V = index_V
        ctx.n_elements = a_VFB.shape[2] * W_dec_VFD.shape[2]
        return (square_T[list(index_V)] / scale_V.square() + cross_V) / ctx.n_elements

    @staticmethod
    def backward(ctx, grad_V: Tensor):
        a_VFB, W_dec_VFD, targets_TBD, scale_V, slope_VFB = ctx.saved_tensors
        factor_V11 = (2 / ctx.n_elements * grad_V)[:, None, None]
        read_VFD = _weighted_rows(a_VFB, targets_TBD, ctx.index_V)
        grad_W_dec_VFD = torch.bmm(torch.bmm(a_VFB, a_VFB.mT), W_dec_VFD)
        grad_W_dec_VFD -= read_VFD.div_(scale_V[:, None, None])
        return factor_V11 * slope_VFB, grad_W_dec_VFD.mul_(factor_V11), None, None, None


def _weighted_rows(weight_VFB: Tensor, rows_GBD: Tensor, index_V: tuple[int, ...]) -> Tensor:
    """weight[v] @ rows[index[v]] for weights of which most are zero: [V, F, D].

    Of the activations of a sparse dictionary, and so of their gradients, few are not zero. On a CPU
    wide rows are then added up one by one in a fraction of the time that the whole product takes;
    short rows, or many of them, are not worth picking out.

    Args:
        weight_VFB: activations, or gradients of which the inactive features receive none.
    """
    if (
        weight_VFB.device.type != "cpu"
        or rows_GBD.shape[2] < MIN_SPARSE_WIDTH
        or not _is_sparse(weight_VFB)
    ):
        return _grouped(weight_VFB, rows_GBD, index_V)
    return torch.stack([_sum_of_rows(weight_VFB[v], rows_GBD[g]) for v, g in enumerate(index_V)])


def _is_sparse(weight_VFB: Tensor) -> bool:
    return bool(weight_VFB.count_nonzero() <= MAX_SPARSE_DENSITY * weight_VFB.numel())


def _sum_of_rows(weight_FB: Tensor, rows_BD: Tensor) -> Tensor:
    """weight @ rows, [F, D], reading a row only for the weights that are not zero."""
    feature_N, row_N = weight_FB.nonzero().T.contiguous()
    return _sums(row_N, rows_BD, weight_FB[feature_N, row_N], feature_N, len(weight_FB))


def _sum_by_token(weight_FB: Tensor, rows_FD: Tensor) -> Tensor:
    """weight.T @ rows, [B, D], likewise."""
    feature_N, token_N = weight_FB.nonzero().T.contiguous()
    weight_N = weight_FB[feature_N, token_N]
    token_N, order_N = token_N.sort(stable=True)  # the transposed weights' order, in less time
    return _sums(feature_N[order_N], rows_FD, weight_N[order_N], token_N, weight_FB.shape[1])


def _sums(row_N: Tensor, rows_RD: Tensor, weight_N: Tensor, sum_N: Tensor, n_sums: int) -> Tensor:
    """Weighted sums [S, D] of rows.

    Args:
        row_N: rows of `rows_RD`, with a weight each.
        sum_N: which sum each is a part of, ascending.
    """
    ends_S = sum_N.bincount(minlength=n_sums).cumsum(0)
    return torch.nn.functional.embedding_bag(
        row_N,
        rows_RD,
        offsets=torch.cat([ends_S.new_zeros(1), ends_S[:-1]]),
        per_sample_weights=weight_N,
        mode="sum",
    )


def _grouped(left_VFK: Tensor, right_GKN: Tensor, index_V: tuple[int, ...]) -> Tensor:
    """left[v] @ right[index[v]] for every v: [V, F, N]."""
    n_variants, n_features, n_inner = left_VFK.shape
    n_groups = len(right_GKN)
    if max(index_V) >= n_groups:
        raise ValueError(f"a variant reads input {max(index_V)}, the batch has {n_groups}")
    per_group = n_variants // n_groups
    if all(g * per_group <= v < (g + 1) * per_group for v, g in enumerate(index_V)):
        # Grouped in order and evenly: the variants of a group are one matrix, nothing is copied.
        grouped = left_VFK.reshape(n_groups, per_group * n_features, n_inner)
        return torch.bmm(grouped, right_GKN).view(n_variants, n_features, -1)
    return torch.bmm(left_VFK, right_GKN[list(index_V)])
