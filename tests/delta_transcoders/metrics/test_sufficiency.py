import pytest

from delta_transcoders.metrics.removal import removal_rows
from delta_transcoders.metrics.sufficiency import sufficiency_cells


def records(*verdicts, kl=0.0):
    """Of one measure that has a verdict for each, or none."""
    return [{"measures": {"right": v}, "kl": kl, "nll": 1.0, "n_tokens": 2} for v in verdicts]


def test_shares_and_changes_are_drawn_by_wording():
    ours, theirs = records(True, True, False, False, None), records(True, True, True, True, None)
    alike = sufficiency_cells(ours, theirs, ["a", "b", "a", "b", "c"], "right", None, 0.05)
    assert alike == {
        "share_of_finetuned": 0.5,
        "share_of_finetuned_ci_low": 0.5,  # each wording has one of two
        "share_of_finetuned_ci_high": 0.5,
    }
    apart = sufficiency_cells(ours, theirs, ["a", "a", "b", "b", "c"], "right", None, 0.05)
    assert (apart["share_of_finetuned_ci_low"], apart["share_of_finetuned_ci_high"]) == (0, 1)


@pytest.mark.parametrize(("lost", "intact"), [(0, True), (1, True), (6, False)])
def test_a_side_subset_is_intact_by_the_end_of_its_interval(lost, intact):
    theirs = records(*[True] * 100)
    ours = records(*[i >= lost for i in range(100)])
    cells = sufficiency_cells(ours, theirs, range(100), None, "right", 0.05)
    assert cells["side_change"] == pytest.approx(-lost / 100)
    assert cells["intact"] is intact
    assert cells["intact"] == (cells["side_change_ci_low"] >= -0.05)


def test_no_correct_answers_have_no_share():
    cells = sufficiency_cells(records(True), records(False), ["a"], "right", None, 0.05)
    assert cells["share_of_finetuned"] != cells["share_of_finetuned"]


def test_a_removal_beside_its_controls():
    raw = records(True, True, True, True)
    removed = records(False, False, False, True, kl=3.0)
    draws = [records(True, True, False, True, kl=1.0), records(False, False, False, False, kl=4.0)]
    rows = {
        row["measure"]: row
        for row in removal_rows(raw, removed, {"random": draws}, ["a", "a", "b", "b"])
    }
    assert list(rows) == ["mean_kl", "mean_ce", "right_rate"]
    rate = rows["right_rate"]
    assert (rate["raw"], rate["removed"], rate["n_random"]) == (1, 0.25, 2)
    assert (rate["random_mean"], rate["random_min"], rate["random_max"]) == (0.375, 0, 0.75)
    assert rate["random_as_far"] == 1  # the draw that leaves nothing
    assert rate["beyond_random"] == pytest.approx(0.125)
    assert (rate["beyond_random_ci_low"], rate["beyond_random_ci_high"]) == (-0.25, 0.5)
    assert rows["mean_kl"]["removed"] == 1.5
    assert rows["mean_kl"]["beyond_random"] == pytest.approx(1.25 - 1.5)
    assert "right_rate" not in {
        row["measure"] for row in removal_rows(records(None), records(None), {}, ["a"])
    }
