import math
import subprocess
import sys

import numpy as np
import pytest

from delta_transcoders.metrics import intervals
from delta_transcoders.metrics.intervals import (
    bootstrap_counts,
    newcombe_paired,
    paired_bootstrap,
    paired_bootstrap_ratio,
    t_interval,
    wilson,
    wilson_of,
)

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (20, 20, 20 / (20 + Z**2), 1.0),
        (0, 20, 0.0, Z**2 / (20 + Z**2)),
        (20, 20, 0.8389, 1.0),
        (81, 263, 0.2553, 0.3662),  # this and the next two: Newcombe (1998), table I
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (200, 200, 200 / (200 + Z**2), 1.0),
    ],
)
def test_wilson_known_values(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation():
    """The ends are the rates p at which the observed rate lies z standard errors of p away."""
    for successes, total, confidence, z in ((7, 19, 0.95, Z), (120, 200, 0.99, 2.5758293035489)):
        for p in wilson(successes, total, confidence):
            assert abs(successes / total - p) == pytest.approx(z * math.sqrt(p * (1 - p) / total))


def test_wilson_edges():
    assert all(math.isnan(end) for end in wilson(0, 0))
    for n in range(1, 60):
        assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0
        low, high = wilson(n // 2, n)
        mirrored = wilson(n - n // 2, n)
        assert (1 - high, 1 - low) == pytest.approx(mirrored)
    ends = wilson(np.int64(3), np.float64(7))
    assert [type(end) for end in ends] == [float, float]


@pytest.mark.parametrize("successes, total", [(-1, 5), (6, 5), (math.nan, 5), (0, -1)])
def test_wilson_refuses(successes, total):
    with pytest.raises(ValueError, match=f"got {successes} of {total}"):
        wilson(successes, total)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_confidence_is_checked(confidence):
    with pytest.raises(ValueError, match=f"got {confidence}"):
        wilson(1, 2, confidence)
    with pytest.raises(ValueError, match=f"got {confidence}"):
        paired_bootstrap([1.0], [1.0], confidence=confidence)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe (1998), paired data
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen and Laake (2014)
    ],
)
def test_newcombe_known_values(counts, low, high):
    assert newcombe_paired(*counts) == pytest.approx((low, high), abs=5e-4)


def test_newcombe_where_all_differences_are_equal():
    low_all, _ = wilson(200, 200)
    # An empty margin leaves no correlation: the distances of both rates' ends, squared and added.
    assert newcombe_paired(200, 0, 0, 0) == pytest.approx((low_all - 1, 1 - low_all))
    distance = math.sqrt(2) * (1 - low_all)
    assert newcombe_paired(0, 200, 0, 0) == pytest.approx((1 - distance, 1.0))
    # Both rates 1/2 on the same examples: φ = (100·100 - 100) / 100², the ends' distances equal.
    low, high = wilson(100, 200)
    half = (high - low) / 2 * math.sqrt(2 * (1 - 0.99))
    assert newcombe_paired(100, 0, 0, 100) == pytest.approx((-half, half))


def test_newcombe_mirrors_and_refuses():
    low, high = newcombe_paired(5, 9, 2, 7)
    assert newcombe_paired(5, 2, 9, 7) == pytest.approx((-high, -low))
    assert all(math.isnan(end) for end in newcombe_paired(0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"got \(1, -1, 0, 0\)"):
        newcombe_paired(1, -1, 0, 0)


def test_counts_are_the_draws_of_the_bootstrap(rng):
    values = rng.normal(size=40)
    means = bootstrap_counts(range(40), seed=3, resamples=500) @ values / 40
    _, low, high = paired_bootstrap(values, 0 * values, seed=3, resamples=500)
    assert tuple(np.quantile(means, [0.025, 0.975])) == pytest.approx((low, high))


def test_wordings_are_drawn_first_then_as_many_examples_of_each():
    wordings = ["a"] * 5 + ["b"] * 5 + ["c"]
    counts = bootstrap_counts(wordings, seed=1, resamples=4000)
    of_each = np.stack([counts[:, :5].sum(1), counts[:, 5:10].sum(1), counts[:, 10]])
    drawn = of_each / np.array([[5], [5], [1]])
    assert (drawn == drawn.round()).all() and (drawn.sum(0) == 3).all()
    assert (drawn > 0).mean() == pytest.approx(1 - (2 / 3) ** 3, abs=0.02)
    assert counts[:, 0].var() > counts[:, 0].mean() * 1.2  # more than of single examples


def test_wordings_that_err_as_one_widen_the_bootstrap_by_the_root_of_their_size(rng):
    values = rng.normal(size=100)
    _, low, high = paired_bootstrap(values, 0 * values, resamples=8000)
    repeated, names = np.repeat(values, 4), np.repeat(np.arange(100), 4).tolist()
    whole = paired_bootstrap(repeated, 0 * repeated, resamples=8000, wordings=names)
    blind = paired_bootstrap(repeated, 0 * repeated, resamples=8000)
    assert whole[2] - whole[1] == pytest.approx(high - low, rel=0.05)
    assert blind[2] - blind[1] == pytest.approx((high - low) / 2, rel=0.05)


def test_wilson_of_wordings():
    verdicts = [True] * 6 + [False] * 4
    assert wilson_of(verdicts, range(10)) == wilson(6, 10)
    # Wordings of five that err as one: two examples' worth. Σ(k_w − .5·5)² / (10·.25) = 12.5 / 2.5 = 5.
    alike = [True] * 5 + [False] * 5
    assert wilson_of(alike, "aaaaabbbbb") == pytest.approx(wilson(1, 2))
    assert wilson_of(alike, "abcdeabcde") == pytest.approx(
        wilson(5, 10)
    )  # an effect below 1 does not help
    assert wilson_of([True] * 10, "aaaaabbbbb") == wilson(2, 2)
    assert wilson_of([False] * 10, "aaaaabbbbb") == wilson(0, 2)
    assert all(math.isnan(end) for end in wilson_of([], []))


def test_the_interval_over_seeds_is_students():
    assert t_interval([0.5, -0.25, 1.25]) == pytest.approx((0.5, -1.36310, 2.36310), abs=1e-4)
    mean, low, high = t_interval([1.0, 1.0])
    assert (mean, low, high) == (1, 1, 1)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_equal_conditions_differ_by_exactly_nothing(rng):
    a, den = rng.normal(size=101) * 1e3, rng.integers(1, 30, size=101)
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0)
    assert paired_bootstrap_ratio(a, den, a, den) == (0.0, 0.0, 0.0)


def test_constant_difference_has_no_width(rng):
    b = rng.integers(0, 100, size=50)
    assert paired_bootstrap(b + 3, b) == (3.0, 3.0, 3.0)
    den_a, den_b = rng.integers(1, 9, size=(2, 50))
    # Every example has ratio 2 under a and .5 under b, whatever its weight.
    result = paired_bootstrap_ratio(2 * den_a, den_a, 0.5 * den_b, den_b)
    assert result == pytest.approx((1.5, 1.5, 1.5), abs=1e-12)


@pytest.mark.parametrize("confidence, z", [(0.95, Z), (0.8, 1.2815515655446004)])
def test_mean_difference_against_the_normal_interval(rng, confidence, z):
    n = 400
    shared = 50 * rng.normal(size=n)  # cancels in every pair; unpaired it would swamp the interval
    difference = 0.3 + rng.normal(size=n)
    estimate, low, high = paired_bootstrap(
        shared + difference, shared, resamples=20_000, confidence=confidence
    )
    half_width = z * difference.std() / math.sqrt(n)
    assert estimate == pytest.approx(difference.mean())
    assert low == pytest.approx(difference.mean() - half_width, abs=0.05 * half_width)
    assert high == pytest.approx(difference.mean() + half_width, abs=0.05 * half_width)


def test_ratio_against_its_linearised_standard_error(rng):
    n = 500
    den = rng.integers(1, 40, size=n).astype(float)
    num_b = den * rng.gamma(2.0, size=n)
    num_a = num_b + den * (0.2 + 0.1 * rng.normal(size=n))
    estimate, low, high = paired_bootstrap_ratio(num_a, den, num_b, den, resamples=20_000)
    assert estimate == pytest.approx(num_a.sum() / den.sum() - num_b.sum() / den.sum())
    influence = (num_a - num_b - estimate * den) / den.mean()
    half_width = Z * influence.std() / math.sqrt(n)
    assert (low, high) == pytest.approx(
        (estimate - half_width, estimate + half_width), abs=0.05 * half_width
    )


def test_unequal_denominators_against_a_plain_loop(rng):
    n, resamples = 17, 300
    num_a, num_b = rng.normal(size=(2, n))
    den_a, den_b = rng.integers(1, 9, size=(2, n))
    draws = np.random.default_rng(3)
    differences = []
    for _ in range(resamples):
        i = draws.integers(n, size=n)
        differences.append(num_a[i].sum() / den_a[i].sum() - num_b[i].sum() / den_b[i].sum())
    expected = np.quantile(differences, [0.05, 0.95])
    _, low, high = paired_bootstrap_ratio(num_a, den_a, num_b, den_b, 3, resamples, 0.9)
    assert (low, high) == pytest.approx(tuple(expected))


def test_plain_is_the_ratio_with_unit_denominators(rng):
    a, b = rng.normal(size=(2, 30))
    ones = np.ones(30)
    expected = paired_bootstrap_ratio(a, ones, b, ones, seed=5)
    assert paired_bootstrap(a, b, seed=5) == pytest.approx(expected)


def test_the_seed_decides_and_the_chunk_does_not(rng, monkeypatch):
    a, b = rng.normal(size=(2, 33))
    expected = paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1) == expected
    assert paired_bootstrap(a, b, seed=2) != expected
    for chunk in (1, 33 * 7 + 5, 33 * 2000):
        monkeypatch.setattr(intervals, "_CHUNK", chunk)
        assert paired_bootstrap(a, b, seed=1) == pytest.approx(expected, rel=1e-12)


def test_sign_and_scale_follow_the_data(rng):
    a, b = rng.normal(size=(2, 60))
    estimate, low, high = paired_bootstrap(a, b)
    assert low < estimate < high
    assert paired_bootstrap(b, a) == pytest.approx((-estimate, -high, -low))
    assert paired_bootstrap(4 * a, 4 * b) == pytest.approx((4 * estimate, 4 * low, 4 * high))


def test_booleans_are_rates():
    a, b = np.array([True, True, False, True]), np.array([False, True, True, False])
    assert paired_bootstrap(a, b)[0] == 0.25


def test_resamples_without_a_denominator_are_left_out():
    # Only the first example counts; a resample misses it with probability (4/5)^5 = .33.
    num, den = [2.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]
    assert paired_bootstrap_ratio(num, den, [1.0] * 5, [1.0] * 5) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "columns",
    [
        ([], [], [], []),
        ([1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [1.0, 1.0]),
        ([1.0, math.nan], [1.0, 1.0], [1.0, 2.0], [1.0, 1.0]),
        ([1.0, math.inf], [1.0, 1.0], [1.0, 2.0], [1.0, 1.0]),
    ],
)
def test_no_finite_estimate_is_nan_throughout(columns):
    assert all(math.isnan(value) for value in paired_bootstrap_ratio(*columns))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"a \(3,\), b \(2,\)"):
        paired_bootstrap([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"b \(1,\)"):
        paired_bootstrap([1, 2, 3], [1])
    with pytest.raises(ValueError, match=r"a \(1, 2\)"):
        paired_bootstrap([[1, 2]], [[1, 2]])
    with pytest.raises(ValueError, match=r"negative, got -2"):
        paired_bootstrap_ratio([1], [1], [1], [-2])
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        paired_bootstrap([1], [1], resamples=0)


def test_needs_no_torch():
    code = f"import sys, {intervals.__name__}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
