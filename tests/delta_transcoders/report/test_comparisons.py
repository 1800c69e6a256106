"""Differences of conditions and the 2 × 2 split, on answers made by hand."""

import subprocess
import sys

import numpy as np
import pytest

from delta_transcoders.metrics.intervals import bootstrap_counts, newcombe_paired
from delta_transcoders.report.comparisons import (
    NO_DIFFERENCE,
    POOLED,
    UNDEFINED,
    difference_rows,
    split_rows,
    write_comparisons,
)
from delta_transcoders.report.records import read_experiments
from delta_transcoders.report.tables import read_metrics, write_generations, write_metrics
from delta_transcoders.tasks.calculator.examples import make_example
from delta_transcoders.tasks.calculator.grammar import format_tool_call
from delta_transcoders.tasks.calculator.task import Calculator

MEASURES = (
    "mean_ce",
    "mean_kl",
    "call_logprob",
    "tool_call_rate",
    "math_correct_rate",
    "exact_copy_rate",
)
CORNERS = ("raw", "no_delta", "base_mlp", "dictionary_error")
N = 6
N_TOKENS = (1, 2, 3, 4, 5, 5)  # 20 in all
WORDINGS = tuple("abcdef")
BASE_NLL = (0.5, 0.1, 0.7, 0.2, 0.9, 0.4)


def example(subset, i, prompts):
    text = f"Line {i}." if subset == "copy" else format_tool_call(f"{i}+1")
    label = "negative" if subset == "copy" else "positive"
    return make_example(f"{prompts} {i}", text, label)


def answer(column, subset, i, nll, called, prompts):
    """A line of generations.jsonl; the nll and n_tokens of a column are those of its examples."""
    asked = example(subset, i, prompts)
    text = asked.target if called else "no"
    number = i + N * (subset == "copy")
    record = {"example": number, "subset": subset, "prompt": asked.prompt, "target": asked.target}
    record |= {"nll": float(nll), "n_tokens": N_TOKENS[i], "kl": float(nll) / 2}
    record |= {"call_logprob": -float(nll), "text": text, "wording": WORDINGS[i]}
    return {**column, **record, **Calculator().judge(text, asked)}


def write(folder, nlls, calls=None, prompts="Add", columns=None, subsets=("tool",)):
    """An experiment; `nlls` are by condition, per example, `calls` the conditions that call."""
    shared = {"alpha": None, "d_new": 32, "percentile": 0.5, "target": "residual"}
    raw = dict.fromkeys(shared) | {"layer": "", "condition": "raw"}
    columns = columns or [
        {"layer": "all", "condition": name} | shared for name in nlls if name != "raw"
    ]
    calls = calls or dict.fromkeys(nlls, ())
    records, rows = [], []
    for column in (raw, *columns):
        name = column["condition"]
        for subset in subsets:
            rows.append({**column, "subset": subset, **dict.fromkeys(MEASURES)})
            for i, nll in enumerate(nlls[name]):
                called = i in calls[name] or subset == "copy"
                records.append(answer(column, subset, i, nll, called, prompts))
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder, rows)
    write_generations(folder, records)
    return folder


def shifted(**by):
    """Each condition's nll: raw's plus a shift per target token."""
    return {
        name: [nll + shift * n for nll, n in zip(BASE_NLL, N_TOKENS, strict=True)]
        for name, shift in {"raw": 0.0, **by}.items()
    }


def scattered(seed):
    return dict(zip(CORNERS, np.random.default_rng(seed).uniform(0, 9, (4, N)), strict=True))


def only(rows, **where):
    (row,) = (r for r in rows if all(r[k] == v for k, v in where.items()))
    return row


def part(rows, name, measure="mean_ce", seed=POOLED):
    return only(rows, part=name, measure=measure, seed=seed, subset="tool")


def test_a_known_shift_is_recovered_without_noise(tmp_path):
    experiments = read_experiments([write(tmp_path, shifted(no_delta=0.5, full=0.125))])
    rows = difference_rows(experiments)
    row = only(rows, condition="full", reference="no_delta", measure="mean_ce")
    assert (row["estimate"], row["ci_low"], row["ci_high"]) == pytest.approx((-0.375,) * 3)
    assert (row["verdict"], row["interval"], row["n_examples"]) == ("", "bootstrap", N)
    # kl is half of the nll; the log-probability is minus the nll, one a prompt: mean n_tokens 20/6.
    row = only(rows, condition="no_delta", reference="raw", measure="mean_kl")
    assert row["estimate"] == pytest.approx(0.25)
    row = only(rows, condition="no_delta", reference="raw", measure="call_logprob")
    assert row["estimate"] == pytest.approx(-0.5 * 20 / 6)
    assert {(r["condition"], r["reference"]) for r in rows} == {
        (a, b) for a in ("raw", "no_delta", "full") for b in ("raw", "no_delta", "full") if a != b
    }
    assert {r["seed"] for r in rows} == {POOLED}


def test_swapped_conditions_mirror_the_interval(tmp_path):
    rows = difference_rows(read_experiments([write(tmp_path, scattered(0))]))
    one = only(rows, condition="base_mlp", reference="raw", measure="mean_ce")
    other = only(rows, condition="no_delta", reference="raw", measure="mean_ce")
    assert one["estimate"] != other["estimate"]
    back = only(rows, condition="raw", reference="no_delta", measure="mean_ce")
    ends = [-back[k] for k in ("estimate", "ci_high", "ci_low")]
    assert [other[k] for k in ("estimate", "ci_low", "ci_high")] == pytest.approx(ends)


def test_identical_conditions_differ_by_nothing_and_rates_keep_a_width(tmp_path):
    calls = dict.fromkeys(CORNERS, range(N))
    same = dict.fromkeys(CORNERS, BASE_NLL)
    (experiment,) = read_experiments([write(tmp_path, same, calls)])
    for row in difference_rows([experiment]):
        assert row["estimate"] == 0 and row["verdict"] == NO_DIFFERENCE
        ends = (row["ci_low"], row["ci_high"])
        if row["measure"].endswith("_rate"):
            assert row["interval"] == "newcombe" and ends == newcombe_paired(N, 0, 0, 0)
        else:
            assert row["interval"] == "bootstrap" and ends == (0, 0)
    rows, _ = split_rows([experiment])
    share = part(rows, "gap_share")
    assert np.isnan(share["estimate"]) and share["verdict"] == UNDEFINED


def test_rates_that_all_flip_get_newcombes_interval(tmp_path):
    calls = {"raw": range(N), "no_delta": (), "full": (0, 1, 2)}
    rows = difference_rows(read_experiments([write(tmp_path, shifted(no_delta=0, full=0), calls)]))
    where = {"reference": "raw", "measure": "tool_call_rate"}
    flipped = only(rows, condition="no_delta", **where)
    assert (flipped["estimate"], flipped["interval"], flipped["verdict"]) == (-1, "newcombe", "")
    assert (flipped["ci_low"], flipped["ci_high"]) == newcombe_paired(0, 0, N, 0)
    half = only(rows, condition="full", **where)
    assert (half["estimate"], half["interval"]) == (-0.5, "bootstrap")
    assert half["ci_low"] < -0.5 < half["ci_high"]


def test_parts_of_the_split_by_hand(tmp_path):
    nlls = shifted(base_mlp=0.25, dictionary_error=0.125, no_delta=0.5)
    calls = {"raw": range(N), "dictionary_error": range(N), "base_mlp": (), "no_delta": ()}
    rows, skipped = split_rows(read_experiments([write(tmp_path, nlls, calls)]))
    assert skipped == []
    expected = {
        "total": 0.5,
        "finetuning": (0.25 + 0.375) / 2,
        "dictionary_error": (0.125 + 0.25) / 2,
        "interaction": 0.5 - 0.125 - 0.25,
        "gap_share": 0.625,
    }
    for name, value in expected.items():
        row = part(rows, name)
        assert (row["estimate"], row["ci_low"], row["ci_high"]) == pytest.approx((value,) * 3)
    # Every call is finetuning's: each half of its part is a difference of -1 on all examples.
    low, high = newcombe_paired(0, 0, N, 0)
    called = part(rows, "finetuning", "tool_call_rate")
    assert (called["estimate"], called["ci_low"], called["ci_high"]) == pytest.approx(
        (-1, low, high)
    )
    error = part(rows, "dictionary_error", "tool_call_rate")
    assert (error["estimate"], error["verdict"]) == (0, NO_DIFFERENCE)
    share = part(rows, "gap_share", "tool_call_rate")
    assert (share["estimate"], share["interval"]) == (1, "newcombe")
    assert (share["ci_low"], share["ci_high"]) == pytest.approx((high / low, low / high))


def test_parts_sum_to_the_total_for_every_measure_and_seed(tmp_path):
    rng = np.random.default_rng(5)
    folders = []
    for seed in ("1", "2"):
        calls = {name: np.flatnonzero(rng.random(N) < 0.5) for name in CORNERS}
        folder = tmp_path / seed / "controls"
        folders.append(write(folder, scattered(int(seed)), calls, prompts=seed))
    rows, _ = split_rows(read_experiments(folders))
    measures = {row["measure"] for row in rows}
    assert measures == {
        "mean_ce",
        "mean_kl",
        "call_logprob",
        "tool_call_rate",
        "math_correct_rate",
    }
    for measure in measures:
        for seed in (POOLED, "1", "2"):
            total, mlp, error, both = (
                part(rows, name, measure, seed)["estimate"]
                for name in ("total", "finetuning", "dictionary_error", "interaction")
            )
            assert mlp + error == pytest.approx(total, rel=0, abs=1e-15)
            alone = {r["condition"]: r["estimate"] for r in _to_raw(folders, measure, seed)}
            assert mlp == pytest.approx(alone["base_mlp"] + both / 2)
            assert error == pytest.approx(alone["dictionary_error"] + both / 2)


def _to_raw(folders, measure, seed):
    rows = difference_rows(read_experiments(folders))
    wanted = ("raw", measure, seed)
    return [r for r in rows if (r["reference"], r["measure"], r["seed"]) == wanted]


def test_pooling_seeds_is_the_mean_and_the_range_by_hand(tmp_path):
    shifts = {"1": 0.5, "2": -0.25, "3": 1.25}
    folders = [
        write(tmp_path / seed / "controls", shifted(no_delta=shift), prompts=seed)
        for seed, shift in shifts.items()
    ]
    rows = difference_rows(read_experiments(folders))
    mine = [r for r in rows if (r["reference"], r["measure"]) == ("raw", "mean_ce")]
    assert [r["seed"] for r in mine] == [POOLED, "1", "2", "3"]
    assert [r["estimate"] for r in mine] == pytest.approx([0.5, 0.5, -0.25, 1.25])
    pooled = mine[0]
    assert (pooled["seed_min"], pooled["seed_max"]) == pytest.approx((-0.25, 1.25))
    assert pooled["n_examples"] == 3 * N
    assert pooled["interval"] == "t"
    half_width = 4.30265273 * np.std([0.5, -0.25, 1.25], ddof=1) / 3**0.5
    ends = (pooled["ci_low"], pooled["ci_high"])
    assert ends == pytest.approx((0.5 - half_width, 0.5 + half_width))
    assert pooled["verdict"] == NO_DIFFERENCE


def no_delta_to_raw(folders, measure="mean_ce"):
    rows = difference_rows(read_experiments(folders))
    return [
        r
        for r in rows
        if (r["condition"], r["reference"], r["measure"]) == ("no_delta", "raw", measure)
    ]


def test_seeds_that_differ_in_sign_are_told_where_the_interval_leaves_out_0(tmp_path):
    shifts = [1.0 + 0.001 * i for i in range(40)] + [-0.001]
    folders = [
        write(tmp_path / str(i) / "controls", shifted(no_delta=shift))
        for i, shift in enumerate(shifts)
    ]
    pooled = no_delta_to_raw(folders)[0]
    assert pooled["ci_low"] > 0
    assert pooled["verdict"] == "seeds differ in sign"


def test_within_a_seed_wordings_are_drawn_first(tmp_path, monkeypatch):
    """Three wordings of two examples each: an interval by hand, and wider than that of six examples."""
    (alone,) = no_delta_to_raw([write(tmp_path / "alone", scattered(4))])
    monkeypatch.setattr(f"{__name__}.WORDINGS", ("x", "x", "y", "y", "z", "z"))
    folder = write(tmp_path / "grouped", scattered(4))
    (row,) = no_delta_to_raw([folder])
    nlls, n_tokens = scattered(4), np.array(N_TOKENS)
    difference = np.array(nlls["no_delta"]) - nlls["raw"]
    counts = bootstrap_counts("xxyyzz")
    resampled = (counts @ difference) / (counts @ n_tokens)
    ends = tuple(np.quantile(resampled, [0.025, 0.975]))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(ends)
    assert row["estimate"] == pytest.approx(alone["estimate"])
    assert row["ci_high"] - row["ci_low"] != pytest.approx(
        alone["ci_high"] - alone["ci_low"], rel=0.01
    )


def test_a_wording_counts_as_one_example_where_nothing_varies(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.WORDINGS", ("x",) * 3 + ("y",) * 3)
    calls = {"raw": range(N), "no_delta": ()}
    (row,) = no_delta_to_raw([write(tmp_path, shifted(no_delta=0), calls)], "tool_call_rate")
    assert (row["estimate"], row["interval"]) == (-1, "newcombe")
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(newcombe_paired(0, 0, 2, 0))


def test_seeds_that_agree_to_the_last_bit_keep_their_own_width(tmp_path):
    folders = [write(tmp_path / seed / "controls", scattered(4)) for seed in ("1", "2")]
    pooled, first, second = no_delta_to_raw(folders)
    assert pooled["interval"] == "bootstrap"
    for end in ("estimate", "ci_low", "ci_high"):
        assert pooled[end] == first[end] == second[end]


def test_measures_without_examples_are_left_out(tmp_path):
    folder = write(tmp_path, shifted(no_delta=1), subsets=("tool", "copy"))
    rows = difference_rows(read_experiments([folder]))
    shown = {
        subset: {r["measure"] for r in rows if r["subset"] == subset} for subset in ("tool", "copy")
    }
    assert shown["tool"] - shown["copy"] == {"math_correct_rate"}
    assert shown["copy"] - shown["tool"] == {"exact_copy_rate"}


def test_dictionaries_that_differ_in_their_target_only_stay_apart(tmp_path):
    shared = {"layer": "all", "alpha": None, "d_new": 32, "percentile": 0.5}
    columns = [
        {**shared, "condition": "no_delta", "target": target}
        for target in ("residual", "mlp_difference")
    ]
    write(tmp_path, shifted(no_delta=1), columns=columns)
    rows, skipped = split_rows(read_experiments([tmp_path]))
    assert rows == []
    assert skipped == [
        f"no split for layer all, d_new 32, percentile 0.5, target {target}: the experiment lacks "
        "dictionary_error and base_mlp"
        for target in ("residual", "mlp_difference")
    ]


def test_files_and_print_are_the_same_each_time(tmp_path):
    folders = [
        write(tmp_path / seed / "controls", scattered(int(seed)), prompts=seed)
        for seed in ("1", "2")
    ]
    one, other = (write_comparisons(folders, tmp_path / out) for out in ("a", "b"))
    assert one.replace("/a", "/b") == other
    names = {path.name for path in (tmp_path / "a").iterdir()}
    tables = {"differences.csv", "split.csv", "comparisons.txt"}
    assert names == tables | {"controls.png", "split.png"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    row = only(
        read_metrics(tmp_path / "a" / "split.csv"), part="total", measure="mean_ce", seed="2"
    )
    nlls = scattered(2)
    assert float(row["estimate"]) == pytest.approx(
        (nlls["no_delta"].sum() - nlls["raw"].sum()) / 20, rel=1e-5
    )
    assert NO_DIFFERENCE in one and UNDEFINED in one and "seeds" in one


def test_the_most_layers_at_once_stand_for_the_model(tmp_path):
    """As in a study of some of a model's layers, which has no group of all."""
    shared = {"alpha": None, "d_new": 32, "percentile": 0.5, "target": "residual"}
    columns = [
        {"layer": layer, "condition": name} | shared
        for layer in ("0", "0+2")
        for name in CORNERS[1:]
    ]
    nlls = shifted(no_delta=1, base_mlp=0.5, dictionary_error=0.5)
    folder = write(tmp_path / "exp2a", nlls, columns=columns)
    shown = write_comparisons([folder], tmp_path / "out")
    heads = [line for line in shown.splitlines() if line.startswith("mean_ce, ")]
    assert len(heads) == 1 and "0+2" in heads[0]
    assert (tmp_path / "out" / "controls.png").is_file()


def test_an_experiment_without_the_split_or_its_reference(tmp_path):
    folder = write(tmp_path / "exp2b", shifted(base_mlp=1))
    shown = write_comparisons([folder], tmp_path / "out")
    assert "the experiment lacks dictionary_error and no_delta" in shown
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"differences.csv", "split.csv", "comparisons.txt"}
    assert {r["reference"] for r in read_metrics(tmp_path / "out" / "differences.csv")} == {"raw"}


def test_folders_that_cannot_be_compared(tmp_path):
    one = write(tmp_path / "1", shifted(no_delta=1))
    other = write(tmp_path / "2", shifted(no_delta=1, full=0))
    empty = tmp_path / "3"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no .*3/generations\.jsonl"):
        read_experiments([one, empty])
    with pytest.raises(ValueError, match=r"2 and .*1 hold different conditions: .* has full \("):
        read_experiments([one, other])
    with pytest.raises(ValueError, match="given twice"):
        read_experiments([one, one])
    lines = (one / "generations.jsonl").read_text().splitlines(keepends=True)
    (one / "generations.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"no_delta \(layer all.*answered other examples of tool"):
        read_experiments([one])
    for line, why in (("{bad", "not a JSON object"), ("[]", "has no 'layer'")):
        (one / "generations.jsonl").write_text(f"{lines[0]}{line}\n")
        with pytest.raises(ValueError, match=rf"generations\.jsonl, line 2.* {why}"):
            read_experiments([one])
    (one / "generations.jsonl").write_text("".join(lines[:N]))
    with pytest.raises(ValueError, match=r"metrics\.csv and generations\.jsonl hold different"):
        read_experiments([one])


def test_help_imports_nothing_slow():
    check = (
        "import sys, delta_transcoders.report.comparisons as c; sys.argv[1:] = ['--help']\n"
        "try: c.main()\nexcept SystemExit: print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert shown.stdout.endswith("[]\n")
