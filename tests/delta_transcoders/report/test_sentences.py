"""Each sentence of an answer: what it is by rule, and what is left out where a study is damaged."""

import math

import pytest

from delta_transcoders.files import write_json
from delta_transcoders.metrics.intervals import paired_rates
from delta_transcoders.report.answer import feature_sentence, screen
from delta_transcoders.report.one_feature import one_feature
from delta_transcoders.report.sentences import control, curve, dose, layers, side, split
from delta_transcoders.report.study_results import StudyResults
from delta_transcoders.report.tables import write_metrics, write_table
from delta_transcoders.report.verdict import answer, change
from delta_transcoders.tasks.wordings import half_of
from tests.report_studies import DICTIONARIES, WORDINGS, row, write_effects, write_study

YES = {"base_model": 0.0, "raw": 1.0, "no_delta": 0.1, "full": 0.99}


@pytest.mark.parametrize(
    ("half", "heading"),
    [
        (0.98, "half a delta is enough"),
        (0.8, "half a delta does most of it"),
        (0.2, "half a delta is not enough"),
    ],
)
def test_half_a_delta(tmp_path, half, heading):
    study = write_study(tmp_path, {"asked": YES}, dose={-0.5: 0.0, 0: 0.1, 0.5: half, 1: 0.99})
    sentence = dose(StudyResults(study))
    assert sentence.heading == heading
    assert sentence.text == f"polite at α 0, 0.5, 1: 10, {100 * half:g}, 99 %"


def test_layers_are_said_to_hold_it_together_or_alone(tmp_path):
    study = write_study(tmp_path, {"asked": YES}, layers=("0", "1"))
    sentence = layers(StudyResults(study))
    assert sentence.heading == "no layer holds it alone"
    assert sentence.text == "base dictionary at one layer, 0, 1: 100, 100 %; at all: 10 %"
    rows = [row(n, "asked", r, layer="1") for n, r in (("no_delta", 0.2), ("full", 1.0))]
    rows += [row(n, "asked", r, layer="0") for n, r in (("no_delta", 1.0), ("full", 1.0))]
    rows += [row("no_delta", "asked", 0.1), row("full", "asked", 1.0)]
    write_metrics(study / "exp2a", [row("raw", "asked", 1.0), *rows])
    assert layers(StudyResults(study)).heading == "layer 1 holds most of it"


@pytest.mark.parametrize(
    ("parts", "heading"),
    [
        ((0.4, 0.38, 0.02), "the loss is finetuning's"),
        ((0.4, 0.02, 0.38), "the loss is dictionary error"),
        ((0.4, 0.2, 0.2), "the loss has both causes"),
        ((0.01, 0.0, 0.01), "no loss without the delta"),
        ((math.nan, math.nan, math.nan), None),
    ],
)
def test_what_is_lost_is_split(tmp_path, parts, heading):
    study = write_study(tmp_path, {"asked": YES})
    labels = DICTIONARIES | {
        "layer": "all",
        "subset": "asked",
        "measure": "mean_ce",
        "seed": "pooled",
    }
    rows = [
        labels | {"part": part, "estimate": value, "ci_low": value - 0.1, "ci_high": value + 0.1}
        for part, value in zip(("total", "finetuning", "dictionary_error"), parts, strict=True)
    ]
    write_table(study / "exp2a" / "comparisons" / "split.csv", list(rows[0]), rows)
    sentence = split(StudyResults(study))
    assert (sentence and sentence.heading) == heading
    if heading == "the loss is finetuning's":
        text = "of 0.400 nats/token lost: 0.380 finetuning, 0.020 dictionary error"
        assert sentence.text == text


def told(study):
    results = StudyResults(study)
    return feature_sentence(results, one_feature(results))


def test_one_feature_is_chosen_on_one_half_and_told_by_the_other(tmp_path):
    study = write_study(tmp_path, {"asked": YES})
    n = sum(half_of(wording) == "B" for wording in WORDINGS)
    rates = {"": {"A": 1.0, "B": 1.0}, "L0F1": {"A": 0.0, "B": 0.0}, "L1F2": {"A": 1.0, "B": 0.5}}
    write_effects(study, rates, "asked", {"L1F2": -0.75})
    sentence = told(study)
    assert sentence.heading == "one feature to look at"
    what = f"polite on {round(n / 2)} of {n} asked prompts, with it on {n}"
    assert sentence.text == f"L1F2: without it {what}"
    rates = {name: {"B": 0.5} for name in rates}  # as where half B alone is answered
    write_effects(study, rates, "asked", {"L0F1": 0.5})
    sentence = told(study)
    assert sentence.heading == "no feature decides alone"
    found = one_feature(StudyResults(study))
    (removal,) = found.removals
    verdicts = [i < round(n / 2) for i in range(n)]
    change = paired_rates(verdicts, verdicts, range(n))
    assert removal == ("L0F1", "asked", "polite_rate", n, round(n / 2), round(n / 2), *change)
    assert change[0] == 0 and change[1] == -change[2] < 0
    assert sentence.text == (
        "L0F1: without it ΔCE on asked is −0.5000 [−0.7500, −0.2500], no rate changes, nor without others of "
        f"the 2 strongest of 16 ({n} prompts of half B: changes up to {100 * change[2]:.0f} points go "
        "unseen)"
    )
    write_effects(study, {name: {"A": 0.5} for name in rates}, "asked")
    assert told(study) is None


def write_differences(study, *differences):
    """Of full and raw, by subset: the ends of the interval."""
    rows = [
        DICTIONARIES
        | {"layer": "all", "subset": subset, "condition": "full", "reference": "raw"}
        | {"measure": "polite_rate", "seed": seed, "n_examples": 30}
        | {"estimate": (low + high) / 2, "ci_low": low, "ci_high": high}
        for subset, low, high in differences
        for seed in ("pooled", "1")
    ]
    write_table(study / "exp2a" / "comparisons" / "differences.csv", list(rows[0]), rows)


def test_paired_differences_count_more_than_two_intervals(tmp_path):
    other = {"base_model": 0.0, "raw": 1.0, "no_delta": 0.0, "full": 0.98}
    study = write_study(tmp_path, {"asked": YES, "other": other})
    assert answer(StudyResults(study)).verdict == "Yes"
    write_differences(study, ("asked", -0.02, 0.0), ("other", -0.04, -0.01))
    results = StudyResults(study)
    assert results.agree("full", "raw", "asked") and not results.agree("full", "raw", "other")
    found = answer(results)
    assert found.verdict == "Partly" and "But polite on 98 % of the other prompts" in found.sentence
    write_differences(study, ("asked", -0.02, -0.01), ("other", -0.04, -0.01))
    assert "some of what" in answer(StudyResults(study)).headline
    # The intervals of the levels hold neither's estimate, but that of the difference holds 0.
    write_metrics(
        study / "exp2a",
        [row(n, "asked", r) for n, r in (("raw", 1.0), ("no_delta", 0.1), ("full", 0.8))],
    )
    write_differences(study, ("asked", -0.21, 0.01))
    found = answer(StudyResults(study))
    assert found.verdict == "Yes"
    assert found.sentence.endswith("But with 30 prompts differences of up to 21 points go unseen.")


def test_what_finetuning_changed_is_said_in_the_tasks_words(tmp_path):
    study = write_study(tmp_path, {"asked": YES})
    text = "polite went from 0 to 100 % of the asked prompts."
    assert change(StudyResults(study)) == text[0].upper() + text[1:]
    write_json(study / "finetune" / "data" / "task.json", {"title": "Is polite"})
    assert change(StudyResults(study)) == f"“Is polite”: {text}"
    write_metrics(study / "behaviour", [row("raw", "asked", 1.0)])
    assert change(StudyResults(study)) == "“Is polite”."


def test_of_several_controls_the_nearest_one_counts(tmp_path):
    study = write_study(tmp_path, {"asked": YES | {"shuffled_delta": 0.12}})
    controls = [row(n, "asked", r) for n, r in (("random_delta", 0.9), ("permuted_rows", 0.3))]
    write_metrics(study / "controls", controls)
    sentence = control(StudyResults(study))
    assert sentence.heading == "a control does it too"
    assert sentence.text == ("random delta, the nearest of 3: 90 %, without any delta 10 %")
    write_metrics(study / "controls", [row("random_delta", "asked", 0.11)])
    assert control(StudyResults(study)).heading == "no control does it"


def test_few_features_are_at_most_a_quarter(tmp_path):
    study = write_study(tmp_path, {"asked": YES})

    def write(folder, n90, cos):
        rows = [{"delta": "d", "student": "s", "n90": n90, "n_features": 128, "cos": cos}]
        write_table(study / folder / "n90.csv", list(rows[0]), rows)

    write("feature_curve", 128, 0.01)
    sentence = curve(StudyResults(study))
    assert sentence.heading == "it takes many features"
    assert sentence.text == (
        "128 of 128 for 90 % of right answers, cosine to finetuning's change there 0.010 (feature_curve)"
    )
    write("feature_curve_other", 32, 0.5)
    sentence = curve(StudyResults(study))
    assert sentence.heading == "few features are enough"
    assert sentence.text.startswith("32 of 128 ")
    assert sentence.text.endswith("(feature_curve_other, of 2 deltas the one with the largest)")


def test_what_the_delta_does_not_leave_as_it_was_is_told_first(tmp_path):
    study = write_study(tmp_path, {"asked": YES})
    conditions = ("raw", "no_delta", "full")
    rows = [
        row(name, "asked", YES[name])
        | row(name, "asked", math.nan, measure="kept")
        | row(name, "asked", math.nan, measure="short")
        for name in conditions
    ]
    rows += [
        row(name, "other", math.nan)
        | row(name, "other", 1.0, measure="kept")
        | row(name, "other", 0.5 if name == "full" else 1.0, measure="short")
        for name in conditions
    ]
    write_metrics(study / "exp2a", rows)
    assert [sentence.heading for sentence in side(StudyResults(study))] == [
        "elsewhere not as finetuned",
        "elsewhere as finetuned",
    ]


def test_damaged_parts_are_left_out_and_named(tmp_path):
    study = write_study(tmp_path, {"asked": YES})
    write_effects(study, {"": {"B": 1.0}, "L0F1": {"B": 0.5}}, "asked")
    write_json(study / "features" / "features.json", {"format_version": 99})
    results = StudyResults(study)
    text = " ".join(screen(results).split())
    assert "one feature to look at L0F1: " in text
    assert "damaged: " in text and "features.json: format_version is 99" in text
    path = study / "effects" / "generations.jsonl"
    path.write_text(path.read_text() + '{"condition": "fu')
    text = " ".join(screen(StudyResults(study)).split())
    assert "Yes: they bring back" in text and "L0F1" not in text
    assert "generations.jsonl, line" in text


def test_a_features_rows_and_answers_are_of_one_folder(tmp_path):
    study = write_study(tmp_path, {"asked": YES})
    write_effects(study, {"": {"B": 1.0}, "L0F1": {"B": 0.5}}, "asked")
    (study / "effects").rename(study / "ranking")
    write_effects(study, {"": {"B": 1.0}, "L1F2": {"B": 0.5}}, "asked")
    assert told(study).text.startswith("L1F2: ")
    (study / "effects" / "generations.jsonl").unlink()
    assert told(study).text.startswith("L0F1: ")
