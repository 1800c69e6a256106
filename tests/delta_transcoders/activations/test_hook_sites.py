import pytest
import torch

from delta_transcoders.activations.hook_sites import FitAccumulator


def test_fit_equals_its_definition_however_it_was_batched():
    torch.manual_seed(0)
    y = torch.randn(50, 4) + 3
    reconstruction = y + 0.3 * torch.randn(50, 4)
    accumulator = FitAccumulator()
    for part in (slice(0, 7), slice(7, 50)):
        accumulator.update(y[part], reconstruction[part], 10)
    fit = accumulator.compute()
    fvu = (y - reconstruction).square().sum() / (y - y.mean(0)).square().sum()
    assert fit.fvu == pytest.approx(fvu.item(), rel=1e-5)
    cosine = torch.cosine_similarity(y, reconstruction).mean()
    assert fit.cosine == pytest.approx(cosine.item(), rel=1e-5)
    assert fit.l0 == 20 / 50
