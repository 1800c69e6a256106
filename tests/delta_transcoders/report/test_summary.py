"""What a study's summary says of results that are bare."""

import json

import pytest

from delta_transcoders.files import write_json
from delta_transcoders.report.ranking import write_ranking
from delta_transcoders.report.summary import (
    fvu_table,
    has_spillover,
    intervention_table,
    measured_on,
    of_whole_model,
    put_back,
    ranking_table,
    reconstruction_table,
    split_table,
    times_line,
)
from delta_transcoders.report.tables import write_metrics, write_table
from tests.report_studies import page_of


def test_deltas_without_measurements_have_a_line_each(tmp_path):
    """An imported delta's config.json holds no measurements."""
    measured = {"fvu_base": 0.5, "fvu_full": 0.125, "l0_delta": 7.0}
    for layer, found in (("2", {}), ("10", measured)):
        folder = tmp_path / "delta" / f"layer_{layer}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"layer": int(layer), "measured": found}))
    header, bare, full = reconstruction_table(tmp_path).splitlines()
    assert header.split() == ["layer", *measured, "fvu_base/fvu_full"]
    assert bare.split() == ["2"] and full.split() == ["10", "0.500", "0.125", "7.00", "4.00"]


def test_dictionaries_stand_beside_neurons(tmp_path):
    fvus = {"no_delta": 0.25, "full": 0.125, "top_8_neurons": 0.5}
    rows = [{"condition": "raw", "layer": "", "subset": "a", "fvu": float("nan")}]
    rows += [{"condition": c, "layer": "0", "subset": "a", "fvu": fvu} for c, fvu in fvus.items()]
    write_metrics(tmp_path / "exp1", rows)
    header, line = fvu_table(tmp_path).splitlines()
    assert header.split() == ["layer", "subset", *fvus]
    assert line.split() == ["0", "a", "0.250", "0.125", "0.500"]
    assert fvu_table(tmp_path / "nowhere") == ""


@pytest.fixture
def own_study(tmp_path):
    """Tables of a study without dictionaries, of two layers of four."""
    row = {
        "subset": "a",
        "n_examples": 3,
        "n_tokens": 9,
        "mean_ce": 0.25,
        "mean_kl": 0.5,
        "dce": 0.1,
    }
    row |= {"dce_ci_low": 0.0, "dce_ci_high": 0.2, "polite_rate": 1.0}
    write_metrics(tmp_path / "behaviour", [row | {"condition": "raw"}])
    labels = ["", "0", "2", "0+2"]
    rows = [row | {"layer": label, "condition": "full" if label else "raw"} for label in labels]
    write_metrics(tmp_path / "exp2a", rows)
    write_table(tmp_path / "exp2a" / "comparisons" / "split.csv", ["layer", "subset"], [])
    write_table(tmp_path / "examples" / "splits.csv", ["split"], [{"split": "train"}])
    folder = tmp_path / "delta" / "layer_0"
    folder.mkdir(parents=True)
    config = {"layer": 0, "measured": {}, "target": "mlp_difference"}
    (folder / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_most_layers_at_once_stand_for_the_model(own_study):
    assert of_whole_model(own_study, "exp2a") == ("", "0+2")
    shown = intervention_table(own_study, "exp2a", ("", "0+2")).splitlines()
    assert [line.split()[-2:] for line in shown[1:]] == [["~0", "1.00"], ["~0", "1.00"]]
    assert shown[2].startswith("0+2")
    assert of_whole_model(own_study, "exp1") is None


def test_a_study_without_dictionaries_or_text_says_so(own_study):
    assert split_table(own_study) == ""
    assert put_back(own_study).startswith("no_delta: the base model's MLPs put back")
    page = page_of(own_study)
    assert "Spillover: not measured" in page and "What deltas were trained on" in page
    assert "split into finetuning" not in page
    assert "What the deltas leave of finetuning" in page.replace("&#39;", "'")
    assert "Controls of Experiment 2A" not in page and "Feature ranking" not in page
    (own_study / "examples" / "splits.csv").unlink()
    assert "Spillover" not in page_of(own_study)


def test_spillover_that_is_asked_for_no_longer_is_not_shown(own_study):
    (own_study / "spillover").mkdir()
    for text, is_shown in (("general.txt", True), (None, False)):
        write_json(own_study / "configs" / "models.json", {"text": text})
        assert has_spillover(own_study) == is_shown
        assert ("Spillover: not measured" in page_of(own_study)) != is_shown


def test_intervals_say_what_they_are_over(own_study):
    row = {"split": "evaluation", "subset": "tool", "n_examples": 30, "n_wordings": 4}
    write_table(own_study / "examples" / "splits.csv", list(row), [row | {"split": "train"}, row])
    assert measured_on(own_study).endswith("examples: tool 30 examples of 4 wordings")
    config = {"layer": 0, "measured": {}, "target": "residual"}
    (own_study / "delta" / "layer_0" / "config.json").write_text(json.dumps(config))
    assert "may also repair the dictionaries' own error" in put_back(own_study)


def test_controls_and_rankings_are_shown_where_they_are(own_study):
    row = {"layer": "0+2", "condition": "random", "subset": "a", "n_examples": 3, "n_tokens": 9}
    write_metrics(own_study / "controls", [row | {"mean_ce": 0.75, "polite_rate": 0.0}])
    measure = {"ce": 0.5, "ce_ci_low": 0.25, "ce_ci_high": 0.75, "ce_distinct": True}
    row = {"layer": 0, "ablation": "drop", "subset": "a", "n_examples": 3, "density": 0.5}
    row |= {"mean_activation": 1.0} | measure
    rows = [row | {"feature": 10 - rank, "rank": rank} for rank in (1, 2, 3, 4)]
    write_ranking(own_study / "ranking", rows, [], "delta")
    shown = ranking_table(own_study).splitlines()
    assert [line.split()[3:5] for line in shown] == [
        ["rank", "feature"],
        ["1", "9"],
        ["2", "8"],
        ["3", "7"],
    ]
    page = page_of(own_study)
    assert "Controls of Experiment 2A" in page and "random" in page
    assert "Feature ranking: the first 3 of each list" in page


def test_times_are_those_of_the_study_s_record(tmp_path):
    assert times_line(tmp_path) == ""
    runs = {
        "a": {"done": {"seconds": 60.4}},
        "b": {"started": {}},
        "c": {"done": {"seconds": 30.0}},
    }
    write_json(tmp_path / "study.json", {"stages": runs})
    assert times_line(tmp_path) == "time: a 60 s, c 30 s; together 1.5 min"
