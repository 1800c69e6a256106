"""SIGKILL a study at ten random moments: `python benchmarks/study_kills.py STUDY` (or `make study-kills`).

A short finetune and all that comes after are run once undisturbed, from the base model and base dictionaries
of a tiny study. Then the same study is killed, with whatever it has started, at random moments, and
started again each time until it is finished: its tables must be the undisturbed one's.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare_tables

ROOT = Path(__file__).resolve().parent.parent
GIVEN = ("base_model", "base_transcoders")
FILE = f"""
study: undisturbed
include: {ROOT}/configs/tiny/study.yaml
stages:
  base_model: null
  base_activations: null
  base_transcoders: null
  finetune:
    options:
      data.n_train: 1000
      data.n_evaluation: 20
      trainer.max_steps: 60
      trainer.val_check_interval: 15
  delta: {{options: {{data.passes: 1}}}}
"""


def start(folder: Path, study: str) -> subprocess.Popen:
    """In a session of its own, so that all of its processes can be killed."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "study.py"), "--config", "kills.yaml", "--study", study],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def lines_of(process: subprocess.Popen, seconds: float | None = None) -> list[str]:
    """What it prints until it ends, or until it is killed after some seconds."""
    try:
        shown, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        shown, _ = process.communicate()
    return shown.splitlines()


def prepare(folder: Path, source: Path, study: str) -> None:
    for name in GIVEN:
        shutil.copytree(source / name, folder / study / name)


def weights(study: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(study)): path.read_bytes()
        for stage in ("finetune", "delta")
        for path in sorted((study / stage).rglob("*.safetensors"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="a tiny study with its bases, as in runs/tiny")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng, kills, failed = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kills.yaml").write_text(FILE, encoding="utf-8")
        prepare(folder, args.study.resolve(), "undisturbed")
        started = time.perf_counter()
        undisturbed = start(folder, "undisturbed")
        shown = lines_of(undisturbed)
        if undisturbed.returncode:
            sys.exit("\n".join(shown[-20:]))
        whole = time.perf_counter() - started
        print(f"undisturbed: {whole:.0f} s", flush=True)
        while kills < args.kills:
            study = f"killed_{kills}"
            prepare(folder, args.study.resolve(), study)
            resumed = 0
            for _ in range(50):
                after = rng.uniform(0, whole / 4) if kills < args.kills else None
                process = start(folder, study)
                shown = lines_of(process, after)
                resumed += sum(line.startswith("[") and "--ckpt_path" in line for line in shown)
                if process.returncode == 0:
                    break
                if process.returncode != -signal.SIGKILL:
                    sys.exit("\n".join(shown[-20:]))
                kills += 1
                at = next((line for line in reversed(shown) if line.startswith("[")), "the plan")
                print(f"kill {kills}, after {after:.0f} s: {at[:60]}", flush=True)
            print(f"{study}: finished; {resumed} times a training went on from a checkpoint")
            failed += compare_tables.main([str(folder / "undisturbed"), str(folder / study)])
            same = weights(folder / "undisturbed") == weights(folder / study)
            print(f"trained weights: {'the same bit for bit' if same else 'DIFFERENT'}", flush=True)
            failed += not same
    if failed:
        sys.exit("not the same as undisturbed")


if __name__ == "__main__":
    main()
