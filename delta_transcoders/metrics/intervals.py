"""Error bars: Wilson intervals for rates, the paired bootstrap for differences.

Both describe the examples that were drawn, for one trained model; neither covers retraining it with
another seed. Where all paired differences are equal (say, two rates of exactly 1) a bootstrap
interval has no width, which is no certainty: `newcombe_paired` gives an interval that has one.
"""

from collections.abc import Callable
from math import isfinite, nan, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

_CHUNK = 1 << 18  # resampled examples in memory at once: four float64 of each, 8 MiB


def wilson(successes: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) for a rate of `successes` in `total` trials.

    With p = successes / total, n = total and z the normal quantile of `confidence`:
    (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± z·√(p(1-p)/n) it keeps its
    coverage at small n and has a width at p = 0 and p = 1. No trials: (nan, nan).

    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference,
    Journal of the American Statistical Association 22.

    Raises:
        ValueError: not 0 <= successes <= total, or confidence outside (0, 1).

    >>> low, high = wilson(20, 20)
    >>> round(low, 4), high
    (0.8389, 1.0)
    """
    if not 0 <= successes <= total:
        raise ValueError(f"need 0 <= successes <= total, got {successes} of {total}")
    z = NormalDist().inv_cdf((1 + _checked(confidence)) / 2)
    if total == 0:
        return nan, nan
    rate = successes / total
    centre = rate + z**2 / (2 * total)
    half_width = z * sqrt(rate * (1 - rate) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    # The ends are exactly 0 and 1 at no and all successes; rounding would miss them.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == total else (centre + half_width) / scale
    return float(low), float(high)


def newcombe_paired(
    both: int, only_a: int, only_b: int, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's hybrid score interval (low, high) for the difference a - b of two paired rates.

    The arguments count the examples that succeeded under both conditions, under one of them alone and
    under neither. The distances of the two rates from the ends of their Wilson intervals are added
    like the standard deviations of correlated numbers, with the continuity-corrected correlation φ of
    the four counts (0 where a margin is empty). Unlike a bootstrap over examples it keeps a width
    where all paired differences are equal. No examples: (nan, nan).

    R. G. Newcombe (1998), Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statistics in Medicine 17, 2635-2650, method 10.

    Raises:
        ValueError: a negative count, or confidence outside (0, 1).

    >>> low, high = newcombe_paired(both=20, only_a=0, only_b=0, neither=0)
    >>> round(low, 4), round(high, 4)
    (-0.1611, 0.1611)
    """
    counts = (both, only_a, only_b, neither)
    if min(counts) < 0:
        raise ValueError(f"counts must not be negative, got {counts}")
    n = sum(counts)
    if n == 0:
        _checked(confidence)
        return nan, nan
    a, b = both + only_a, both + only_b
    (low_a, high_a), (low_b, high_b) = wilson(a, n, confidence), wilson(b, n, confidence)
    margins = a * (n - a) * b * (n - b)
    excess = both * neither - only_a * only_b
    corrected = max(excess - n / 2, 0) if excess > 0 else excess
    phi = corrected / sqrt(margins) if margins else 0.0

    def added(x: float, y: float) -> float:
        # Rounding may take a perfect correlation below 0.
        return sqrt(max(0.0, x**2 - 2 * phi * x * y + y**2))

    rate_a, rate_b = a / n, b / n
    difference = (only_a - only_b) / n
    low = difference - added(rate_a - low_a, high_b - rate_b)
    return low, difference + added(high_a - rate_a, rate_b - low_b)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, seed: int = 0, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a - b over examples and its percentile bootstrap interval: (estimate, low, high).

    `a` and `b` are [n]: one number per example under two conditions, the same examples in the same
    order. `paired_bootstrap_ratio` with every example weighing the same; see there.

    >>> paired_bootstrap([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    (2.0, 2.0, 2.0)
    """
    a, b = _columns(a=a, b=b)
    ones = np.ones_like(a)
    return paired_bootstrap_ratio(a - b, ones, 0 * ones, ones, seed, resamples, confidence)


def paired_bootstrap_ratio(
    num_a: ArrayLike,
    den_a: ArrayLike,
    num_b: ArrayLike,
    den_b: ArrayLike,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Σnum_a/Σden_a - Σnum_b/Σden_b and its percentile bootstrap interval: (estimate, low, high).

    All four are [n], aligned by example: a mean cross-entropy has the summed loss of each example
    as `num` and its number of target tokens as `den`. Whole examples are drawn with replacement,
    the same ones for both conditions, so that what they share cancels. The result depends on `seed`
    alone. Resamples in which a denominator sums to 0 are left out; (nan, nan, nan) where there is
    no finite estimate: no examples, a zero denominator, values that are not finite.

    B. Efron and R. J. Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.

    Raises:
        ValueError: lengths differ, a denominator is negative, resamples < 1, or confidence outside
            (0, 1).

    >>> estimate, low, high = paired_bootstrap_ratio([2, 6, 1], [1, 3, 1], [1, 3, 1], [1, 3, 1])
    >>> estimate, low <= estimate <= high
    (0.8, True)
    """
    columns = np.stack(_columns(num_a=num_a, den_a=den_a, num_b=num_b, den_b=den_b))  # [4, n]
    if (columns[[1, 3]] < 0).any():
        raise ValueError(f"denominators must not be negative, got {columns[[1, 3]].min()}")
    return bootstrap_sums(columns, _ratio_difference, seed, resamples, confidence)


def bootstrap_sums(
    columns: ArrayLike,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """A statistic of column sums over examples and its percentile bootstrap interval.

    Args:
        columns: [k, n], k numbers for each of n examples.
        statistic: of sums [k, ...] to [...]; nan where it has no value.

    Returns:
        (estimate, low, high); (nan, nan, nan) where the estimate is not finite. Resamples in which the
        statistic is nan are left out. The result depends on `seed` alone.

    Raises:
        ValueError: resamples < 1, or confidence outside (0, 1).

    >>> bootstrap_sums([[1.0, 2.0], [2.0, 4.0]], lambda sums: sums[0] / sums[1])
    (0.5, 0.5, 0.5)
    """
    columns = np.asarray(columns, dtype=np.float64)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    tail = (1 - _checked(confidence)) / 2
    n = columns.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic(columns.sum(axis=1)))
        if not isfinite(estimate):
            return nan, nan, nan
        rng = np.random.default_rng(seed)
        rows = max(1, _CHUNK // n)
        chunks = []
        for start in range(0, resamples, rows):
            drawn = rng.integers(n, size=(min(rows, resamples - start), n))
            chunks.append(statistic(columns[:, drawn].sum(axis=2)))
    low, high = np.nanquantile(np.concatenate(chunks), [tail, 1 - tail])
    return estimate, float(low), float(high)


def bootstrap_counts(n: int, seed: int = 0, resamples: int = 2000) -> np.ndarray:
    """How often each of n examples is drawn in each resample: [resamples, n], rows summing to n.

    For many statistics of the same examples at once; the draws are those of `bootstrap_sums`.

    >>> bootstrap_counts(3, resamples=5).sum(axis=1)
    array([3., 3., 3., 3., 3.])
    """
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    cells = drawn + n * np.arange(resamples)[:, None]
    counts = np.bincount(cells.reshape(-1), minlength=resamples * n)
    return counts.reshape(resamples, n).astype(np.float64)


def _ratio_difference(sums: np.ndarray) -> np.ndarray:
    """[4, ...] sums (num_a, den_a, num_b, den_b) -> [...]; nan where a denominator is 0."""
    num_a, den_a, num_b, den_b = sums
    difference = num_a / den_a - num_b / den_b
    return np.where((den_a == 0) | (den_b == 0), nan, difference)


def _columns(**values: ArrayLike) -> list[np.ndarray]:
    """The named values as float64 [n], all of one length."""
    arrays = [np.asarray(value, dtype=np.float64) for value in values.values()]
    if arrays[0].ndim != 1 or any(array.shape != arrays[0].shape for array in arrays):
        shapes = ", ".join(
            f"{name} {array.shape}" for name, array in zip(values, arrays, strict=True)
        )
        raise ValueError(f"need one number per example, all of one length, got {shapes}")
    return arrays


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return confidence
