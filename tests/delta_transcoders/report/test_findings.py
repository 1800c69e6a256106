"""Claims and figures: read from tables, pooled over seeds, and refused where they disagree."""

import re
from pathlib import Path

import pytest

from delta_transcoders.metrics.intervals import t_interval
from delta_transcoders.report.findings import (
    FAILS,
    NOT_TESTED,
    PASSES,
    POOLED,
    Condition,
    Studies,
    Value,
    figure_names,
    main,
    read_conditions,
    read_figures,
    render,
    verdict,
    write_figures,
)
from delta_transcoders.report.tables import write_generations, write_metrics, write_table
from delta_transcoders.tasks.calculator.examples import make_example
from delta_transcoders.tasks.calculator.grammar import format_tool_call
from delta_transcoders.tasks.calculator.task import Calculator

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
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
            record = {"example": i, "subset": "tool", "wording": str(i), "prompt": example.prompt}
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
| at {{ f("exp2a all tool", "full:raw", "mean_ce") }} nats | {{ v(1) }} |
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
    assert rate[POOLED] == pytest.approx((0.9, 0.0, 1.0))  # Student's interval of two seeds, cut
    fvu = studies.figure("exp2a all tool full fvu")[POOLED]
    assert fvu == pytest.approx(t_interval([0.1, 0.3]))
    gain = studies.figure(GAIN)
    assert gain["1"].value == pytest.approx(0.5) and gain["2"].value == pytest.approx(1.0)
    assert gain[POOLED] == pytest.approx(t_interval([0.5, 1.0]))
    assert studies.figure(f"{CALL}".replace("full", "full@32_residual")) == rate


def test_seeds_that_agree_keep_the_width_that_each_has(tmp_path):
    ends = {"tool_call_rate_ci_low": 0.8, "tool_call_rate_ci_high": 1.0}
    rate = {"condition": "raw", "subset": "tool", "tool_call_rate": 1.0, "tool_call_n": N, **ends}
    for seed in ("1", "2"):
        write_metrics(tmp_path / seed / "exp2a", [rate])
    studies = Studies([tmp_path / "1", tmp_path / "2"])
    assert studies.figure("exp2a - tool raw tool_call_rate")[POOLED] == (1.0, 0.8, 1.0)


def test_any_other_table_is_named_as_a_file(tmp_path):
    for seed, n90 in (("1", 16), ("2", 32)):
        rows = [{"delta": "d8", "n90": 8}, {"delta": "d32", "n90": n90}]
        write_table(tmp_path / seed / "curve" / "n90.csv", ["delta", "n90"], rows)
    studies = Studies([tmp_path / "1", tmp_path / "2"])
    figure = studies.figure("curve/n90.csv delta=d32 n90")
    assert (figure["1"].value, figure["2"].value, figure[POOLED].value) == (16, 32, 24)
    assert studies.has("curve/n90.csv delta=d32 n90") and not studies.has("curve/x.csv a=b c")
    with pytest.raises(ValueError, match="0 rows, not one, are curve/n90.csv delta=d9 n90"):
        studies.figure("curve/n90.csv delta=d9 n90")


def test_the_page_holds_what_the_tables_hold(studies, docs, monkeypatch):
    conditions = read_conditions(docs)
    names = figure_names(docs, conditions)
    assert names == [CALL, "exp2a - tool raw tool_call_rate", GAIN, "exp2a all tool full fvu"]
    figures = {name: studies.figure(name) for name in names}
    write_figures(docs / "findings.csv", figures)
    assert read_figures(docs / "findings.csv")[CALL]["2"].value == 0.8
    page = render(docs, conditions, figures)
    assert "| It calls. | 0.900 [0.000, 1.00] (1.00 0.800) of raw's 1.00 |" in page
    gain = f"not low end of {GAIN} > 0.7 in pooled, 1"
    assert f"| at 0.750 [-2.43, 3.93] ~0 (0.500 1.00) nats | {FAILS}: {gain} |" in page
    assert "| full | 0.200 [-1.07, 1.47] (0.100 0.300) |" in page
    # From the figures alone, and from the studies.
    for given in ([], [str(folder) for folder in studies.folders]):
        monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), *given])
        main()
        assert (docs / "FINDINGS.md").read_text() == page
        assert read_figures(docs / "findings.csv").keys() == figures.keys()
        (docs / "FINDINGS.md").unlink()


def test_a_page_that_is_not_what_its_figures_make_of_it_is_an_error(
    studies, docs, monkeypatch, capsys
):
    conditions = read_conditions(docs)
    figures = {name: studies.figure(name) for name in figure_names(docs, conditions)}
    write_figures(docs / "findings.csv", figures)
    page = docs / "FINDINGS.md"
    page.write_text(render(docs, conditions, read_figures(docs / "findings.csv")))
    monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), "--check"])
    main()
    assert "is what" in capsys.readouterr().out
    page.write_text(page.read_text().replace("0.900", "0.950"))
    with pytest.raises(ValueError, match=r"FINDINGS\.md is not what .*findings\.csv makes of it"):
        main()
    assert "0.950" in page.read_text()


def test_what_was_not_run_is_not_tested(studies, docs, monkeypatch):
    more = f"2,controls all tool full tool_call_rate,value,>,2\n3,{CALL},value,>,exp1 - a raw fvu\n"
    (docs / "findings_conditions.csv").write_text(CONDITIONS + more)
    (docs / "findings.md.j2").write_text(
        PAGE + "{{ v(1) }} {{ v(2) }} {{ v(3) }} {{ f('a - b c d') }}"
    )
    monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), *map(str, studies.folders)])
    main()
    assert (docs / "FINDINGS.md").read_text().endswith(f" {NOT_TESTED} {NOT_TESTED} –")
    assert read_figures(docs / "nowhere.csv") == {}


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


def test_a_condition_holds_in_every_seed_and_pooled():
    seeds = {POOLED: Value(-1, -2, -0.6), "1": Value(0, 0, 0), "2": Value(-2, -2, -2)}
    figures = {GAIN: seeds, CALL: {seed: Value(-1, -1, -1) for seed in seeds}}

    def failures(*condition):
        return Condition("1", *condition).failures(figures)

    assert failures(GAIN, "high", "<", "0.5") == []
    assert failures(GAIN, "value", "<", "-0.5") == ["1"]
    assert failures(GAIN, "high", "<", "-0.6") == [POOLED, "1"]
    assert failures(GAIN, "value", "<=", CALL) == ["1"]


def test_a_claim_passes_with_all_its_conditions_and_what_it_needs():
    seeds = {POOLED: Value(1, 0.5, 2), "1": Value(1, 0.5, 2)}
    conditions = [
        Condition("1", CALL, "low", ">", "0.4"),
        Condition("1", CALL, "value", ">", "0.9"),
        Condition("2", CALL, "low", ">", "0.6"),
    ]
    assert verdict("1", conditions, {CALL: seeds}) == PASSES
    assert verdict("1", conditions, {}) == NOT_TESTED
    expected = f"{FAILS}: not low end of {CALL} > 0.6 in pooled, 1"
    assert verdict("2", conditions, {CALL: seeds}) == expected
    assert verdict("2", conditions, {CALL: seeds}, needs="1") == expected
    assert verdict("1", conditions, {CALL: seeds}, needs="2") == f"{NOT_TESTED}: 2 does not pass"
    with pytest.raises(ValueError, match="no condition of the claim '3'"):
        verdict("3", conditions, {CALL: seeds})


@pytest.mark.parametrize(("old", "new"), [("value,>=", "value,=="), (",low,", ",lower,")])
def test_a_condition_that_cannot_be_read_is_named(docs, old, new):
    (docs / "findings_conditions.csv").write_text(CONDITIONS.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"conditions\.csv, line [23]: need a part of value, low"):
        read_conditions(docs)


# The document of this repository


def test_the_findings_are_those_of_the_figures():
    conditions, figures = read_conditions(DOCS), read_figures(DOCS / "findings.csv")
    page = render(DOCS, conditions, figures)
    assert page == (DOCS / "FINDINGS.md").read_text(encoding="utf-8")
    assert figures.keys() <= set(figure_names(DOCS, conditions))
    for condition in conditions:
        assert re.search(rf"^\| {condition.claim} \| ", page, re.MULTILINE), condition.claim


def test_every_registered_condition_can_fail():
    """With figures far on either side, no claim passes both times."""
    conditions = read_conditions(DOCS)
    names = {name for c in conditions for name in c.figures}
    for claim in {c.claim for c in conditions}:
        found = [
            verdict(
                claim,
                conditions,
                {
                    name: {POOLED: Value(*[sign * (1e6 + i)] * 3)}
                    for i, name in enumerate(sorted(names))
                },
            )
            for sign in (1, -1)
        ]
        assert found != [PASSES, PASSES], claim
