"""The ranks of what single features do, and how far a ranking can be trusted.

Shapes: F and G features, E examples, D d_model, S splits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr


def ranks(effects_F: ArrayLike) -> list[int]:
    """1 for the largest |effect|, and so on; of equal ones the first comes first.

    >>> ranks([0.5, -2.0, 0.0, 0.5])
    [2, 1, 4, 3]
    """
    order_F = np.argsort(-np.abs(np.asarray(effects_F)), kind="stable")
    return (np.argsort(order_F) + 1).tolist()


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's ρ: the correlation of ranks, equal values sharing their mean rank; nan for a constant.

    Of n pairs that have nothing to do with each other it has mean 0 and standard deviation 1/√(n − 1).

    C. Spearman (1904), The proof and measurement of association between two things, American Journal of
    Psychology 15.

    Raises:
        ValueError: lengths differ.

    >>> round(spearman([1, 2, 3, 4], [10, 20, 40, 30]), 12), spearman([1, 2], [5, 5])
    (0.8, nan)
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"need pairs of numbers, got shapes {list(a.shape)} and {list(b.shape)}")
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def split_half(effects_FE: ArrayLike, n_splits: int = 200, seed: int = 0) -> np.ndarray:
    """Spearman's ρ between the mean effects on one half of the examples and on the other, [S].

    The first split is into even and odd examples, the others are random halves. Each half has fewer
    examples than the ranking itself, whose own reliability is therefore higher.

    Raises:
        ValueError: fewer than two examples.
    """
    effects_FE = np.asarray(effects_FE, dtype=np.float64)
    n_examples = effects_FE.shape[1]
    if n_examples < 2:
        raise ValueError(f"{n_examples} example cannot be split into halves")
    rng = np.random.default_rng(seed)
    even_first = np.r_[0:n_examples:2, 1:n_examples:2]
    orders = [even_first, *(rng.permutation(n_examples) for _ in range(n_splits - 1))]
    size = (n_examples + 1) // 2
    return np.array(
        [
            spearman(effects_FE[:, order[:size]].mean(1), effects_FE[:, order[size:]].mean(1))
            for order in orders
        ]
    )


def match_rows(a_FD: ArrayLike, b_GD: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The one-to-one assignment of rows with the largest summed cosine.

    Returns:
        (rows of a, rows of b, their cosines), min(F, G) each, rows of a ascending.

    Raises:
        ValueError: rows of different width.

    >>> [part.tolist() for part in match_rows([[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [3.0, 0.0]])]
    [[0, 1], [1, 0], [1.0, 1.0]]
    """
    a_FD, b_GD = np.asarray(a_FD, dtype=np.float64), np.asarray(b_GD, dtype=np.float64)
    if a_FD.shape[1] != b_GD.shape[1]:
        raise ValueError(f"rows of width {a_FD.shape[1]} cannot match rows of {b_GD.shape[1]}")
    norms_FG = np.linalg.norm(a_FD, axis=1)[:, None] * np.linalg.norm(b_GD, axis=1)
    products_FG = a_FD @ b_GD.T
    cosine_FG = np.divide(products_FG, norms_FG, out=np.zeros_like(products_FG), where=norms_FG > 0)
    index_a, index_b = linear_sum_assignment(cosine_FG, maximize=True)
    return index_a, index_b, cosine_FG[index_a, index_b]
