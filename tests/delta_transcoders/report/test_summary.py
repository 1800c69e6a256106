"""What a study's summary says of results that are bare."""

import json

from delta_transcoders.files import write_json
from delta_transcoders.report.summary import reconstruction_table, times_line, violations
from delta_transcoders.report.tables import write_metrics


def test_deltas_without_measurements_have_a_line_each(tmp_path):
    """An imported delta's config.json holds no measurements."""
    measured = {"fvu_base": 0.5, "fvu_full": 0.125, "l0_delta": 7.0}
    for layer, found in (("0", {}), ("1", measured)):
        folder = tmp_path / "delta" / f"layer_{layer}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"layer": int(layer), "measured": found}))
    header, bare, full = reconstruction_table(tmp_path).splitlines()
    assert header.split() == ["layer", *measured, "fvu_base/fvu_full"]
    assert bare.split() == ["0"] and full.split() == ["1", "0.500", "0.125", "7.00", "4.00"]


def test_bounds_that_results_break_are_named(tmp_path):
    row = {"condition": "raw", "subset": "a", "mean_ce": 0.25, "polite_rate": None}
    write_metrics(tmp_path / "behaviour", [row])
    where = {"condition": "raw"}
    rules = {"mean_ce": [0.2, 0.3], "polite_rate": [0, 1], "kind_rate": [0, 1]}
    assert violations(tmp_path, {"behaviour": [{"where": where} | rules]}) == [
        f"behaviour {where}: polite_rate  not in [0, 1]",
        "behaviour: no column kind_rate",
    ]
    missing = {"where": {"condition": "full"}, "mean_ce": [0, 1]}
    assert violations(tmp_path, {"behaviour": [missing]}) == [
        "behaviour: no row with {'condition': 'full'}"
    ]


def test_times_are_those_of_the_study_s_record(tmp_path):
    assert times_line(tmp_path) == ""
    runs = {
        "a": {"done": {"seconds": 60.4}},
        "b": {"started": {}},
        "c": {"done": {"seconds": 30.0}},
    }
    write_json(tmp_path / "study.json", {"stages": runs})
    assert times_line(tmp_path) == "time: a 60 s, c 30 s; together 1.5 min"
