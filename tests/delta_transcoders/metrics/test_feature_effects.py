"""Ranks, rank correlations and matches against answers worked out otherwise."""

import itertools

import numpy as np
import pytest

from delta_transcoders.metrics.feature_effects import match_rows, ranks, spearman, split_half


def test_ranks_are_by_size_and_the_first_of_equals_comes_first():
    assert ranks([0.0, -3.0, 1.0, 3.0]) == [4, 1, 3, 2]


def test_spearman_without_ties_is_the_formula_of_squared_rank_differences():
    rng = np.random.default_rng(0)
    a, b = rng.permutation(12), rng.permutation(12)
    expected = 1 - 6 * ((a - b) ** 2).sum() / (12 * (12**2 - 1))
    assert spearman(np.exp(a), b * 1.0) == pytest.approx(expected)


def test_equal_values_share_their_mean_rank():
    # ranks 1.5, 1.5, 3 against 1, 2, 3: √3 / 2
    assert spearman([0, 0, 1], [1, 2, 3]) == pytest.approx(3**0.5 / 2)


def test_halves_agree_on_constant_effects_and_not_on_noise():
    rng = np.random.default_rng(0)
    effects_FE = np.arange(20.0)[:, None] + np.zeros((20, 9))
    assert split_half(effects_FE, n_splits=5) == pytest.approx(np.ones(5))
    noise = split_half(rng.standard_normal((20, 50)), n_splits=100)
    assert len(noise) == 100
    assert abs(noise.mean()) < 3 / 19**0.5
    # The even examples say one order, the odd ones its opposite: only that split sees it.
    opposed_FE = np.arange(20.0)[:, None] * np.tile([1.0, -1.0], 5)
    assert split_half(opposed_FE)[0] == pytest.approx(-1)
    with pytest.raises(ValueError, match="1 example cannot be split"):
        split_half(np.zeros((3, 1)))


def test_the_match_is_the_best_of_all_assignments():
    rng = np.random.default_rng(1)
    a_FD, b_GD = rng.standard_normal((4, 3)), rng.standard_normal((6, 3))
    cosine_FG = (a_FD / np.linalg.norm(a_FD, axis=1)[:, None]) @ (
        b_GD / np.linalg.norm(b_GD, axis=1)[:, None]
    ).T
    best = max(itertools.permutations(range(6), 4), key=lambda p: sum(cosine_FG[range(4), list(p)]))
    index_a, index_b, cosines = match_rows(a_FD, b_GD)
    assert index_a.tolist() == [0, 1, 2, 3]
    assert index_b.tolist() == list(best)
    assert cosines == pytest.approx(cosine_FG[range(4), list(best)])
    back = match_rows(b_GD, a_FD)
    assert sorted(zip(back[1].tolist(), back[0].tolist(), strict=True)) == list(enumerate(best))
    with pytest.raises(ValueError, match="rows of width 3 cannot match rows of 2"):
        match_rows(a_FD, b_GD[:, :2])


def test_a_row_of_zeros_matches_nothing_well():
    _, _, cosines = match_rows([[0.0, 0.0]], [[1.0, 0.0]])
    assert cosines.tolist() == [0]
