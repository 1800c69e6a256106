"""The answer in words: by rule, for any task, and on one screen."""

import math
import shlex
import subprocess
import sys

import pytest

from delta_transcoders.files import write_json
from delta_transcoders.report import answer as command
from delta_transcoders.report.answer import N_COLUMNS, N_LINES, screen, sentences
from delta_transcoders.report.missing import not_a_number, not_shown
from delta_transcoders.report.sentences import attention, layers
from delta_transcoders.report.study_results import StudyResults
from delta_transcoders.report.tables import write_metrics
from delta_transcoders.report.verdict import answer
from tests.report_studies import row, write_study

YES = {"base_model": 0.0, "raw": 1.0, "no_delta": 0.1, "full": 0.99}


def said(tmp_path, rates, **more):
    return answer(StudyResults(write_study(tmp_path, {"asked": rates}, **more)))


@pytest.mark.parametrize(
    ("rates", "verdict", "words"),
    [
        (
            YES,
            "Yes",
            "polite on 10 % of the asked prompts with every MLP replaced by its base dictionary, on 99 % "
            "with the delta added.",
        ),
        (YES | {"no_delta": 0.7}, "Partly", "Most of it was never lost."),
        (YES | {"full": 0.6}, "Partly", "on 60 % with the delta added"),
        (YES | {"full": 0.12}, "No", "on 12 % with the delta added"),
        (YES | {"full": 0.0}, "No", "on 0 % with the delta added"),
        (
            YES | {"no_delta": 0.99},
            "No",
            "polite on 99 % of the asked prompts with every MLP replaced",
        ),
        (YES | {"base_model": 0.99}, "No", "on 99 % with the base model."),
        # A behaviour that finetuning took away.
        (
            {"base_model": 1.0, "raw": 0.0, "no_delta": 0.9, "full": 0.01},
            "Yes",
            "polite on 90 % of the asked prompts",
        ),
        # Without the base model nobody knows how much was lost.
        (
            {"raw": 1.0, "no_delta": 0.7, "full": 1.0},
            "Yes",
            "on 100 % with the delta added, on 100 % with the finetuned model.",
        ),
        (
            {"base_model": 0.0, "raw": 1.0},
            "Not known",
            "base dictionary alone, base dictionary + delta",
        ),
        (YES | {"full": math.nan}, "Not known", "not measured on asked: base dictionary + delta"),
    ],
)
def test_the_rule(tmp_path, rates, verdict, words):
    found = said(tmp_path, rates)
    assert found.verdict == verdict
    assert words in found.sentence


def test_what_does_not_come_back_elsewhere_makes_it_partly(tmp_path):
    other = {"base_model": 0.0, "raw": 0.6, "no_delta": 0.0, "full": 0.3}
    found = answer(StudyResults(write_study(tmp_path, {"asked": YES, "other": other})))
    assert found.verdict == "Partly"
    assert "But polite on 30 % of the other prompts (finetuned model 60 %)." in found.sentence


def test_the_subset_is_the_one_that_finetuning_changed_most(tmp_path):
    quiet = {"base_model": 0.0, "raw": 0.02, "no_delta": 0.0, "full": 0.02}
    results = StudyResults(write_study(tmp_path, {"other": quiet, "asked": YES}))
    assert (results.subset, results.subsets, results.layer) == ("asked", ["asked", "other"], "all")
    assert results.level("full", "other").value == 0.02


def test_deltas_of_the_mlps_change_stand_beside_base_mlps(tmp_path):
    found = said(tmp_path, YES, target="mlp_difference")
    assert (
        "polite on 10 % of the asked prompts with the base model's own MLPs put back"
        in found.sentence
    )
    results = StudyResults(tmp_path)
    assert attention(results).heading == "not all of it is in the MLPs"
    assert "base MLPs + delta" in screen(results) and "dictionary" not in screen(results)


def test_single_layers_alone_are_answered_by_the_one_that_loses_most(tmp_path):
    study = write_study(tmp_path, {"asked": {"base_model": 0.0, "raw": 1.0}})
    rows = [row("raw", "asked", 1.0)]
    rows += [
        row("no_delta", "asked", rate, layer=layer) for layer, rate in (("3", 0.9), ("5", 0.2))
    ]
    rows += [row("full", "asked", 1.0, layer=layer) for layer in ("3", "5")]
    write_metrics(study / "exp2a", rows)
    found = answer(StudyResults(study))
    assert found.verdict == "Yes"
    assert "with the MLP of layer 5 replaced by dictionaries" in found.sentence
    assert layers(StudyResults(study)).heading == "layer by layer"


def test_some_layers_are_named(tmp_path):
    study = write_study(tmp_path, {"asked": {"base_model": 0.0, "raw": 1.0}})
    label = "+".join(map(str, range(12)))
    conditions = (("no_delta", 0.1), ("full", 1.0))
    rows = [row(name, "asked", rate, layer=label) for name, rate in conditions]
    write_metrics(study / "exp2a", [row("raw", "asked", 1.0), *rows])
    assert "with the MLPs of layers 0–11 replaced" in answer(StudyResults(study)).sentence


def test_a_measure_can_be_chosen(tmp_path):
    rates = {"asked": {"raw": 1.0, "no_delta": 0.1, "full": 1.0}}
    study = write_study(tmp_path, rates)
    both = [
        row("raw", "asked", 1.0) | row("raw", "asked", 0.5, measure="right"),
        row("no_delta", "asked", 0.1) | row("no_delta", "asked", 0.0, measure="right"),
        row("full", "asked", 1.0) | row("full", "asked", 0.0, measure="right"),
    ]
    write_metrics(study / "exp2a", both)
    assert answer(StudyResults(study)).verdict == "Partly"  # right answers do not come back
    assert answer(StudyResults(study, "right")).verdict == "No"
    with pytest.raises(ValueError, match="has no measure 'rigth'; it has polite, right"):
        StudyResults(study, "rigth")
    (line,) = (line for line in screen(StudyResults(study)).splitlines() if "right," in line)
    assert line.split("right,")[1].split() == ["delta", "(raw)", "0", "(50)"]


def test_missing_stages_are_named_and_crash_nothing(tmp_path):
    study = write_study(tmp_path, {"asked": {"base_model": 0.0, "raw": 1.0}})
    results = StudyResults(study)
    assert answer(results).verdict == "Not known" and sentences(results) == {}
    assert "behaviour with MLPs replaced (exp2a)" in not_shown(results)
    assert "not shown: behaviour with MLPs replaced (exp2a)," in screen(results)
    (study / "behaviour" / "metrics.csv").unlink()
    results = StudyResults(study)
    assert (results.measure, results.subset, results.layer) == (None, "", "")
    assert answer(results).sentence.startswith("no answers were generated")


def test_what_is_no_number_is_named(tmp_path):
    study = write_study(tmp_path, {"asked": YES})
    rows = [row("raw", "asked", 1.0), row("no_delta", "asked", 0.1) | {"mean_ce": math.nan}]
    rows += [row("full", "asked", math.nan) | {"polite_n": 3}]
    write_metrics(study / "exp2a", rows)
    results = StudyResults(study)
    assert not_a_number(results) == [
        "exp2a/metrics.csv: cross-entropy of 1 rows is no number",
        "exp2a/metrics.csv: polite_rate of 1 rows is no number",
    ]
    found = answer(results)
    assert (found.verdict, found.headline) == ("Not known", "a rate on asked is no number")
    assert found.sentence.startswith(
        "polite_rate is no number in exp2a/metrics.csv: base dictionary + "
    )
    lines = screen(results).splitlines()
    (line,) = (line for line in lines if line.startswith("  base dictionary + delta"))
    assert line.split("delta")[1].split() == ["no", "number"]
    assert "exp2a/metrics.csv: polite_rate of 1 rows is no number" in " ".join(lines)


def long_names(tmp_path):
    subsets = [f"a_subset_with_a_name_that_is_long_{i}" for i in range(7)]
    study = write_study(
        tmp_path / ("long/" * 20), dict.fromkeys(subsets, YES), layers=tuple(map(str, range(26)))
    )
    task = {"prompt": "word " * 100}
    write_json(study / "finetune" / "data" / "task.json", task)
    return study


@pytest.mark.parametrize(
    "make",
    [
        lambda path: write_study(path, {"asked": YES}),
        lambda path: write_study(
            path, {"asked": YES}, dose={0: 0.1, 0.5: 0.5, 1: 1.0}, layers="01"
        ),
        lambda path: write_study(path, {"asked": YES}, target="mlp_difference"),
        lambda path: write_study(path, {"asked": {"raw": 1.0}}),
        long_names,
    ],
)
def test_it_is_one_screen(tmp_path, make):
    lines = screen(StudyResults(make(tmp_path))).splitlines()
    assert len(lines) <= N_LINES
    # A path that is longer than a line stays whole, alone or after its line's name.
    assert all(
        len(line.removesuffix(" \\")) <= N_COLUMNS or len(line.split()) <= 3 for line in lines
    )
    assert any(word in "\n".join(lines) for word in ("Yes:", "Partly:", "No:", "Not known:"))


def test_commands_are_folded_and_never_cut(tmp_path):
    study = long_names(tmp_path / "with space")
    text = screen(StudyResults(study)).replace("\\\n", " ")
    found = {line.split()[0]: shlex.split(line) for line in text.splitlines()[-3:] if line.strip()}
    assert found["numbers"][-2:] == ["summary", str(study)]
    assert found["curves"][-2:] == ["--logdir", str(study)]


def test_the_matrix_says_what_was_not_measured(tmp_path):
    rates = {"asked": YES, "other": {"base_model": 0.0, "raw": 0.5}, "more": {"raw": math.nan}}
    lines = screen(StudyResults(write_study(tmp_path, rates))).splitlines()
    (line,) = (line for line in lines if line.startswith("  base dictionary + delta"))
    assert line.split("delta")[1].split() == ["99", "[95,", "100]", *["not", "measured"] * 2]
    (line,) = (line for line in lines if line.startswith("  finetuned model"))
    assert line.split() == ["finetuned", "model", "100", "[96,", "100]", "50", "[40,", "60]", "–"]
    assert ", the delta on other, more" in " ".join(" ".join(lines).split())


def test_the_command(tmp_path, capsys, monkeypatch):
    study = write_study(tmp_path / "study", {"asked": YES})
    monkeypatch.setattr(sys, "argv", ["answer", str(study)])
    command.main()
    assert "2 × 8 delta features hold it?  Polite went from 0 to 100 %" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["answer", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no results yet; its study file"):
        command.main()


def test_help_needs_no_torch():
    code = (
        "import runpy, sys\nsys.argv = ['answer', '--help']\n"
        "try: runpy.run_module('delta_transcoders.report.answer', run_name='__main__')\n"
        "except SystemExit: pass\nassert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
