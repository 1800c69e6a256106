"""The deletion matrix of planted rules: what a deletion takes from the rule it is for, and from the others.

With loss[k, j] = rate of rule j before − after the deletion for rule k,

    selectivity = mean_k loss[k, k] − mean_{k ≠ j} loss[k, j]

It is 1 where each deletion takes its own rule alone, and 0 where all rules lose alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Selectivity(NamedTuple):
    """Means over the matrix, and the 95 % bootstrap interval of their difference."""

    diagonal: float
    off_diagonal: float
    estimate: float
    low: float
    high: float


def selectivity(
    losses: Mapping[str, ArrayLike],
    wordings: Mapping[str, Sequence[str]],
    seed: int = 0,
    resamples: int = 2000,
) -> Selectivity:
    """
    Args:
        losses: by rule, [K, n]: what each deletion, in the rules' order, takes from each of its n examples.
        wordings: by rule, of each example. Wordings are drawn first, the same ones for all rules, then
            examples within each.

    >>> own = {"a": [[1, 1], [0, 0]], "b": [[0, 1], [1, 1]]}
    >>> selectivity(own, {"a": ["x", "y"], "b": ["x", "y"]})[:3]
    (1.0, 0.25, 0.75)
    """
    rules = list(losses)
    diagonal, off_diagonal, cells = [], [], {}
    for k, rule in enumerate(rules):
        losses_Kn = np.asarray(losses[rule], dtype=np.float64)
        own_n, others_n = losses_Kn[k], np.delete(losses_Kn, k, axis=0).mean(0)
        diagonal.append(own_n.mean())
        off_diagonal.append(others_n.mean())
        for wording in set(wordings[rule]):
            at = np.array(wordings[rule]) == wording
            cells[rule, wording] = (own_n - others_n)[at]
    names = sorted({wording for _, wording in cells})
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        means = []
        for rule in rules:
            parts = [cells[rule, wording] for wording in drawn if (rule, wording) in cells]
            parts = [part[rng.integers(len(part), size=len(part))] for part in parts]
            means.append(np.concatenate(parts).mean() if parts else np.nan)
        draws.append(np.mean(means))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    means = float(np.mean(diagonal)), float(np.mean(off_diagonal))
    return Selectivity(*means, means[0] - means[1], float(low), float(high))


def random_selectivity(
    losses_RK: ArrayLike, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean and 95 % range of the selectivity of matrices whose rows are random deletions.

    Args:
        losses_RK: what each of R ≥ K random deletions takes from each of K rules.
    """
    losses_RK = np.asarray(losses_RK, dtype=np.float64)
    n_random, n_rules = losses_RK.shape
    rng = np.random.default_rng(seed)
    own = np.eye(n_rules, dtype=bool)
    found = []
    for _ in range(resamples):
        matrix_KK = losses_RK[rng.permutation(n_random)[:n_rules]]
        found.append(matrix_KK[own].mean() - matrix_KK[~own].mean())
    low, high = np.quantile(found, [0.025, 0.975])
    return float(np.mean(found)), float(low), float(high)
