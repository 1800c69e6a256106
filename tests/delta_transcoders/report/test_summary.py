"""What a study's summary says of results that are bare."""

import json

from delta_transcoders.report.summary import reconstruction_table


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
