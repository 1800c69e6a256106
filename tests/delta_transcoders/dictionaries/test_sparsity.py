"""Sparsity: what is kept, which thresholds come out, and the straight-through gradients."""

import pytest
import torch

from delta_transcoders.dictionaries.sparsity import SparsityConfig, build_sparsity

W_DEC = torch.ones(2, 8, 3)


def z_VFB(n_tokens: int = 10) -> torch.Tensor:
    return torch.randn(2, 8, n_tokens, generator=torch.Generator().manual_seed(0))


def test_batch_topk_keeps_exactly_k_times_b_of_each_variant():
    sparsity = build_sparsity(SparsityConfig(), [1, 2.5], 8)
    z = z_VFB() + 5  # all positive
    a, penalty = sparsity(z, W_DEC)
    assert (a > 0).sum((1, 2)).tolist() == [10, 25]
    assert penalty.tolist() == [0, 0]
    for v, n_kept in enumerate((10, 25)):
        kept, dropped = a[v][a[v] > 0], z[v][a[v] == 0]
        assert kept.min() > dropped.max()
        assert sparsity.threshold_VF()[v].tolist() == pytest.approx([kept.min().item()] * 8)
        assert len(kept) == n_kept


def test_batch_topk_keeps_exactly_k_times_b_among_ties():
    a, _ = build_sparsity(SparsityConfig(), [2, 2], 8)(torch.ones(2, 8, 10), W_DEC)
    assert (a > 0).sum((1, 2)).tolist() == [20, 20]


def test_batch_topk_never_keeps_what_is_not_positive():
    sparsity = build_sparsity(SparsityConfig(), [8, 8], 8)
    z = z_VFB()
    a, _ = sparsity(z, W_DEC)
    torch.testing.assert_close(a, z.relu())
    sparsity(-z.abs(), W_DEC)  # says nothing about the threshold
    smallest = torch.stack([zv[zv > 0].min() for zv in z])
    torch.testing.assert_close(sparsity.threshold_VF()[:, 0], smallest)


def test_batch_topk_threshold_is_the_bias_corrected_running_mean():
    sparsity = build_sparsity(SparsityConfig(threshold_momentum=0.9), [1, 1], 8)
    mean = weight = 0
    for scale in (1, 2, 3):
        z = torch.full((2, 8, 4), float(scale))
        sparsity(z, W_DEC)
        mean, weight = 0.9 * mean + 0.1 * scale, 0.9 * weight + 0.1
    torch.testing.assert_close(sparsity.threshold_VF(), torch.full((2, 8), mean / weight))


def test_jumprelu_gradients_match_smoothed_finite_differences():
    """The straight-through gradient is the slope of the loss averaged over θ ± ε/2.

    With many z spread evenly, (E[loss](θ + ε/2) − E[loss](θ − ε/2)) / ε is that average.
    """
    bandwidth, theta = 0.2, 1.0
    config = SparsityConfig(mode="jumprelu", bandwidth=bandwidth)
    sparsity = build_sparsity(config, [0.5], 1)
    z = torch.linspace(-1, 3, 400_001)[None, None]

    def losses(threshold: float) -> tuple[float, float]:
        a = torch.where(z > threshold, z, 0).double()
        return a.mean().item(), ((a > 0).double().mean().item() / 0.5 - 1) ** 2

    high, low = losses(theta + bandwidth / 2), losses(theta - bandwidth / 2)
    for which in (0, 1):
        sparsity.threshold.data.fill_(theta)
        sparsity.threshold.grad = None
        a, penalty = sparsity(z, W_DEC)
        (a.mean() if which == 0 else penalty.sum()).backward()
        slope = (high[which] - low[which]) / bandwidth
        assert sparsity.threshold.grad.item() == pytest.approx(slope, rel=2e-2)


def test_jumprelu_sends_gradients_to_active_features_only():
    sparsity = build_sparsity(SparsityConfig(mode="jumprelu"), [2, 2], 8)
    sparsity.threshold.data.fill_(0.4)
    z = z_VFB().requires_grad_()
    a, penalty = sparsity(z, W_DEC)
    (a.sum() + penalty.sum()).backward()
    torch.testing.assert_close(z.grad, (z > 0.4).float())
    sparsity.threshold.data.fill_(-1)
    sparsity.finish_step()
    assert (sparsity.threshold == 0).all()


def test_jumprelu_calibration_starts_at_the_l0_aimed_at():
    sparsity = build_sparsity(SparsityConfig(mode="jumprelu"), [1, 3], 8)
    z = z_VFB(1000)
    sparsity.calibrate(z)
    a, penalty = sparsity(z, W_DEC)
    torch.testing.assert_close(
        (a > 0).sum((1, 2)) / 1000, torch.tensor([1.0, 3.0]), atol=2e-3, rtol=0
    )
    assert (penalty < 1e-4).all()


def test_l1_is_the_mean_activation_warmed_up_and_weighted_by_rows():
    z = z_VFB().abs()
    config = SparsityConfig(mode="l1", l1_weight=0.5, l1_warmup_steps=2, unit_rows=True)
    unit = build_sparsity(config, [0, 0], 8)
    penalties = [unit(z, W_DEC)[1] for _ in range(4)]
    full = 0.5 * torch.where(z > 1e-3, z, 0).mean((1, 2))
    for penalty, warmup in zip(penalties, (0.5, 1, 1, 1), strict=True):
        torch.testing.assert_close(penalty, warmup * full)
    config = SparsityConfig(mode="l1", l1_weight=0.5, l1_warmup_steps=0)
    weighted = build_sparsity(config, [0, 0], 8)
    torch.testing.assert_close(weighted(z, 4 * W_DEC / 3**0.5)[1], 4 * full)
    assert (unit.threshold_VF() == 1e-3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "topk"}, "mode is 'topk'"),
        ({"unit_rows": True}, "unit_rows belongs to mode l1"),
    ],
)
def test_bad_configs(options, message):
    with pytest.raises(ValueError, match=message):
        SparsityConfig(**options)


@pytest.mark.parametrize("mode", ["batch_topk", "jumprelu"])
def test_impossible_l0(mode):
    with pytest.raises(ValueError, match=r"9 .*of 8 features"):
        build_sparsity(SparsityConfig(mode=mode), [2, 9], 8)
