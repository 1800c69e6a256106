"""A line for each thing that is looked at."""

import re
import warnings

import pytest

from delta_transcoders.console import StudyWarning
from delta_transcoders.study.check.lines import Lines


def test_marks_and_what_was_found(capsys):
    lines = Lines()
    with lines.look("a") as say:
        say("1 GB")
        say("whole")
        warnings.warn("odd", StudyWarning, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)
    with lines.look("b") as say:
        say("seen")
        raise ValueError("no b: give one")
    shown = re.sub(r"\(\d+\.\d s\)", "(t)", capsys.readouterr().out).splitlines()
    assert shown == ["  ✓ a: 1 GB; whole; note: odd  (t)", "  ✗ b: seen; no b: give one  (t)"]
    assert lines.n_failed == 1


def test_a_fault_of_our_own_is_not_hidden():
    with pytest.raises(KeyError), Lines().look("a"):
        raise KeyError("b")
