"""Numbers of a table's row against answers worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from delta_transcoders.metrics.intervals import (
    newcombe_paired,
    paired_bootstrap_ratio,
    wilson,
    wilson_of,
)
from delta_transcoders.metrics.pooling import (
    behaviour_cells,
    effect_cells,
    intervention_cells,
    judged,
    measures_of,
    ratio,
)

OPENING = "call_logprob"
NUMBERS = itertools.count()


def record(nll, n_tokens=4, opening=0.0, wording=None, **verdicts):
    """Worded as no other, where no wording is given."""
    measures = {"measures": verdicts} if verdicts else {}
    wording = wording or f"wording {next(NUMBERS)}"
    return {"wording": wording, "nll": nll, "n_tokens": n_tokens, OPENING: opening, **measures}


def test_ratios_are_of_sums():
    assert ratio([(1, 1), (9, 3)]) == 2.5  # the mean of the ratios would be 2
    assert math.isnan(ratio([(1, 0)]))


def test_measures_are_named_in_the_judges_order_and_absent_where_nothing_was_judged():
    records = [record(1.0, valid=True, exact=None), record(1.0, valid=None, exact=False)]
    assert measures_of(records) == ["valid", "exact"]
    assert measures_of([record(1.0)]) == []
    assert judged(records, "valid") == [True]


def test_behaviour_by_hand():
    """Three records; `exact` applies to two of them, `never` to none."""
    records = [
        record(1.0, 1, called=True, exact=True, never=None),
        record(9.0, 3, called=False, exact=None, never=None),
        record(0.0, 0, called=True, exact=False, never=None),
    ]
    cells = behaviour_cells(records, measures_of(records))
    low, high = wilson(2, 3)
    assert (cells["n_examples"], cells["n_tokens"], cells["mean_ce"]) == (3, 4, 2.5)
    assert cells["called_rate"] == 2 / 3
    assert (cells["called_rate_ci_low"], cells["called_rate_ci_high"]) == (low, high)
    assert (cells["called_n"], cells["exact_n"], cells["never_n"]) == (3, 2, 0)
    assert cells["exact_rate"] == 0.5
    assert all(math.isnan(cells[f"never_rate{end}"]) for end in ("", "_ci_low", "_ci_high"))


def test_without_targets_and_texts_there_is_no_cross_entropy_and_no_rate():
    cells = behaviour_cells([record(0.0, 0)] * 2, [])
    assert (cells.pop("n_examples"), cells.pop("n_tokens")) == (2, 0)
    assert list(cells) == ["mean_ce"]
    assert math.isnan(cells["mean_ce"])


def intervened(nll, n_tokens, kl, opening, active, n_replaced):
    activity = {"kl": kl, "active": active, "n_replaced": n_replaced}
    return record(nll, n_tokens, opening) | activity


def test_interventions_by_hand():
    raw = [intervened(1.0, 1, 0.0, -1.0, {}, 0), intervened(3.0, 3, 0.0, None, {}, 0)]
    ours = [
        intervened(2.0, 1, 0.5, -2.0, {"base": (8.0, 6), "delta": (3.0, 2)}, 2),
        intervened(8.0, 3, 1.5, None, {"base": (4.0, 6)}, 4),
    ]
    cells = intervention_cells(ours, raw, OPENING)
    assert cells["mean_kl"] == 0.5
    assert cells[OPENING] == -2.0  # the second has no target that opens
    assert (cells["mean_abs_base_acts"], cells["l0_base"]) == (2.0, 2.0)
    assert (cells["mean_abs_delta_acts"], cells["l0_delta"]) == (1.5, 1.0)
    expected = paired_bootstrap_ratio([2, 8], [1, 3], [1, 3], [1, 3])
    assert expected[0] == 10 / 4 - 4 / 4
    assert tuple(cells[f"dce{end}"] for end in ("", "_ci_low", "_ci_high")) == expected


def test_what_was_not_measured_is_nan_and_an_absent_opening_no_column():
    raw = [intervened(1.0, 1, 0.0, None, {}, 0)]
    cells = intervention_cells(raw, raw, None)
    assert OPENING not in cells
    assert (cells["mean_kl"], cells["dce"]) == (0, 0)
    for name in ("mean_abs_base_acts", "l0_base", "l0_delta"):
        assert math.isnan(cells[name])


def test_an_effect_is_ablated_minus_reference_and_distinct_without_0_in_its_interval():
    reference = [record(2.0 + i, opening=-1.0) for i in range(10)]
    ablated = [record(2.0 + i + (-1) ** i, opening=-3.0) for i in range(10)]
    cells = effect_cells(ablated, reference, [], OPENING)
    assert [cells[f"d_call_logprob{end}"] for end in ("", "_ci_low", "_ci_high")] == [-2, -2, -2]
    assert cells["d_call_logprob_distinct"] is True
    assert cells["dce"] == pytest.approx(0)
    assert cells["dce_ci_low"] < 0 < cells["dce_ci_high"]
    assert cells["dce_distinct"] is False
    assert not [name for name in cells if "rate" in name]
    assert set(effect_cells(ablated, reference, [], None)) == {n for n in cells if "call" not in n}


def test_rates_change_over_the_examples_that_have_them():
    def verdicts(call, math):
        return record(1.0, tool_call=call, math_correct=math, exact_copy=None)

    reference = [verdicts(True, True), verdicts(True, None)] * 4
    ablated = [verdicts(False, False), verdicts(True, None)] * 4
    cells = effect_cells(ablated, reference, measures_of(reference), OPENING)
    assert (cells["d_tool_call_rate"], cells["d_math_correct_rate"]) == (-0.5, -1)
    assert np.isnan(cells["d_exact_copy_rate"])
    assert cells["d_exact_copy_rate_distinct"] is False


def test_a_rate_that_changes_nowhere_has_newcombes_interval():
    records = [record(1.0, right=True, wording=w) for w in "aabbccdd"]
    cells = effect_cells(records, records, ["right"], None)
    ends = cells["d_right_rate_ci_low"], cells["d_right_rate_ci_high"]
    assert cells["d_right_rate"] == 0 and cells["d_right_rate_distinct"] is False
    assert ends == newcombe_paired(4, 0, 0, 0)  # a wording counts as one example
    assert ends[0] == -ends[1] < -0.4
    other = [record(1.0, right=i > 0, wording=w) for i, w in enumerate("aabbccdd")]
    cells = effect_cells(other, records, ["right"], None)
    assert cells["d_right_rate_ci_high"] == 0  # a bootstrap's


def test_a_measure_counts_where_it_applies_on_both_sides():
    reference = [record(1.0, right=True), record(1.0, right=None), record(1.0, right=True)]
    ablated = [record(1.0, right=None), record(1.0, right=True), record(1.0, right=False)]
    assert effect_cells(ablated, reference, ["right"], None)["d_right_rate"] == -1


def test_examples_of_one_wording_do_not_count_as_so_many():
    def records(wordings, verdicts):
        pairs = zip(wordings, verdicts, strict=True)
        return [record(1.0 + right, 1, wording=wording, right=right) for wording, right in pairs]

    verdicts = [True] * 5 + [False] * 5
    cells = behaviour_cells(records("aaaaabbbbb", verdicts), ["right"])
    ends = (cells["right_rate_ci_low"], cells["right_rate_ci_high"])
    assert ends == wilson_of(verdicts, "aaaaabbbbb") and ends == pytest.approx(wilson(1, 2))
    ours, reference = (records("aaaaabbbbb", v) for v in (verdicts, [False] * 10))
    effect = effect_cells(ours, reference, ["right"], None)
    assert (
        effect["d_right_rate"],
        effect["d_right_rate_ci_low"],
        effect["d_right_rate_ci_high"],
    ) == (0.5, 0, 1)
