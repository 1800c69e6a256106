"""Rows of tables that must agree."""

from pathlib import Path

import pytest
import yaml

from delta_transcoders.report.identities import check_identities
from delta_transcoders.report.tables import write_metrics

ROOT = Path(__file__).parents[3]


def row(condition, layer="", **measures):
    return {
        "condition": condition,
        "layer": layer,
        "subset": "a",
        "dce": 0.0,
        "mean_kl": 0.0,
        **measures,
    }


def test_identities_that_do_not_hold_are_named(tmp_path):
    write_metrics(tmp_path / "exp2a", [row("raw", mean_ce=0.25), row("full", "all", mean_ce=0.5)])
    write_metrics(tmp_path / "exp2b", [row("alpha_1.00", "all", mean_ce=0.50001, right_rate=1.0)])
    full = {"table": "exp2a", "layer": "all", "condition": "full"}
    alpha = {"table": "exp2b", "layer": "all", "condition": "alpha_1.00"}
    raw = {"table": "exp2a", "condition": "raw"}
    nowhere = {"table": "planted/none/exp2a", "condition": "raw"}
    held = check_identities(tmp_path, {"same": [[full, alpha]], "zero": [raw, nowhere]})
    assert held == ([], 2, 1)
    broken = check_identities(tmp_path, {"same": [[full, raw, alpha]], "zero": [full]})
    assert broken == (
        ["exp2a all full = exp2a raw = exp2b all alpha_1.00: a: mean_ce 0.5 and 0.25"],
        1,
        0,
    )
    write_metrics(tmp_path / "exp2a", [row("raw", dce=0.1)])
    broken = check_identities(tmp_path, {"zero": [raw]})
    assert broken == (["exp2a raw: a: dce is 0.1"], 0, 0)
    with pytest.raises(ValueError, match=r"exp2a has no row with .*'full'"):
        check_identities(tmp_path, {"zero": [full]})
    with pytest.raises(ValueError, match="unknown key 'bounds': expected same or zero"):
        check_identities(tmp_path, {"bounds": []})


def test_the_shipped_identities_can_be_read(tmp_path):
    expected = yaml.safe_load((ROOT / "configs/tiny/expected.yaml").read_text())
    n = len(expected["same"]) + len(expected["zero"])
    assert check_identities(tmp_path, expected) == ([], 0, n)
