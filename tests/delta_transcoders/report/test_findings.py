"""Claims and figures: read from tables, pooled over seeds, and refused where they disagree."""

from pathlib import Path

import pytest
from delta_transcoders.metrics.tool_metrics import Answer

from delta_transcoders.metrics.intervals import wilson
from delta_transcoders.report.findings import (
    POOLED,
    Condition,
    Studies,
    Value,
    conditions_of,
    figures_of,
    read_document,
    read_figures,
    render,
    write_figures,
)
from delta_transcoders.report.tables import write_generations, write_metrics
from delta_transcoders.tasks.calculator.grammar import format_tool_call
from delta_transcoders.tasks.examples import Example

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
        rows.append(labels | {"subset": "tool"} | rate)
        for i in range(N):
            example = Example(f"Add {i}", format_tool_call(f"{i}+1"), "positive")
            text = example.target if i < n_calls else "no"
            record = Answer(i, text, 4 * of_column, 4).record(example)
            records.append({**labels, **record, "kl": 0.0, "call_logprob": 0.0})
    write_metrics(folder / "exp2a", rows)
    write_generations(folder / "exp2a", records)
    return folder


@pytest.fixture
def studies(tmp_path):
    return Studies(
        [write_study(tmp_path / "1", 10, 1.5, 0.1), write_study(tmp_path / "2", 8, 2.0, 0.3)]
    )


DOCUMENT = {
    "title": "Findings",
    "introduction": "Of two seeds.",
    "claims": [
        {
            "claim": "It calls.",
            "right_site": f"{{{CALL}}} of raw's {{exp2a - tool raw tool_call_rate}}",
            "original_site": "",
            "controls": f"at {{{GAIN}}} nats",
            "verdict": "holds",
            "conditions": [
                f"{CALL} >= 0.8",
                f"{GAIN}.low > 0.7",
                f"exp2a - tool raw tool_call_rate >= {CALL}",
            ],
        }
    ],
    "tables": [
        {
            "title": "Fit",
            "text": "Mean and range.",
            "header": ["condition", "FVU"],
            "rows": [["full", "{exp2a all tool full fvu}"]],
        }
    ],
}


def test_figures_are_pooled_over_seeds(studies):
    rate = studies.figure(CALL)
    assert rate["1"].value == 1.0 and rate["2"].value == 0.8
    assert rate[POOLED] == pytest.approx((0.9, *wilson(18, 20)))
    assert studies.figure("exp2a all tool full fvu")[POOLED] == pytest.approx((0.2, 0.1, 0.3))
    gain = studies.figure(GAIN)
    assert gain["1"].value == pytest.approx(0.5) and gain["2"].value == pytest.approx(1.0)
    assert gain[POOLED] == pytest.approx((0.75, 0.75, 0.75))
    assert studies.figure(f"{CALL}".replace("full", "full@32_residual")) == rate


def test_the_page_holds_what_the_tables_hold(studies, tmp_path):
    figures = {name: studies.figure(name) for name in figures_of(DOCUMENT)}
    assert list(figures)[:3] == [CALL, "exp2a - tool raw tool_call_rate", GAIN]
    write_figures(tmp_path / "findings.csv", figures)
    assert read_figures(tmp_path / "findings.csv")[CALL]["2"].value == 0.8
    page = render(DOCUMENT, figures)
    assert (
        "| 1 | It calls. | 0.900 [0.699, 0.972] (1.00 0.800) of raw's 1.00 [0.839, 1.00] |" in page
    )
    assert "| at 0.750 [0.750, 0.750] (0.500 1.00) nats | holds |" in page
    assert "| full | 0.200 (0.100 0.300) |" in page


def test_a_verdict_that_does_not_follow_is_refused(studies):
    claim = DOCUMENT["claims"][0] | {"conditions": [f"{CALL} >= 0.85"]}
    document = DOCUMENT | {"claims": [claim]}
    figures = {name: studies.figure(name) for name in figures_of(document)}
    # It holds pooled, and in one seed of two.
    message = r"full tool_call_rate is 0\.800 \(value, 2\), not >= 0\.85$"
    with pytest.raises(ValueError, match=message):
        render(document, figures)


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


def test_conditions():
    figure = "exp2a all tool full:raw mean_ce"
    condition = Condition.parse(f"{figure}.high < -0.5")
    assert condition == (figure, "high", "<", -0.5)
    seeds = {POOLED: Value(-1, -2, -0.6), "1": Value(0, 0, 0), "2": Value(-2, -2, -2)}
    assert condition.broken_in({figure: seeds}) == []
    assert Condition.parse(f"{figure} < -0.5").broken_in({figure: seeds}) == ["1"]
    assert Condition.parse(f"{figure}.high < -0.6").broken_in({figure: seeds}) == [POOLED]
    other = {seed: Value(-1, -1, -1) for seed in seeds}
    against = Condition.parse(f"{figure} <= {CALL}")
    assert against.figures == [figure, CALL]
    assert against.broken_in({figure: seeds, CALL: other}) == ["1"]
    with pytest.raises(ValueError, match="expected one of > >= < <="):
        Condition.parse("exp2a all tool full fvu == 1")


# The document of this repository


def test_the_findings_are_those_of_the_figures():
    document = read_document(DOCS / "findings.yaml")
    figures = read_figures(DOCS / "findings.csv")
    assert list(figures) == figures_of(document)
    assert render(document, figures) == (DOCS / "FINDINGS.md").read_text(encoding="utf-8")
    assert len(document["claims"]) >= 15
    for claim in document["claims"]:
        assert claim["conditions"] and claim["verdict"]


def test_a_figure_that_changed_breaks_a_verdict():
    conditions = conditions_of(read_document(DOCS / "findings.yaml"))
    figures = {
        name: {seed: Value(*(1e3 - x for x in value)) for seed, value in by_seed.items()}
        for name, by_seed in read_figures(DOCS / "findings.csv").items()
    }
    broken = [c for c in conditions if c.broken_in(figures)]
    assert len(broken) > len(conditions) / 3


def test_the_figures_are_those_of_the_results():
    studies = Studies(REPORTED)
    committed = read_figures(DOCS / "findings.csv")
    if not all(studies.has(table) for table in {name.split()[0] for name in committed}):
        pytest.skip("needs the results of `make findings`")
    for name, by_seed in committed.items():
        for seed, value in studies.figure(name).items():
            assert by_seed[seed] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), (
                name,
                seed,
            )
