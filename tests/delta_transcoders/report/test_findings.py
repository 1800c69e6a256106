"""Claims and figures: read from tables, pooled over seeds, and refused where they disagree."""

import hashlib
import json
import math
import re
from pathlib import Path

import pytest

from delta_transcoders.files import FORMAT
from delta_transcoders.metrics.intervals import t_interval
from delta_transcoders.report.findings import (
    FAILS,
    NOT_TESTED,
    PASSES,
    POOLED,
    Condition,
    figure_names,
    figures_of,
    main,
    pool_results,
    read_conditions,
    read_figures,
    render,
    shown,
    verdict,
    write_figures,
)
from delta_transcoders.report.results import StudyTables, Value, keep_results
from delta_transcoders.report.results import main as keep_main
from delta_transcoders.report.tables import (
    read_metrics,
    write_generations,
    write_metrics,
    write_table,
)
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
    return [write_study(tmp_path / "1", 10, 1.5, 0.1), write_study(tmp_path / "2", 8, 2.0, 0.3)]


@pytest.fixture
def figures(studies, docs):
    """Of both seeds, kept and pooled."""
    names = figure_names(docs, read_conditions(docs))
    kept = [docs / "results" / study.name for study in studies]
    for study, folder in zip(studies, kept, strict=True):
        keep_results(study, folder, [*names, "controls all tool full fvu"])
    return pool_results(kept)


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


def test_a_figure_is_a_cell_or_a_difference_with_its_own_interval(studies):
    tables = StudyTables(studies[1])
    assert tables.figure(CALL) == (0.8, 0.8, 0.8)  # the table gives no interval
    assert tables.figure(GAIN) == pytest.approx((1.0, 1.0, 1.0))
    assert tables.figure(CALL.replace("full", "full@32_residual")) == tables.figure(CALL)
    assert not tables.has("controls all tool full fvu")


def test_figures_are_pooled_over_seeds(figures):
    rate = figures[CALL]
    assert rate["1"].value == 1.0 and rate["2"].value == 0.8
    assert rate[POOLED] == pytest.approx((0.9, 0.0, 1.0))  # Student's interval of two seeds, cut
    assert figures["exp2a all tool full fvu"][POOLED] == pytest.approx(t_interval([0.1, 0.3]))
    assert figures[GAIN][POOLED] == pytest.approx(t_interval([0.5, 1.0]))


def test_seeds_that_agree_keep_the_width_that_each_has(tmp_path):
    ends = {"tool_call_rate_ci_low": 0.8, "tool_call_rate_ci_high": 1.0}
    rate = {"condition": "raw", "subset": "tool", "tool_call_rate": 1.0, "tool_call_n": N, **ends}
    name, folders = "exp2a - tool raw tool_call_rate", [tmp_path / "out" / s for s in ("1", "2")]
    for folder in folders:
        write_metrics(tmp_path / folder.name / "exp2a", [rate])
        keep_results(tmp_path / folder.name, folder, [name])
    assert pool_results(folders)[name][POOLED] == (1.0, 0.8, 1.0)


def test_any_other_table_is_named_as_a_file(tmp_path):
    rows = [{"delta": "d8", "n90": 8}, {"delta": "d32", "n90": 16}]
    write_table(tmp_path / "curve" / "n90.csv", ["delta", "n90"], rows)
    tables = StudyTables(tmp_path)
    assert tables.figure("curve/n90.csv delta=d32 n90").value == 16
    assert tables.has("curve/n90.csv delta=d32 n90") and not tables.has("curve/x.csv a=b c")
    with pytest.raises(ValueError, match=r"0 rows, not one, are curve/n90\.csv delta=d9 n90"):
        tables.figure("curve/n90.csv delta=d9 n90")


def test_figures_asked_for_after_a_seed_was_kept_are_read_from_its_tables(tmp_path):
    write_table(tmp_path / "1" / "curve" / "n90.csv", ["n90", "cos"], [{"n90": 16, "cos": 0.6}])
    n90, cos = "curve/n90.csv n90", "curve/n90.csv cos"
    keep_results(tmp_path / "1", tmp_path / "kept", [n90])
    names = [n90, cos, "curve/n90.csv x", "x/n90.csv n90", "exp2a all tool full:raw mean_ce"]
    expected = {n90: Value(16, 16, 16), cos: Value(0.6, 0.6, 0.6)}
    assert figures_of(tmp_path / "kept", names) == expected


def test_more_than_a_number_is_read_so_and_meets_no_condition(tmp_path):
    kept = [tmp_path / "out" / seed for seed in ("1", "2")]
    for folder, n90 in zip(kept, (16, ">128"), strict=True):
        for curve, value in (("ours", n90), ("theirs", 128), ("both", ">128")):
            cells = {"n90": value, "cos": 0.6 if value == 16 else float("nan")}
            write_table(tmp_path / folder.name / curve / "n90.csv", ["n90", "cos"], [cells])
        names = [f"{c}/n90.csv {x}" for c in ("ours", "theirs", "both") for x in ("n90", "cos")]
        keep_results(tmp_path / folder.name, folder, names)
    figures = pool_results(kept)
    assert figures["ours/n90.csv n90"][POOLED] == (math.inf, 72, math.inf)
    seeds = ["1", "2"]
    assert shown("ours/n90.csv n90", figures, seeds) == "16 >128"
    assert shown("both/n90.csv n90", figures, seeds) == "more than 128"
    assert shown("ours/n90.csv cos", figures, seeds) == "– (0.600 –)"

    def failures(figure, part, comparison, bound):
        return Condition("x", figure, part, comparison, bound).failures(figures)

    assert failures("ours/n90.csv n90", "value", "<=", "0.25 * theirs/n90.csv n90") == [POOLED, "2"]
    everywhere = [POOLED, "1", "2"]
    for comparison in ("<=", ">="):
        assert failures("both/n90.csv n90", "value", comparison, "both/n90.csv n90") == everywhere
    # 128 is below more than 128, and not above it; 16 is at most a quarter of it, 128 is not.
    assert failures("theirs/n90.csv n90", "value", "<=", "both/n90.csv n90") == []
    assert failures("theirs/n90.csv n90", "value", ">=", "both/n90.csv n90") == everywhere
    assert failures("ours/n90.csv n90", "value", "<=", "0.25 * both/n90.csv n90") == [POOLED, "2"]
    assert failures("theirs/n90.csv n90", "value", "<=", "0.25 * both/n90.csv n90") == everywhere
    assert failures("ours/n90.csv cos", "low", ">=", "0.5") == [POOLED, "2"]


def test_a_seed_without_a_figure_keeps_its_place():
    most = Value(math.inf, 9, math.inf)
    figures = {
        "a of_two": {"1": Value(0.5, 0, 1), "3": Value(0.7, 0, 1), POOLED: Value(0.6, 0.4, 0.8)},
        "a shared": {POOLED: Value(0.2, 0.1, 0.3)},
        "x.csv n90": {"1": Value(8, 8, 8), "3": most, POOLED: most},
    }
    assert shown("a of_two", figures, "123") == "0.600 [0.400, 0.800] (0.500 – 0.700)"
    assert shown("a shared", figures, "123") == "0.200 [0.100, 0.300]"
    assert shown("x.csv n90", figures, "123") == "8 – >9"


def test_what_is_kept_of_a_study(studies, tmp_path):
    (studies[0] / "study.json").write_text('{"made": "by hand"}')
    keep_results(studies[0], tmp_path / "kept", [CALL])
    files = {p.relative_to(tmp_path / "kept").as_posix() for p in (tmp_path / "kept").rglob("*.*")}
    assert files == {"figures.csv", "exp2a/metrics.csv", "study.json", "hashes.json", "done.json"}
    hashes = json.loads((tmp_path / "kept" / "hashes.json").read_text())
    text = (studies[0] / "exp2a/generations.jsonl").read_bytes()
    assert hashes == {"exp2a/generations.jsonl": hashlib.sha256(text).hexdigest()}


def test_nothing_is_kept_of_a_stage_that_runs_nor_of_no_study(studies, docs, tmp_path, monkeypatch):
    unfinished, out = studies[0] / ".exp1.partial", tmp_path / "kept"
    unfinished.mkdir()
    for name in ("metrics.csv", "generations.jsonl"):
        (unfinished / name).write_text("half\n")
    keep_results(studies[0], out, [CALL])
    assert not list(out.rglob(".exp1.partial"))
    assert list(json.loads((out / "hashes.json").read_text())) == ["exp2a/generations.jsonl"]
    monkeypatch.setattr(
        "sys.argv", ["results", str(tmp_path / "gone"), str(out), "--docs", str(docs)]
    )
    with pytest.raises(FileNotFoundError, match="gone: what was kept of it stays"):
        keep_main()
    assert (out / "exp2a/metrics.csv").is_file()


def test_the_page_holds_what_the_tables_hold(figures, docs, monkeypatch):
    conditions = read_conditions(docs)
    names = figure_names(docs, conditions)
    assert names == [CALL, "exp2a - tool raw tool_call_rate", GAIN, "exp2a all tool full fvu"]
    write_figures(docs / "findings.csv", figures)
    assert read_figures(docs / "findings.csv")[CALL]["2"].value == 0.8
    page = render(docs)
    assert "| It calls. | 0.900 [0.000, 1.00] (1.00 0.800) of raw's 1.00 |" in page
    gain = f"not low end of {GAIN} > 0.7 in pooled, 1"
    assert f"| at 0.750 [-2.43, 3.93] ~0 (0.500 1.00) nats | {FAILS}: {gain} |" in page
    assert "| full | 0.200 [-1.07, 1.47] (0.100 0.300) |" in page
    # From the figures alone, and from what was kept.
    for given in ([], [str(docs / "results" / seed) for seed in ("1", "2")]):
        monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), *given])
        main()
        assert (docs / "FINDINGS.md").read_text() == page
        assert read_figures(docs / "findings.csv").keys() == figures.keys()
        (docs / "FINDINGS.md").unlink()


def test_a_page_that_is_not_what_its_figures_make_of_it_is_an_error(
    figures, docs, monkeypatch, capsys
):
    write_figures(docs / "findings.csv", figures)
    page = docs / "FINDINGS.md"
    page.write_text(render(docs))
    monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), "--check"])
    main()
    assert "is what" in capsys.readouterr().out
    page.write_text(page.read_text().replace("0.900", "0.950"))
    with pytest.raises(ValueError, match=r"FINDINGS\.md is not what the findings\.csv make of it"):
        main()
    assert "0.950" in page.read_text()
    monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), "--check", "docs/results/1"])
    with pytest.raises(ValueError, match="give no RESULTS"):
        main()


def test_a_second_result_reads_what_is_new_alone(studies, tmp_path):
    """What the same run has written is not read again: here, by hand, it is something else."""
    table, text = studies[0] / "exp2a/metrics.csv", studies[0] / "exp2a/generations.jsonl"
    done = {"format": FORMAT, "kind": "x", "run": "first", "files": {}}
    (studies[0] / "exp2a/done.json").write_text(json.dumps(done))
    stages = {"exp2a": {"done": {"run": "first"}}}
    (studies[0] / "study.json").write_text(json.dumps({"stages": stages}))
    out, names = tmp_path / "kept", [CALL, "exp1 all tool full fvu"]
    assert keep_results(studies[0], out, names) == []
    first = (out / "figures.csv").read_text(), (out / "hashes.json").read_text()
    table.write_text(table.read_text().replace(",1,", ",0.5,"))
    text.write_text("{}\n")
    assert keep_results(studies[0], out, names) == []
    assert ((out / "figures.csv").read_text(), (out / "hashes.json").read_text()) == first
    (studies[0] / "exp2a/done.json").write_text(json.dumps(done | {"run": "second"}))
    assert keep_results(studies[0], out, names) == []
    assert (out / "figures.csv").read_text() != first[0]
    hashes = json.loads((out / "hashes.json").read_text())
    assert hashes == {"exp2a/generations.jsonl": hashlib.sha256(b"{}\n").hexdigest()}


def test_what_can_be_kept_is_kept_where_a_figure_is_not_there(studies, tmp_path, monkeypatch):
    problems = keep_results(studies[0], tmp_path / "kept", [CALL, CALL.replace("full", "none")])
    assert problems == ["0 rows, not one, are exp2a all tool none tool_call_rate"]
    assert [row["figure"] for row in read_metrics(tmp_path / "kept/figures.csv")] == [CALL]
    assert (tmp_path / "kept/exp2a/metrics.csv").is_file()


def test_what_seeds_share_stands_once_and_bounds_what_each_has(studies, docs, monkeypatch):
    """And another registration's claims are on the same page, from its own folder."""
    real, shared = docs / "real", "floor/metrics.csv subset=tool fvu"
    real.mkdir()
    (real / "findings.md.j2").write_text(
        "{{ f('" + shared + "') }} {{ f('" + CALL + "') }} {{ v('1') }} of {{ seeds | join }}"
    )
    more = f"1,{CALL},value,>,{shared}\n1,{shared},value,<,0.5\n"
    (real / "findings_conditions.csv").write_text(CONDITIONS.splitlines()[0] + "\n" + more)
    page = (
        "{% set real = registered('real') %}{% with f = real.f, v = real.v, seeds = real.seeds %}"
    )
    page += "{% include 'real/findings.md.j2' %}{% endwith %} | {{ f('" + CALL + "') }}"
    (docs / "findings.md.j2").write_text(page)
    assert figure_names(docs, []) == [CALL] and figure_names(real, []) == [shared, CALL]
    row = {"subset": "tool", "condition": "raw", "fvu": 0.4}
    write_metrics(docs / "base/floor", [row])
    kept = docs / "kept"
    for study in (docs / "base", *studies):
        keep_results(study, kept / study.name, [shared, CALL])
    arguments = ["findings", "--docs", str(docs), "--registered", str(real)]
    arguments += ["--shared", str(kept / "base")]
    monkeypatch.setattr("sys.argv", [*arguments, str(kept / "1"), str(kept / "2")])
    main()
    expected = f"0.400 0.900 [0.000, 1.00] (1.00 0.800) {PASSES} of 12 | –"
    assert (docs / "FINDINGS.md").read_text() == expected
    monkeypatch.setattr("sys.argv", [*arguments, str(kept / "2")])
    main()
    assert (docs / "FINDINGS.md").read_text() == f"0.400 0.800 {PASSES} of 2 | –"
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert (docs / "FINDINGS.md").read_text() == f"0.400 – {NOT_TESTED} of  | –"
    assert not (docs / "findings.csv").exists()


def test_what_was_not_run_is_not_tested(figures, docs, monkeypatch):
    more = f"2,controls all tool full tool_call_rate,value,>,2\n3,{CALL},value,>,exp1 - a raw fvu\n"
    (docs / "findings_conditions.csv").write_text(CONDITIONS + more)
    (docs / "findings.md.j2").write_text(
        PAGE + "{{ v(1) }} {{ v(2) }} {{ v(3) }} {{ f('a - b c d') }}"
    )
    kept = [str(docs / "results" / seed) for seed in ("1", "2")]
    monkeypatch.setattr("sys.argv", ["findings", "--docs", str(docs), *kept])
    main()
    assert (docs / "FINDINGS.md").read_text().endswith(f" {NOT_TESTED} {NOT_TESTED} –")
    assert read_figures(docs / "nowhere.csv") == {}


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("exp2a all tool full", "expected experiment, layers, subset, condition and column"),
        ("exp2a 0 tool full fvu", "0 rows, not one, are exp2a 0 tool full fvu"),
        ("exp2a all tool full@8_residual fvu", "0 rows, not one"),
        ("exp2a all tool full:no_delta mean_ce", "0 rows, not one"),
        ("exp2a all tool full call", "full call: the row has no call"),
        ("exp2a all tool full mean_kl", "the row has no mean_kl"),
    ],
)
def test_a_figure_that_is_nowhere(studies, figure, message):
    with pytest.raises(ValueError, match=message):
        StudyTables(studies[0]).figure(figure)


def test_a_condition_holds_in_every_seed_and_pooled():
    seeds = {POOLED: Value(-1, -2, -0.6), "1": Value(0, 0, 0), "2": Value(-2, -2, -2)}
    figures = {GAIN: seeds, CALL: {seed: Value(-1, -1, -1) for seed in seeds}}

    def failures(*condition):
        return Condition("1", *condition).failures(figures)

    assert failures(GAIN, "high", "<", "0.5") == []
    assert failures(GAIN, "value", "<", "-0.5") == ["1"]
    assert failures(GAIN, "high", "<", "-0.6") == [POOLED, "1"]
    assert failures(GAIN, "value", "<=", CALL) == ["1"]
    assert failures(GAIN, "value", "<=", f"-1 * {CALL}") == []
    assert Condition("1", GAIN, "value", "<=", f"-1 * {CALL}").figures == [GAIN, CALL]


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
    assert verdict("1", conditions, {CALL: seeds}, needs="2") == f"{NOT_TESTED}: rests on `2`"
    with pytest.raises(ValueError, match="no condition of the claim '3'"):
        verdict("3", conditions, {CALL: seeds})


def test_a_verdict_says_so_where_other_seeds_lack_its_figures():
    one, two = (
        {POOLED: Value(1, 1, 1)} | {seed: Value(1, 1, 1) for seed in seeds} for seeds in ("1", "12")
    )
    shared = {POOLED: Value(0, 0, 0)}
    conditions = [
        Condition("1", CALL, "value", ">", GAIN),
        Condition("2", GAIN, "value", ">", "0.5"),
    ]
    assert verdict("1", conditions, {CALL: one, GAIN: two}).startswith(
        f"{FAILS} (measured in 1): not"
    )
    assert verdict("1", conditions, {CALL: one, GAIN: shared}) == PASSES
    assert verdict("2", conditions, {CALL: one, GAIN: two}) == PASSES
    low = {seed: Value(0, 0, 0) for seed in (POOLED, "1", "2")}
    expected = f"{FAILS} (measured in 1): not {conditions[0]} in {POOLED}, 1"
    assert verdict("1", conditions, {CALL: low, GAIN: one}) == expected
    assert verdict("2", conditions, {CALL: two, GAIN: one}) == f"{PASSES} (measured in 1)"


@pytest.mark.parametrize(("old", "new"), [("value,>=", "value,=="), (",low,", ",lower,")])
def test_a_condition_that_cannot_be_read_is_named(docs, old, new):
    (docs / "findings_conditions.csv").write_text(CONDITIONS.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"conditions\.csv, line [23]: need a part of value, low"):
        read_conditions(docs)


# The document of this repository


CLAIMS = pytest.mark.parametrize("claims", [DOCS, DOCS / "smollm2"], ids=["tiny", "smollm2"])


@CLAIMS
def test_the_findings_are_those_of_the_figures(claims):
    conditions, figures = read_conditions(claims), read_figures(claims / "findings.csv")
    page = render(DOCS)
    assert page == (DOCS / "FINDINGS.md").read_text(encoding="utf-8")
    assert figures.keys() <= set(figure_names(claims, conditions))
    part = render_alone(claims)
    assert part in page
    for condition in conditions:
        assert re.search(rf"^\| {condition.claim} \| ", part, re.MULTILINE), condition.claim


def render_alone(claims: Path) -> str:
    """Of the tiny study, what follows the real model's."""
    page = render(claims)
    return page[page.index("## The tiny study\n") :] if claims == DOCS else page


@CLAIMS
def test_every_claim_is_in_its_registration(claims):
    text = (claims / "REGISTERED.md").read_text("utf-8")
    for claim in {condition.claim for condition in read_conditions(claims)}:
        # The original study's are registered together.
        assert f"\n| {claim} |" in text or (claim[0] == "o" and "\n| o1 … o17 |" in text), claim


def test_without_a_seed_of_the_real_model_no_claim_of_it_is_tested():
    if (DOCS / "smollm2/findings.csv").is_file():
        pytest.skip("a seed has been run")
    part = render(DOCS / "smollm2")
    assert "**No registered seed has been run yet**" in part
    claims = {condition.claim for condition in read_conditions(DOCS / "smollm2")}
    assert part.count(f"| {NOT_TESTED}") == len(claims)


@CLAIMS
def test_every_registered_condition_can_fail(claims):
    """With figures far on either side, no claim passes both times."""
    conditions = read_conditions(claims)
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
