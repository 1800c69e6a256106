"""Runs `device_checks.py`, which needs a process of its own; and `make gpu` where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no device that is written in Python",
)
def test_every_stage_runs_on_an_emulated_device(pytestconfig):
    checks = Path(__file__).with_name("device_checks.py")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)],
        cwd=pytestconfig.rootpath,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stdout[-20000:] + child.stderr[-2000:]


def test_make_gpu_without_a_gpu_runs_nothing(pytestconfig, tmp_path):
    ready = tmp_path / "ready"  # newer than what the environment is made from
    ready.touch()
    variables = [f"READY={ready}", f"PY={sys.executable}", f"STUDY={tmp_path / 'study'}"]
    done = subprocess.run(
        ["make", "gpu", *variables],
        cwd=pytestconfig.rootpath,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.startswith("no CUDA GPU here")
    assert list(tmp_path.iterdir()) == [ready]
