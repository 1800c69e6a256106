"""What a study notes of the machine and the code that a stage ran on."""

import re

from delta_transcoders.study import environment as module
from delta_transcoders.study.environment import environment


def test_what_is_noted(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = environment()
    assert set(found) == {"commit", "cpu", "threads", "versions"}
    assert found["threads"] == "3" and found["cpu"]
    assert re.match(r"python 3\.\d+\.\d+, delta-transcoders \S+, torch ", found["versions"])
    assert re.fullmatch(r"|[0-9a-f]{40}(-dirty)?", found["commit"])


def test_without_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path)
    assert environment()["commit"] == ""
