"""What a study notes of the machine and the code that a stage ran on."""

import re

import pytest

from delta_transcoders.git import git
from delta_transcoders.study import environment as module
from delta_transcoders.study.environment import environment, memory_bytes


def test_what_is_noted(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = environment()
    assert set(found) == {"commit", "cpu", "threads", "versions"}
    assert (
        re.fullmatch(r"[1-9]\d* CPUs( allowed)?, OMP_NUM_THREADS 3", found["threads"])
        and found["cpu"]
    )
    assert re.match(r"python 3\.\d+\.\d+, delta-transcoders \S+, torch ", found["versions"])
    assert re.fullmatch(r"|[0-9a-f]{40}(-dirty)?", found["commit"])


def test_where_nobody_set_threads_there_are_the_cpus_that_are_allowed(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert environment()["threads"] == "2 CPUs allowed"


def test_without_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path)
    assert environment()["commit"] == ""


def test_changed_code_is_noted_and_kept_tables_are_not(monkeypatch, tmp_path):
    def run(*args: str) -> str:
        return git(tmp_path, "-c", "user.name=A", "-c", "user.email=a@b.c", *args)

    monkeypatch.setattr(module, "_CHECKOUT", tmp_path)
    tables = [tmp_path / "docs/results/1/a.csv", tmp_path / "docs/real/results/1/a.csv"]
    for path in (*tables, tmp_path / "code.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    run("init", "--quiet")
    run("add", ".")
    run("commit", "--quiet", "-m", "All")
    commit = run("rev-parse", "HEAD")
    for path in (*tables, tmp_path / "new.txt"):
        path.write_text("2")
    assert environment()["commit"] == commit
    (tmp_path / "code.py").write_text("2")
    assert environment()["commit"] == f"{commit}-dirty"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max\n", 8_192_000_000), ("2000000000\n", 2e9), ("9" * 18, 8_192_000_000)],
)
def test_memory_is_the_machine_s_or_its_container_s(monkeypatch, tmp_path, limit, expected):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2_000_000}
    monkeypatch.setattr(module.os, "sysconf", pages.__getitem__)
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(module, "_CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "none"))
    assert memory_bytes() == expected
