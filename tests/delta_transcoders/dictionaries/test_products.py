"""The hand-written gradients against autograd, with narrow rows and with wide ones (row by row)."""

import pytest
import torch

from delta_transcoders.dictionaries import products
from delta_transcoders.dictionaries.products import GramLoss, Preactivations, reconstructions

INDEX_V = (0, 1, 1)
WIDE, NARROW = products.MIN_SPARSE_WIDTH, 16


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


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_gradients_are_those_of_autograd(width, density):
    W_enc, b_enc, x = draw(3, 8, width), draw(3, 8), draw(2, 40, width)
    grad_z = draw(3, 8, 40, density=density)
    a, W_dec, targets = draw(3, 8, 40, density=density), draw(3, 8, width), draw(2, 40, width)
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


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_reconstructions_and_their_gradients_are_those_of_autograd(width, density):
    leaves = [draw(3, 8, 40, density=density).requires_grad_(), draw(3, 8, width).requires_grad_()]
    grad_VBD, results = draw(3, 40, width), []
    for ours_VBD in (leaves[0].mT @ leaves[1], reconstructions(*leaves)):
        results.append([ours_VBD, *torch.autograd.grad(ours_VBD, leaves, grad_VBD)])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)
    if width == NARROW:  # the very same product, so that weights stay the same to the last bit
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("width", "density", "row_by_row"), [(WIDE, 0.1, 3), (WIDE, 0.5, 0), (NARROW, 0.1, 0)]
)
def test_only_wide_rows_of_few_activations_are_added_one_by_one(
    monkeypatch, width, density, row_by_row
):
    calls = []
    sum_of_rows = products._sum_of_rows
    monkeypatch.setattr(
        products, "_sum_of_rows", lambda *args: calls.append(1) or sum_of_rows(*args)
    )
    W_enc, b_enc = draw(3, 8, width).requires_grad_(), draw(3, 8)
    z = Preactivations.apply(W_enc, b_enc, draw(2, 40, width), INDEX_V)
    z.backward(draw(3, 8, 40, density=density))
    assert len(calls) == row_by_row
