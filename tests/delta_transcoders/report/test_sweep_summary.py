"""The summary of a sweep, on rows made by hand."""

import pytest

from delta_transcoders.report.sweep_summary import COLUMNS, summarise, write_summary
from delta_transcoders.report.tables import read_metrics, write_metrics


def row(d_new, layer, subset, condition, n_tokens, dce, cos, l2):
    return {
        "layer": layer,
        "subset": subset,
        "condition": condition,
        "d_new": d_new,
        "percentile": 0.5,
        "n_tokens": n_tokens,
        "dce": dce,
        "mean_cos": cos,
        "mean_l2": l2,
    }


def rows_of(d_new, shift):
    """Layer 0: full (1·10 + 4·30)/40 = 3.25; layer 1: (2·10 + 0·30)/40 = 0.5; each plus the shift."""
    full = [("0", "tool", 10, 1), ("0", "copy", 30, 4), ("1", "tool", 10, 2), ("1", "copy", 30, 0)]
    base = [(layer, subset, n, 8) for layer, subset, n, _ in full]
    rows = [
        row(d_new, layer, subset, "full", n, dce + shift, dce / 8, dce / 4)
        for layer, subset, n, dce in full
    ]
    rows += [row(d_new, *where, "no_delta", n, dce, 0.25, 2) for *where, n, dce in base]
    return [*rows, row(d_new, "all", "tool", "full", 10, 99, float("nan"), float("nan"))]


@pytest.fixture
def folder(tmp_path):
    raw = {"layer": "", "subset": "tool", "condition": "raw", "n_tokens": 10, "dce": 0.0}
    write_metrics(tmp_path, [raw, *rows_of(64, 1.0), *rows_of(8, 0.0)])
    return tmp_path


def test_means_over_layers_and_over_subsets_by_their_tokens(folder):
    write_summary(folder)
    header, *_ = (folder / "summary.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    small, large = (
        {k: float(v) for k, v in line.items()} for line in read_metrics(folder / "summary.csv")
    )
    assert small == {
        "mean_dce_full": 1.875,
        "max_dce_full": 3.25,
        "mean_dce_base": 8,
        "mean_cos_full": 0.234375,
        "mean_cos_base": 0.25,
        "mean_l2_full": 0.46875,
        "mean_l2_base": 2,
        "d_new": 8,
        "percentile": 0.5,
    }
    assert large == small | {"mean_dce_full": 2.875, "max_dce_full": 4.25, "d_new": 64}
    assert (folder / "plots" / "sweep_mean_cos.png").is_file()
    assert (folder / "plots" / "sweep_mean_dce.png").is_file()


def test_one_subset_alone(folder):
    small, _ = summarise(read_metrics(folder / "metrics.csv"), ["tool"])
    assert (small["mean_dce_full"], small["max_dce_full"]) == (1.5, 2)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda r: r["layer"] in ("", "all"), "no rows of single layers"),
        (lambda r: (r["layer"], r["d_new"]) != ("1", "64"), "d_new 64, percentile 0.5 has no row"),
        (lambda r: r["condition"] != "no_delta", "both conditions are needed"),
    ],
)
def test_rows_that_cannot_be_compared(folder, keep, message):
    rows = [r for r in read_metrics(folder / "metrics.csv") if keep(r)]
    with pytest.raises(ValueError, match=message):
        summarise(rows)


def test_what_was_not_measured_is_named(folder):
    rows = [r | {"mean_l2": "nan"} for r in read_metrics(folder / "metrics.csv")]
    with pytest.raises(ValueError, match="layer 0 has no mean_l2"):
        summarise(rows)
    with pytest.raises(ValueError, match="no rows of the subset 'tol'"):
        summarise(rows, ["tol"])
