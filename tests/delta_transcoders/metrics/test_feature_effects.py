"""Effects, rank correlations and matches against answers worked out otherwise."""

import itertools

import numpy as np
import pytest

from delta_transcoders.metrics.feature_effects import effect, match_rows, spearman, split_half


def record(call_logprob, nll, **verdicts):
    return {"call_logprob": call_logprob, "nll": nll, "n_tokens": 4, **verdicts}


def test_an_effect_is_ablated_minus_reference_and_distinct_without_0_in_its_interval():
    reference = [record(-1.0, 2.0 + i) for i in range(10)]
    ablated = [record(-3.0, 2.0 + i + (-1) ** i) for i in range(10)]
    cells = effect(ablated, reference)
    assert [cells[f"d_call_logprob{end}"] for end in ("", "_ci_low", "_ci_high")] == [-2, -2, -2]
    assert cells["d_call_logprob_distinct"] is True
    assert cells["dce"] == pytest.approx(0)
    assert cells["dce_ci_low"] < 0 < cells["dce_ci_high"]
    assert cells["dce_distinct"] is False
    assert not [name for name in cells if "rate" in name]


def test_rates_change_over_the_examples_that_have_them():
    def verdicts(call, math):
        return record(
            0.0,
            1.0,
            text="",
            tool_call=call,
            valid_tool_format=call,
            math_correct=math,
            exact_copy=None,
        )

    reference = [verdicts(True, True), verdicts(True, None)] * 4
    ablated = [verdicts(False, False), verdicts(True, None)] * 4
    cells = effect(ablated, reference)
    assert (cells["d_tool_call_rate"], cells["d_math_correct_rate"]) == (-0.5, -1)
    assert np.isnan(cells["d_exact_copy_rate"])
    assert cells["d_exact_copy_rate_distinct"] is False


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
