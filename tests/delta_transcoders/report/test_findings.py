"""Claims and figures: read from tables, pooled over seeds, and refused where they disagree."""

import re
from pathlib import Path

import pytest

from delta_transcoders.metrics.intervals import wilson
from delta_transcoders.report.findings import (
    POOLED,
    Condition,
    Studies,
    Value,
    figure_names,
    main,
    read_conditions,
    read_figures,
    render,
    write_figures,
)
from delta_transcoders.report.tables import write_generations, write_metrics
from delta_transcoders.tasks.calculator.examples import make_example
from delta_transcoders.tasks.calculator.grammar import format_tool_call
from delta_transcoders.tasks.calculator.task import Calculator

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
REPORTED = [ROOT / "runs" / "seeds" / seed for seed in ("4", "5", "6")]
N = 10
CALL = "exp2a all tool full tool_call_rate"
GAIN = "exp2a all tool full:raw mean_ce"


def write_study(folder: Path, calls: int, ce: float, fvu: float) -> Path:
    """raw, which always calls at cross-entropy 1, and full with so many calls and that cross-entropy."""
    dictionaries = {"alpha": None, "d_new": 32, "percentile": 0.5, "target": "residual"}
    columns = [
        (dict.fromkeys(dictionaries) | {"layer": "", "condition": "raw"}, N, 1.0),
        (dictionaries | {"layer": "all", "condition": "full"}, calls, ce),
    ]
    rows, records = [], []
    for labels, n_calls, of_column in columns:
        rate = {"n_examples": N, "tool_call_rate": n_calls / N, "fvu": fvu}
        rate |= dict.fromkeys(("mean_kl", "call_logprob"))
        rows.append(labels | {"subset": "tool"} | rate)
        for i in range(N):
            example = make_example(f"Add {i}", format_tool_call(f"{i}+1"), "positive")
            text = example.target if i < n_calls else "no"
            record = {"example": i, "subset": "tool", "prompt": example.prompt}
            record |= {"target": example.target, "nll": 4 * of_column, "n_tokens": 4, "text": text}
            record |= {"kl": 0.0, "call_logprob": 0.0} | Calculator().judge(text, example)
            records.append({**labels, **record})
    write_metrics(folder / "exp2a", rows)
    write_generations(folder / "exp2a", records)
    return folder


@pytest.fixture
def studies(tmp_path):
    return Studies(
        [write_study(tmp_path / "1", 10, 1.5, 0.1), write_study(tmp_path / "2", 8, 2.0, 0.3)]
    )


PAGE = """\
# Findings

{% filter one_line %}
| It calls.
| {{ f("exp2a all tool full tool_call_rate") }} of raw's {{ f("exp2a - tool raw tool_call_rate") }}
| at {{ f("exp2a all tool", "full:raw", "mean_ce") }} nats |
{% endfilter %}

| full | {{ f("exp2a all tool full fvu") }} |
"""
CONDITIONS = f"""\
claim,figure,part,comparison,bound
1,{CALL},value,>=,0.8
1,{GAIN},low,>,0.7
1,exp2a - tool raw tool_call_rate,value,>=,{CALL}
"""


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "findings.md.j2").write_text(PAGE)
    (tmp_path / "findings_conditions.csv").write_text(CONDITIONS)
    return tmp_path


def test_figures_are_pooled_over_seeds(studies):
    rate = studies.figure(CALL)
    assert rate["1"].value == 1.0 and rate["2"].value == 0.8
    assert rate[POOLED] == pytest.approx((0.9, *wilson(18, 20)))
    assert studies.figure("exp2a all tool full fvu")[POOLED] == pytest.approx((0.2, 0.1, 0.3))
    gain = studies.figure(GAIN)
    assert gain["1"].value == pytest.approx(0.5) and gain["2"].value == pytest.approx(1.0)
    assert gain[POOLED] == pytest.approx((0.75, 0.75, 0.75))
    assert studies.figure(f"{CALL}".replace("full", "full@32_residual")) == rate


def test_rates_are_pooled_over_the_examples_that_have_a_verdict(tmp_path):
    folders = []
    for seed, hits, n in (("1", 3, 4), ("2", 1, 8)):
        rate = {"tool_call_rate": hits / n, "tool_call_n": n, "n_examples": N}
        write_metrics(tmp_path / seed / "exp2a", [{"condition": "raw", "subset": "tool"} | rate])
        folders.append(tmp_path / seed)
    name = "exp2a - tool raw tool_call_rate"
    assert Studies(folders).figure(name)[POOLED] == pytest.approx((4 / 12, *wilson(4, 12)))
    for folder in folders:  # as older tables have it
        path = folder / "exp2a" / "metrics.csv"
        path.write_text(path.read_text().replace("tool_call_n", "forgotten"))
    with pytest.raises(ValueError, match=r"not a rate of \[10, 10\] examples, .* no tool_call_n"):
        Studies(folders).figure(name)


def test_the_page_holds_what_the_tables_hold(studies, docs, monkeypatch):
    conditions = read_conditions(docs)
    names = figure_names(docs, conditions)
    assert names == [CALL, "exp2a - tool raw tool_call_rate", GAIN, "exp2a all tool full fvu"]
    figures = {name: studies.figure(name) for name in names}
    write_figures(docs / "findings.csv", figures)
    assert read_figures(docs / "findings.csv")[CALL]["2"].value == 0.8
    page = render(docs, conditions, figures)
    assert "| It calls. | 0.900 [0.699, 0.972] (1.00 0.800) of raw's 1.00 [0.839, 1.00] |" in page
    assert "| at 0.750 [0.750, 0.750] (0.500 1.00) nats |" in page
    assert "| full | 0.200 (0.100 0.300) |" in page
    # From the figures alone, and from the studies.
    for given in ([], [str(folder) for folder in studies.folders]):
        monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), *given])
        main()
        assert (docs / "FINDINGS.md").read_text() == page
        assert read_figures(docs / "findings.csv").keys() == figures.keys()
        (docs / "FINDINGS.md").unlink()


def test_a_verdict_that_does_not_follow_is_refused(studies, docs, monkeypatch):
    (docs / "findings_conditions.csv").write_text(CONDITIONS.replace("0.8\n", "0.85\n"))
    conditions = read_conditions(docs)
    figures = {name: studies.figure(name) for name in figure_names(docs, conditions)}
    # It holds pooled, and in one seed of two.
    message = r"claim 1: exp2a .* full tool_call_rate is 0\.800 \(value, 2\), not >= 0\.85$"
    with pytest.raises(ValueError, match=message):
        render(docs, conditions, figures)
    folders = [str(folder) for folder in studies.folders]
    monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), "--check", *folders])
    with pytest.raises(ValueError, match=r"FINDINGS\.md does not hold here: claim 1"):
        main()
    assert not (docs / "FINDINGS.md").exists()


def test_conditions_about_experiments_that_were_not_run_are_left_out(
    studies, docs, monkeypatch, capsys
):
    more = f"1,controls all tool full tool_call_rate,value,>,2\n1,{CALL},value,>,exp1 - a raw fvu\n"
    (docs / "findings_conditions.csv").write_text(CONDITIONS + more)
    monkeypatch.setattr(
        "sys.argv", ["findings", "--docs", str(docs), "--check", *map(str, studies.folders)]
    )
    main()
    assert capsys.readouterr().out.startswith("3 conditions of ")


def test_one_study_keeps_its_own_intervals(studies):
    (folder, _) = studies.folders
    rate = Studies([folder]).figure(CALL)
    assert list(rate) == [POOLED, str(folder)]
    assert rate[POOLED] == rate[str(folder)] == (1.0, 1.0, 1.0)  # the table gives no interval


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("exp2a all tool full", "expected experiment, layers, subset, condition and column"),
        ("exp2a 0 tool full fvu", "0 rows, not one, are exp2a 0 tool full fvu"),
        ("exp2a all tool full@8_residual fvu", "0 rows, not one"),
        ("exp2a all tool full:no_delta mean_ce", "0 rows, not one"),
        ("exp2a all tool full call", "exp2a has no call of full"),
        ("exp2a all tool full mean_kl", "exp2a has no mean_kl of full"),
    ],
)
def test_a_figure_that_is_nowhere(studies, figure, message):
    with pytest.raises(ValueError, match=message):
        studies.figure(figure)


def test_a_condition_holds_in_every_seed_and_an_end_pooled():
    def broken(figures, *condition):
        return Condition("1", *condition).broken(figures)

    seeds = {POOLED: Value(-1, -2, -0.6), "1": Value(0, 0, 0), "2": Value(-2, -2, -2)}
    figures = {GAIN: seeds, CALL: {seed: Value(-1, -1, -1) for seed in seeds}}
    assert broken(figures, GAIN, "high", "<", "-0.5") == []
    (found,) = broken(figures, GAIN, "value", "<", "-0.5")
    assert found == f"claim 1: {GAIN} is 0.000 (value, 1), not < -0.5"
    (found,) = broken(figures, GAIN, "high", "<", "-0.6")
    assert "is -0.600 (high, pooled)" in found
    (found,) = broken(figures, GAIN, "value", "<=", CALL)
    assert found.endswith(f"is 0.000 (value, 1), not <= {CALL}")


@pytest.mark.parametrize(("old", "new"), [("value,>=", "value,=="), (",low,", ",lower,")])
def test_a_condition_that_cannot_be_read_is_named(docs, old, new):
    (docs / "findings_conditions.csv").write_text(CONDITIONS.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"conditions\.csv, line [23]: need a part of value, low"):
        read_conditions(docs)


# The document of this repository


def test_the_findings_are_those_of_the_figures():
    conditions, figures = read_conditions(DOCS), read_figures(DOCS / "findings.csv")
    assert list(figures) == figure_names(DOCS, conditions)
    page = render(DOCS, conditions, figures)
    assert page == (DOCS / "FINDINGS.md").read_text(encoding="utf-8")
    claims = [line for line in page.splitlines() if re.match(r"\| \d+ \| .*\*\*", line)]
    assert len(claims) >= 15
    assert {c.claim for c in conditions} == {str(i) for i in range(1, len(claims) + 1)}


def test_a_figure_that_changed_breaks_a_verdict():
    conditions = read_conditions(DOCS)
    figures = {
        name: {seed: Value(*(1e3 - x for x in value)) for seed, value in by_seed.items()}
        for name, by_seed in read_figures(DOCS / "findings.csv").items()
    }
    assert sum(bool(c.broken(figures)) for c in conditions) > len(conditions) / 3


def test_the_figures_are_those_of_the_results():
    studies = Studies(REPORTED)
    committed = read_figures(DOCS / "findings.csv")
    if not all(map(studies.has, committed)):
        pytest.skip("needs the results of `make findings`")
    for name, by_seed in committed.items():
        for seed, value in studies.figure(name).items():
            assert by_seed[seed] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), (
                name,
                seed,
            )
