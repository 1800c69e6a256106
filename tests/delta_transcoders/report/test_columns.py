"""Another task's measures: written, compared, ranked and drawn without a word of code about them."""

import json

import pytest

from delta_transcoders.report.columns import FIRST, LAST, metrics_columns
from delta_transcoders.report.comparisons import difference_rows, write_comparisons
from delta_transcoders.report.figures import effects_by_rank, experiment_figures
from delta_transcoders.report.ranking import halves, read_effects, top_table, write_ranking
from delta_transcoders.report.records import read_experiments
from delta_transcoders.report.summary import behaviour_table, intervention_table
from delta_transcoders.report.tables import read_metrics, write_generations, write_metrics
from tests.report_studies import page_of

N = 4
LABELS = {"alpha": None, "d_new": 8, "percentile": None, "target": "residual"}
COLUMNS = {
    "raw": dict.fromkeys(LABELS) | {"layer": ""},
    **dict.fromkeys(("no_delta", "base_mlp", "dictionary_error"), LABELS | {"layer": "all"}),
}
REFUSES = {"raw": 4, "no_delta": 1, "base_mlp": 1, "dictionary_error": 4}


def row(condition, subset="harmful"):
    rate = REFUSES[condition] / N
    interval = {"refuses_rate_ci_low": rate / 2, "refuses_rate_ci_high": rate, "refuses_n": N}
    own = {"refuses_rate": rate, **interval, "polite_rate": float("nan"), "polite_n": 0}
    shared = {"subset": subset, "condition": condition, "n_examples": N, "mean_ce": 0.5}
    return COLUMNS[condition] | shared | {"dce": 0.0, "mean_kl": 0.1, "no_logprob": -1.0} | own


@pytest.fixture
def study(tmp_path):
    rows = [row(condition) for condition in COLUMNS]
    records = [
        COLUMNS[condition]
        | {
            "condition": condition,
            "subset": "harmful",
            "example": i,
            "wording": str(i),
            "prompt": f"{i}",
            "target": "No",
        }
        | {"nll": 1.0, "kl": 0.1, "n_tokens": 2, "no_logprob": -1.0 - i}
        | {"refuses": i < REFUSES[condition], "polite": None}
        for condition in COLUMNS
        for i in range(N)
    ]
    write_metrics(tmp_path / "exp2a", rows)
    write_generations(tmp_path / "exp2a", records)
    write_metrics(tmp_path / "behaviour", [row("raw")])
    return tmp_path


def test_the_header_holds_the_measures_between_the_librarys_columns(study):
    rows = read_metrics(study / "exp2a" / "metrics.csv")
    of_rates = ("refuses_rate", "polite_rate")
    ends = ("refuses_rate_ci_low", "refuses_rate_ci_high", "refuses_n", "polite_n")
    assert tuple(rows[0]) == (*FIRST, *of_rates, *ends, "no_logprob", *LAST)
    assert rows[1]["refuses_rate"] == "0.25" and rows[1]["polite_rate"] == "nan"


def test_a_column_of_nobody_is_refused():
    assert metrics_columns(["mean_ce"]) == [*FIRST, *LAST]
    with pytest.raises(ValueError, match=r"unknown columns \['rate', 'refuses_n'\]"):
        metrics_columns(["rate", "refuses_n"])


def test_conditions_are_compared_in_the_tasks_measures(study):
    (experiment,) = read_experiments([study / "exp2a"])
    assert experiment.measures == (
        "mean_ce",
        "mean_kl",
        "no_logprob",
        "refuses_rate",
        "polite_rate",
    )
    rows = difference_rows([experiment])
    assert {r["measure"] for r in rows} == set(experiment.measures) - {"polite_rate"}
    (lost,) = (
        r["estimate"]
        for r in rows
        if (r["condition"], r["reference"], r["measure"]) == ("no_delta", "raw", "refuses_rate")
    )
    assert lost == -0.75


def test_reports_show_the_tasks_measures(study):
    assert "refuses_rate, layer all" in write_comparisons(
        [study / "exp2a"], study / "exp2a" / "comparisons"
    )
    assert "1.00 [0.500, 1.00]" in behaviour_table(study)
    table = intervention_table(study, "exp2a")
    assert "no_logprob" in table and "0.250 [0.125, 0.250]" in table
    assert "polite_rate" not in table  # it applies to no row
    page = page_of(study)
    assert "0.250 [0.125, 0.250]" in page and "harmful: cross-entropy</text>" in page
    figures = experiment_figures([row(condition) for condition in COLUMNS])
    titles = [axes.get_title(loc="left") for axes in figures["rates_per_layer"].axes]
    assert titles == ["refuses on harmful, %, by layers replaced"]


def test_folders_with_other_measures_are_not_compared(study, tmp_path):
    other = tmp_path / "other" / "exp2a"
    text = (study / "exp2a" / "generations.jsonl").read_text().replace("polite", "kind")
    write_metrics(
        other,
        [
            {key.replace("polite", "kind"): value for key, value in row(condition).items()}
            for condition in COLUMNS
        ],
    )
    (other / "generations.jsonl").write_text(text)
    with pytest.raises(ValueError, match="different measures: only the former has kind_rate"):
        read_experiments([study / "exp2a", other])


@pytest.mark.parametrize("ranked_by", ["d_no_logprob", "dce"])
def test_features_are_ranked_by_the_first_measure(tmp_path, ranked_by):
    effects, rows = [], []
    for feature, size in enumerate((0.5, -2.0, 0.25)):
        place = {"layer": 0, "feature": feature, "ablation": "dropped", "subset": "harmful"}
        cells = {
            "rank": (2, 1, 3)[feature],
            "n_examples": N,
            "mean_activation": 1.0,
            "density": 0.5,
        }
        for measure, value in {ranked_by: size, "d_refuses_rate": size / 4}.items():
            cells |= {measure: value, f"{measure}_ci_low": value - 0.3}
            cells |= {f"{measure}_ci_high": value + 0.3, f"{measure}_distinct": abs(value) > 0.3}
        rows.append(place | cells)
        effects.append(place | {ranked_by: [size] * N})
    write_ranking(tmp_path, rows, effects, "delta")
    assert list(read_metrics(tmp_path / "ranking.csv")[0])[6:9] == [
        ranked_by,
        f"{ranked_by}_ci_low",
        f"{ranked_by}_ci_high",
    ]
    info = json.loads((tmp_path / "ranking.json").read_text())
    assert info == {"format_version": 1, "delta": "delta"}
    (effects_FE,) = read_effects(tmp_path).values()
    assert effects_FE.tolist() == [[0.5] * N, [-2.0] * N, [0.25] * N]
    (stability,) = halves(tmp_path)
    assert stability["n_distinct"] == 2 and stability["spearman"] == 1
    first, second = top_table(tmp_path, 2).splitlines()[1:]
    assert "-2.000 [-2.300, -1.700]" in first and "0.1250 [-0.1750, 0.4250] ~0" in second
    assert len(effects_by_rank(rows).axes) == 1
