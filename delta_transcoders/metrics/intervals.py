"""Error bars: over seeds, then wordings, then examples.

Examples of one wording do not err alone. Within one trained model, rates have Wilson's interval for as
many examples as they are worth (`wilson_of`), and differences the paired bootstrap, which draws wordings
first and then their examples. Neither covers retraining: over several seeds of it there is `t_interval`,
never an interval of all seeds' examples together. Where all paired differences are equal (say, two rates of
exactly 1) a bootstrap interval has no width, which is no certainty: `newcombe_of` gives one that has.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from math import isfinite, nan, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

_CHUNK = 1 << 20  # resampled examples in memory at once, a float64 of each


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


def wilson_of(
    verdicts: Sequence[bool], wordings: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of a rate whose examples are [n] verdicts, each of one of several wordings.

    n is divided by the design effect, the variance of the rate over wordings as whole units as a multiple of
    what it would be over independent examples: Σ_w (k_w − p·n_w)² / (n·p·(1 − p)), at least 1. Where all
    verdicts are alike it cannot be seen, and each wording counts as one example. With a wording for each
    example the interval is `wilson`'s.

    E. L. Korn and B. I. Graubard (1998), Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data, Survey Methodology 24.

    >>> low, high = wilson_of([True] * 10, "aaaaabbbbb")
    >>> (low, high) == wilson(2, 2)
    True
    """
    k, n = sum(verdicts), len(verdicts)
    n_wordings = len(set(wordings))
    if n_wordings == n:
        return wilson(k, n, confidence)
    if k in (0, n):
        return wilson(k / n * n_wordings, n_wordings, confidence)
    rate = k / n
    excess: dict[Hashable, float] = {}
    for verdict, wording in zip(verdicts, wordings, strict=True):
        excess[wording] = excess.get(wording, 0.0) + (verdict - rate)
    effect = sum(part**2 for part in excess.values()) / (n * rate * (1 - rate))
    worth = n / max(1.0, effect)
    return wilson(rate * worth, worth, confidence)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of at least two independent values and its interval by Student's t: (mean, low, high).

    The values are one for each seed: their spread holds that of wordings and examples too.

    >>> mean, low, high = t_interval([1.0, 2.0, 3.0])
    >>> mean, round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    from scipy.stats import t  # takes a while

    values = np.asarray(values, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    half_width = t.ppf((1 + _checked(confidence)) / 2, n - 1) * values.std(ddof=1) / sqrt(n)
    return mean, mean - float(half_width), mean + float(half_width)


def newcombe_paired(
    both: float, only_a: float, only_b: float, neither: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's hybrid score interval (low, high) for the difference a - b of two paired rates.

    The arguments count the examples that succeeded under both conditions, under one of them alone and
    under neither (fractions, where an example counts for less than one). The distances of the two rates
    from the ends of their Wilson intervals are added like the standard deviations of correlated numbers,
    with the continuity-corrected correlation φ of the four counts (0 where a margin is empty). Unlike a
    bootstrap over examples it keeps a width where all paired differences are equal. No examples: (nan, nan).

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


def newcombe_of(
    a: Sequence[bool], b: Sequence[bool], wordings: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """`newcombe_paired` of two conditions' verdicts [n] of the same examples, each wording worth one example.

    >>> ends = newcombe_of([True] * 4, [True] * 4, "aabb")
    >>> ends == newcombe_paired(both=2, only_a=0, only_b=0, neither=0)
    True
    """
    pairs = [(bool(x), bool(y)) for x, y in zip(a, b, strict=True)]
    worth = len(set(wordings)) / max(1, len(pairs))
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return newcombe_paired(*(pairs.count(kind) * worth for kind in kinds), confidence)


def paired_rates(
    a: Sequence[bool], b: Sequence[bool], wordings: Sequence[Hashable]
) -> tuple[float, float, float]:
    """Difference a - b of the rates of verdicts [n] of the same examples and its interval at 95 %.

    The interval is the paired bootstrap's, or where all differences are equal Newcombe's.

    >>> estimate, low, high = paired_rates([True] * 20, [True] * 20, range(20))
    >>> estimate, round(low, 4), round(high, 4)
    (0.0, -0.1611, 0.1611)
    """
    differences = {bool(x) - bool(y) for x, y in zip(a, b, strict=True)}
    if len(differences) == 1:
        return float(differences.pop()), *newcombe_of(a, b, wordings)
    return paired_bootstrap(a, b, wordings=wordings)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
    wordings: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """Mean of a - b over examples and its percentile bootstrap interval: (estimate, low, high).

    `a` and `b` are [n]: one number per example under two conditions, the same examples in the same
    order. `paired_bootstrap_ratio` with every example weighing the same; see there.

    >>> paired_bootstrap([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    (2.0, 2.0, 2.0)
    """
    a, b = _columns(a=a, b=b)
    ones = np.ones_like(a)
    columns = a - b, ones, 0 * ones, ones
    return paired_bootstrap_ratio(*columns, seed, resamples, confidence, wordings)


def paired_bootstrap_ratio(
    num_a: ArrayLike,
    den_a: ArrayLike,
    num_b: ArrayLike,
    den_b: ArrayLike,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
    wordings: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """Σnum_a/Σden_a - Σnum_b/Σden_b and its percentile bootstrap interval: (estimate, low, high).

    All four are [n], aligned by example: a mean cross-entropy has the summed loss of each example
    as `num` and its number of target tokens as `den`. Wordings are drawn with replacement, then whole
    examples of each, the same ones for both conditions, so that what they share cancels (see
    `bootstrap_counts`). The result depends on `seed` alone. Resamples in which a denominator sums to 0 are
    left out; (nan, nan, nan) where there is no finite estimate: no examples, a zero denominator, values that
    are not finite.

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
    return bootstrap_sums(columns, _ratio_difference, seed, resamples, confidence, wordings)


def bootstrap_sums(
    columns: ArrayLike,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
    wordings: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """A statistic of column sums over examples and its percentile bootstrap interval.

    Args:
        columns: [k, n], k numbers for each of n examples.
        statistic: of sums [k, ...] to [...]; nan where it has no value.
        wordings: of each example, see `bootstrap_counts`.

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
    if wordings is None:
        wordings = range(columns.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic(columns.sum(axis=1)))
        if not isfinite(estimate):
            return nan, nan, nan
        chunks = [
            statistic(np.stack([counts_RN @ column_N for column_N in columns]))
            for counts_RN in _counts(wordings, seed, resamples)
        ]
    low, high = np.nanquantile(np.concatenate(chunks), [tail, 1 - tail])
    return estimate, float(low), float(high)


def bootstrap_counts(
    wordings: Sequence[Hashable], seed: int = 0, resamples: int = 2000
) -> np.ndarray:
    """How often each of n examples is drawn in each resample, [resamples, n].

    As many wordings are drawn with replacement as there are, and then of each as many of its examples as it
    has. For many statistics of the same examples at once; the draws are those of `bootstrap_sums`.

    Args:
        wordings: of each example; all different where examples are independent.

    >>> bootstrap_counts("aab", resamples=4).sum(axis=1)  # b twice, both, or a twice
    array([2., 3., 4., 4.])
    """
    return np.concatenate(list(_counts(wordings, seed, resamples)))


def _counts(wordings: Sequence[Hashable], seed: int, resamples: int) -> Iterator[np.ndarray]:
    """The same, some resamples at a time."""
    number = {wording: i for i, wording in enumerate(dict.fromkeys(wordings))}
    members = [[] for _ in number]
    for example, wording in enumerate(wordings):
        members[number[wording]].append(example)
    rng, n = np.random.default_rng(seed), len(wordings)
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        n_rows, n_wordings = min(rows, resamples - start), len(members)
        cells = rng.integers(n_wordings, size=(n_rows, n_wordings))
        cells += n_wordings * np.arange(n_rows)[:, None]
        drawn = np.bincount(cells.reshape(-1), minlength=n_rows * n_wordings)
        drawn_RW = drawn.reshape(n_rows, n_wordings)
        counts_RN = np.empty((n_rows, n))
        for drawn_R, mine in zip(drawn_RW.T, members, strict=True):
            share = [1 / len(mine)] * len(mine)
            counts_RN[:, mine] = (
                rng.multinomial(drawn_R * len(mine), share) if len(mine) > 1 else drawn_R[:, None]
            )
        yield counts_RN


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
