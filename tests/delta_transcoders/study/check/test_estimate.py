"""From what a pass took to what a study takes."""

import shutil
from types import SimpleNamespace

import pytest

from delta_transcoders.study.check import estimate
from delta_transcoders.study.check.estimate import Estimate, check_fits, estimates, table
from delta_transcoders.study.check.passing import Passed
from delta_transcoders.study.check.small import Small
from delta_transcoders.study.records import Record

NOTHING = {"batches": 0, "batch_seconds": 0.0, "validations": 0, "validation_seconds": 0.0}
NOTHING |= {"loop_seconds": 0.0, "peak_bytes": int(1e9), "peak_device_bytes": None}


def passed(small: Small, seconds: float, added: float = 0.0, cache: str = "", **measured) -> Passed:
    stage = SimpleNamespace(study="runs", name="x", takes={})
    config = SimpleNamespace(values={"data.cache": cache})
    step = SimpleNamespace(stage=stage, config=config)
    return Passed(step, small, seconds, 10.0 + added, added, NOTHING | measured if measured else {})


def of(**stages: Passed) -> list[Estimate]:
    graph = SimpleNamespace(maker=lambda path: path if path in stages else "")
    return estimates(stages, graph)


def test_prompts():
    (found,) = of(exp=passed(Small("evaluation", {}, factor=60), 20.0, loop_seconds=5.0))
    assert found == Estimate("exp", 20.0, 20 + 59 * 5, 10.0, 1e9, None)


def test_a_module_takes_what_it_took():
    (found,) = of(pages=passed(Small("evaluation", {}), 3.0))
    assert found == Estimate("pages", 3.0, 3.0, 10.0, None, None)


def test_steps_and_validations():
    small = Small("training", {}, batches=400, validations=4, held_out=8)
    measured = {"batches": 4, "batch_seconds": 0.5, "validations": 1, "validation_seconds": 2.0}
    (found,) = of(finetune=passed(small, 30.0, **measured))
    # 396 more batches, and four validations of eight times as many examples in place of one.
    assert found.seconds == 30 + 396 * 0.5 + (4 * 8 - 1) * 2


def test_a_cache_and_what_is_trained_on_it():
    capture = passed(Small("capture", {}, factor=50), 10.0, loop_seconds=4.0)
    small = Small(
        "from_cache",
        {},
        validations=10,
        tokens_per_batch=500,
        passes=2,
        buffer_tokens=4000,
    )
    measured = {"batches": 20, "batch_seconds": 0.1, "validations": 1, "validation_seconds": 1.0}
    delta = passed(small, 9.0, added=3.0, cache="capture", **measured)
    for one in (capture, delta):
        one.tokens, one.cache_megabytes = 1000, 8.0
    captured, trained = of(capture=capture, delta=delta)
    assert captured == Estimate("capture", 10.0, 10 + 49 * 4, 10.0 * 50, 1e9, None)
    # Two passes over 50,000 tokens in batches of 500; ten validations of 50 times as many.
    assert trained.seconds == pytest.approx(9 + (200 - 20) * 0.1 + (10 * 50 - 1) * 1.0)
    assert trained.megabytes == 10 + 3 * 50
    # 3,000 more tokens of 8 kB each fit into the buffer.
    assert trained.peak == 1e9 + 3000 * 8000


def test_the_table_says_what_stages_took(tmp_path):
    steps = {"a": SimpleNamespace(stage=SimpleNamespace(study="runs", name="a", takes={}))}
    record = Record(str(tmp_path), "x.yaml")
    record.stages["a"] = {"done": {"seconds": 44.4, "megabytes": 2}}
    shown = table([Estimate("a", 3, 50, 7, 2.5e9)], SimpleNamespace(steps=steps), {"runs": record})
    assert shown.splitlines()[1].split() == ["a", "3", "50", "44", "2.5", "7"]
    assert shown.splitlines()[-1].split() == ["together", "3", "50", "7"]


def test_what_the_machine_has(monkeypatch, tmp_path):
    monkeypatch.setattr(estimate, "memory_bytes", lambda: 8_192_000_000)
    free = shutil.disk_usage(tmp_path)._replace(free=3e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    said = check_fits([Estimate("a", 1, 1800, 500, 4e9), Estimate("b", 1, 1800, 9)], str(tmp_path))
    assert said == "4.0 GB of 8 GB of memory (a), 0.5 of 3 GB of disk, 1.0 hours"
    with pytest.raises(OSError, match=r"a needs about 9.0 GB of memory, this machine has 8.2: few"):
        check_fits([Estimate("a", 1, 1, 1, 9e9)], str(tmp_path))
    with pytest.raises(OSError, match=r"needs about 4.0 GB of disk, 3.0 GB are free: make room"):
        check_fits([Estimate("a", 1, 1, 4000, 1e9)], str(tmp_path))
