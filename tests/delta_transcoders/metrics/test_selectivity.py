import numpy as np
import pytest

from delta_transcoders.metrics.selectivity import random_selectivity, selectivity

RULES = ("a", "b", "c")


def losses_of(matrix_KK, n: int = 12) -> dict:
    """Every example of rule j loses matrix[k, j]."""
    return {rule: np.tile(np.array(matrix_KK)[:, [j]], n) for j, rule in enumerate(RULES)}


WORDINGS = {rule: [f"w{i % 4}" for i in range(12)] for rule in RULES}


def test_perfect_and_absent_selectivity_have_no_spread():
    assert selectivity(losses_of(np.eye(3)), WORDINGS) == (1, 0, 1, 1, 1)
    assert selectivity(losses_of(np.ones((3, 3))), WORDINGS) == (1, 1, 0, 0, 0)


def test_means_over_the_matrix():
    matrix = [[0.9, 0.1, 0.2], [0.0, 0.8, 0.4], [0.3, 0.0, 1.0]]
    found = selectivity(losses_of(matrix), WORDINGS)
    assert found.diagonal == pytest.approx(0.9)
    assert found.off_diagonal == pytest.approx(1 / 6)
    assert found.estimate == pytest.approx(0.9 - 1 / 6)


def test_the_interval_is_over_wordings():
    """Where all examples of a wording agree, more of them do not make the interval narrower."""
    rng = np.random.default_rng(0)
    by_wording = rng.integers(0, 2, size=(3, 3, 4)).astype(float)
    width = {}
    for n in (4, 400):
        losses = {r: by_wording[:, j][:, np.arange(n) % 4] for j, r in enumerate(RULES)}
        found = selectivity(losses, {rule: [f"w{i % 4}" for i in range(n)] for rule in RULES})
        assert found.low < found.estimate < found.high
        width[n] = found.high - found.low
    assert width[400] == pytest.approx(width[4], rel=0.15)


def test_random_deletions_that_harm_all_rules_alike_have_none():
    assert random_selectivity(np.full((20, 3), 0.3)) == pytest.approx((0, 0, 0))
    rng = np.random.default_rng(1)
    mean, low, high = random_selectivity(rng.random((20, 3)))
    assert low < 0 < high and abs(mean) < 0.1
