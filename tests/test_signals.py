"""A short form of `make signals`: stages as processes of their own, each ended in another phase."""

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluate
import train
from benchmarks import signals_table
from benchmarks.signals_table import STAGES


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the stages below read, and their results."""
    folder = tmp_path_factory.mktemp("signals") / "prepared"
    for name, stage in STAGES.items():
        if name not in ("behaviour", "corrections", "ranking"):
            script, *args = stage.command(folder)
            {"train.py": train, "evaluate.py": evaluate}[script].main(args)
    return folder


@pytest.mark.parametrize(
    ("stage", "phase", "signum"),
    [
        ("finetune", "fit", signal.SIGTERM),
        ("base_transcoders", "validation", signal.SIGINT),
        ("delta", "export", signal.SIGTERM),
        ("activations", "predict", signal.SIGKILL),
        ("exp2a", "test", signal.SIGINT),
    ],
)
def test_a_signal_ends_a_stage_in_order(prepared, tmp_path, stage, phase, signum):
    row = signals_table.interrupt(STAGES[stage], phase, signum, prepared, tmp_path)
    assert signals_table.problems(row) == []
    shutil.rmtree(tmp_path)


TWO = {"trainer.devices": 2, "trainer.strategy": "ddp", "trainer.max_steps": 400}
PLANTED = """
import os, signal
from pathlib import Path
rank, what, folder = int(os.environ.get("LOCAL_RANK", 0)), os.environ["WHAT"], Path(__file__).parent
(folder / f"pid{rank}").write_text(str(os.getpid()))
from delta_transcoders import command
from lightning_modules.finetune import Finetune
step = Finetune.training_step
def training_step(self, batch, batch_idx):
    if batch_idx == 2:
        if what == f"fail {rank}":
            raise RuntimeError(f"planted in process {rank}")
        if what == "stop" and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    return step(self, batch, batch_idx)
Finetune.training_step = training_step
import train
command.run(train.main, is_stage=True)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stop", "fail 0", "fail 1"])
def test_several_processes_end_together(prepared, tmp_path, monkeypatch, what):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    study = shutil.copytree(prepared, tmp_path / "study")
    before = signals_table.results(study)
    (tmp_path / "planted.py").write_text(PLANTED)
    stage = STAGES["finetune"]
    _, *options = replace(stage, options=stage.options | TWO).command(study)
    monkeypatch.setenv("WHAT", what)
    ended = signals_table.run([str(tmp_path / "planted.py"), *options])
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(is_alive, pids))
    assert signals_table.results(study) == before
    if what == "stop":
        assert ended.returncode == 143
        assert "--ckpt_path" in ended.stderr.splitlines()[-1]
        assert (study / "logs/finetune/checkpoints/stopped.ckpt").is_file()
    else:
        assert ended.returncode not in (0, 143)
        assert f"planted in process {what[-1]}" in ended.stderr
