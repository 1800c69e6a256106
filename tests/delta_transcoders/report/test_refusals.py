"""What the reports say of files that are missing or damaged: one line with the place, exit status 2."""

import subprocess
import sys

import pytest

from delta_transcoders.report.ranking import read_effects
from delta_transcoders.report.tables import read_metrics, write_metrics


def test_metrics_that_are_missing_empty_binary_or_incomplete_are_named(tmp_path):
    path = tmp_path / "metrics.csv"
    with pytest.raises(FileNotFoundError, match=r"no .*metrics\.csv; the stage"):
        read_metrics(path)
    write_metrics(tmp_path, [{"condition": "raw", "mean_ce": 0.5}])
    assert read_metrics(path)[0]["mean_ce"] == "0.5"
    whole = path.read_bytes()
    for content, message in (
        (b"", "has no rows"),
        (b"\xff\xfe", "is not a table"),
        (whole.replace(b"mean_ce", b"mean"), "has no column 'mean_ce'; make it anew"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"metrics\.csv {message}"):
            read_metrics(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{bad", "line 1: not an effect"),
        ('{"layer": 0}', "line 1: not an effect"),
    ],
)
def test_effects_that_are_damaged_are_named(tmp_path, text, message):
    (tmp_path / "effects.jsonl").write_text(text)
    with pytest.raises(ValueError, match=rf"effects\.jsonl.* {message}"):
        read_effects(tmp_path)


@pytest.mark.parametrize("report", ["summary", "html"])
def test_a_damaged_table_is_one_line(tmp_path, report):
    (tmp_path / "behaviour").mkdir()
    (tmp_path / "behaviour" / "metrics.csv").write_text("a,b\n1,2\n")
    command = [sys.executable, "-m", f"delta_transcoders.report.{report}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/behaviour/metrics.csv has no column")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report").exists()
