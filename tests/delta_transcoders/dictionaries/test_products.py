"""The hand-written gradients against autograd."""

import pytest
import torch

from delta_transcoders.dictionaries.products import GramLoss, Preactivations

INDEX_V = (0, 1, 1)
WIDTH = 16


def draw(*shape, density=1.0):
    kept = torch.rand(shape, dtype=torch.float64) < density
    return torch.randn(shape, dtype=torch.float64) * kept


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def plain_preactivations(W_enc_VFI, b_enc_VF, x_LBI):
    return torch.einsum("vfi,vbi->vfb", W_enc_VFI, x_LBI[list(INDEX_V)]) + b_enc_VF[..., None]


def plain_loss(a_VFB, W_dec_VFD, targets_TBD, scale_V):
    error_VBD = targets_TBD[list(INDEX_V)] / scale_V[:, None, None] - a_VFB.mT @ W_dec_VFD
    return error_VBD.square().mean((1, 2))


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_gradients_are_those_of_autograd(density):
    W_enc, b_enc, x = draw(3, 8, WIDTH), draw(3, 8), draw(2, 40, WIDTH)
    grad_z = draw(3, 8, 40, density=density)
    a, W_dec, targets = draw(3, 8, 40, density=density), draw(3, 8, WIDTH), draw(2, 40, WIDTH)
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (W_enc, b_enc, a, W_dec)]
    results = []
    for z, loss in (
        (plain_preactivations(W_enc, b_enc, x), plain_loss(a, W_dec, targets, scale)),
        (
            Preactivations.apply(W_enc, b_enc, x, INDEX_V),
            GramLoss.apply(a, W_dec, targets, scale, INDEX_V),
        ),
    ):
        total = (z * grad_z).sum() + (loss * torch.tensor([1.0, 3.0, 0.0])).sum()
        results.append([z, loss, *torch.autograd.grad(total, leaves)])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)
