"""Reconstructions measured in pieces equal the definitions on all tokens, group by group."""

import math

import pytest
import torch

from delta_transcoders.metrics.reconstruction import GroupedReconstruction


def draw(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(n, 4, generator=generator) + 3
    return y, y + 0.3 * torch.randn(n, 4, generator=generator)


def test_every_measure_equals_its_definition_however_it_was_batched():
    metric = GroupedReconstruction(n_groups=3, d_model=4)
    data = {0: draw(50, 0), 2: draw(30, 1)}
    for group, (y, ours) in data.items():
        for part in (slice(0, 7), slice(7, None)):
            metric.update(group, y[part], ours[part], 10)
    measured = metric.compute()
    for group, (y, ours) in data.items():
        y, ours = y.double(), ours.double()
        fvu = (y - ours).square().sum() / (y - y.mean(0)).square().sum()
        cosine = torch.cosine_similarity(y, ours).mean()
        relative_l2 = ((y - ours).norm(dim=1) / y.norm(dim=1)).mean()
        wanted = {"mean_cos": float(cosine), "mean_l2": float(relative_l2), "fvu": float(fvu)}
        assert {k: float(v[group]) for k, v in measured.items()} == pytest.approx(wanted, rel=1e-6)
        fit = metric.fit(group)
        assert (fit.n_tokens, fit.l0) == (len(y), 20 / len(y))
        assert (fit.fvu, fit.cosine) == pytest.approx((wanted["fvu"], wanted["mean_cos"]), rel=1e-6)
    assert all(math.isnan(values[1]) for values in measured.values())


def test_a_constant_has_no_fvu_and_its_reconstruction_an_exact_cosine():
    y = torch.full((5, 4), 0.1, dtype=torch.bfloat16)
    metric = GroupedReconstruction(n_groups=1, d_model=4)
    metric.update(0, y, 2 * y)
    assert math.isnan(metric.compute()["fvu"])
    assert math.isnan(metric.fit().fvu)
    assert metric.compute()["mean_cos"] == pytest.approx(1)
    assert metric.compute()["mean_l2"] == pytest.approx(1)


def test_a_variance_that_is_small_beside_the_mean_is_kept():
    generator = torch.Generator().manual_seed(0)
    y = 1000 + 0.01 * torch.randn(4096, 4, generator=generator)
    metric = GroupedReconstruction(n_groups=1, d_model=4)
    metric.update(0, y, y.mean(0).expand_as(y))
    assert float(metric.compute()["fvu"]) == pytest.approx(1, rel=1e-4)


def test_what_does_not_fit_is_refused():
    metric = GroupedReconstruction(n_groups=1, d_model=4)
    with pytest.raises(ValueError, match=r"y is \[2, 4\], its reconstruction \[1, 4\]"):
        metric.update(0, torch.ones(2, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="no token"):
        metric.fit()
