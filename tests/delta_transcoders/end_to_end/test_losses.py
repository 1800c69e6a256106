"""KL in chunks, and distances between residual streams."""

import pytest
import torch

from delta_transcoders.end_to_end import losses


@pytest.fixture
def heads():
    generator = torch.Generator().manual_seed(0)
    W_DV, U_DV = torch.randn(2, 6, 11, generator=generator)
    return (lambda h: h @ W_DV), (lambda h: h @ U_DV)


def test_kl_is_the_textbook_s(heads):
    teacher, student = heads
    h_ND, g_ND = torch.randn(2, 5, 6)
    p = torch.distributions.Categorical(logits=teacher(h_ND))
    q = torch.distributions.Categorical(logits=student(g_ND))
    found = losses.kl_of_tokens(teacher, h_ND, student, g_ND, 11)
    torch.testing.assert_close(found, torch.distributions.kl_divergence(p, q))
    assert losses.kl_of_tokens(teacher, h_ND, teacher, h_ND, 11).abs().max() == 0


def test_chunks_change_neither_the_kl_nor_its_gradient(heads, monkeypatch):
    h_ND, g_ND = torch.randn(2, 7, 6)
    g_ND.requires_grad_()
    weight_N = torch.rand(7)
    p, q = heads[0](h_ND).log_softmax(-1), heads[1](g_ND).log_softmax(-1)
    plain_N = (p.exp() * (p - q)).sum(-1)
    found = [(plain_N, torch.autograd.grad((weight_N * plain_N).sum(), g_ND)[0])]
    for entries in (2**24, 33):  # all at once, then three positions
        monkeypatch.setattr(losses, "CHUNK_ENTRIES", entries)
        kl_N = losses.kl_of_tokens(heads[0], h_ND, heads[1], g_ND, 11)
        found.append((kl_N, torch.autograd.grad((weight_N * kl_N).sum(), g_ND)[0]))
        with torch.no_grad():
            assert torch.equal(losses.kl_of_tokens(heads[0], h_ND, heads[1], g_ND, 11), kl_N)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_nmse_is_a_share_of_finetuning_s_change():
    finetuned = [torch.zeros(4, 3), torch.ones(4, 3), torch.ones(4, 3)]
    base = [torch.zeros(4, 3), torch.zeros(4, 3), 3 * torch.ones(4, 3)]
    student = [torch.ones(4, 3), torch.zeros(4, 3), 2 * torch.ones(4, 3)]
    error_L = losses.squared_distances(student, finetuned)
    change_L = losses.squared_distances(base, finetuned)
    assert error_L.tolist() == [12, 12, 12]
    assert losses.nmse(error_L, change_L).tolist() == [
        0,
        1,
        0.25,
    ]  # nothing to measure the first by
