"""Where a stage's progress is shown: on a terminal one line, of a study's stage in its log otherwise."""

import logging

import pytest
from lightning import Trainer

from callbacks.progress import StageProgress
from delta_transcoders import console
from delta_transcoders.files import RUN


@pytest.fixture
def progress(monkeypatch):
    monkeypatch.delenv(RUN, raising=False)
    return StageProgress()


def test_by_itself_lines_stay(progress, capsys):
    progress._show("batch 3 of 4")
    assert capsys.readouterr().err == "  0:00 · batch 3 of 4\n"


def test_in_a_study_they_go_to_the_log(progress, capsys, caplog, monkeypatch):
    monkeypatch.setenv(RUN, "1")
    with caplog.at_level(logging.INFO):
        progress._show("batch 3 of 4")
    assert capsys.readouterr().err == "" and "batch 3 of 4" in caplog.text


@pytest.mark.parametrize(("run", "end"), [("", "\n"), ("1", "\r")])
def test_on_a_terminal_the_line_changes_and_goes_with_a_study_s_stage(
    progress, capsys, monkeypatch, run, end
):
    monkeypatch.setenv(RUN, run)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress._show("batch 3 of 4")
    shown = capsys.readouterr().err
    assert shown.startswith("\r  0:00 · batch 3 of 4") and not shown.endswith("\n")
    progress.teardown(Trainer(logger=False, enable_progress_bar=False), None, "test")
    assert capsys.readouterr().err.endswith(end)


def test_only_warnings_of_a_study_s_stage_are_shown(monkeypatch):
    for run, level in (("", logging.INFO), ("1", logging.WARNING)):
        monkeypatch.setenv(RUN, run)
        monkeypatch.setattr(console, "_buffer", None)
        ours, root = logging.getLogger("delta_transcoders"), logging.getLogger()
        before = list(ours.handlers), list(root.handlers)
        try:
            console.start()
            (added,) = [handler for handler in ours.handlers if handler not in before[0]]
            assert added.level == level
        finally:
            ours.handlers, root.handlers = before
