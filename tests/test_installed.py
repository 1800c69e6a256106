"""The wheel, installed into an environment of its own and run in a folder that is not the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest
import torch

from delta_transcoders.command import find_config
from delta_transcoders.tasks.examples import Examples
from lightning_modules import commands

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGES = ("delta_transcoders", "lightning_modules", "datamodules", "callbacks")
SLOW = (
    "torch",
    "lightning",
    "transformers",
    "transformer_lens",
    "jsonargparse",
    "peft",
    "matplotlib",
)


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
    hidden = ("PYTHONPATH", "DELTA_TRACEBACK")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=check,
        timeout=300,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """`delta-transcoders` of a fresh environment that sees this one's packages, but for the project."""
    source, dist, env = (tmp_path_factory.mktemp(name) for name in ("source", "dist", "env"))
    for name in (*PACKAGES, "configs"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    run(*(*pip, "wheel", "--no-build-isolation", *offline, "--wheel-dir", dist, source), cwd=source)
    venv.create(env)
    (wheel,) = dist.glob("*.whl")
    run(*(*pip, "--python", env / "bin/python", "install", *offline, wheel), cwd=dist)
    (packages,) = env.glob("lib/python*/site-packages")
    # Its own `.pth` files are not read there, so that a checkout installed by one stays out.
    (packages / "the_other_environment.pth").write_text(sysconfig.get_paths()["purelib"])
    return env / "bin" / "delta-transcoders"


def test_every_package_is_the_wheel_s(program, tmp_path):
    code = "".join(f"import {name}; print({name}.__file__)\n" for name in PACKAGES)
    shown = run(program.with_name("python"), "-c", code, cwd=tmp_path).stdout.splitlines()
    assert all(Path(path).is_relative_to(program.parents[1]) for path in shown), shown


def test_the_overview_is_instant(program, tmp_path):
    times = []
    for _ in range(5):  # the best of them: other processes may be busy
        started = time.perf_counter()
        shown = run(program, "--help", cwd=tmp_path).stdout
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5
    assert run(program, cwd=tmp_path).stdout == shown
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted([*commands.MODULES, "train", "evaluate"])


@pytest.mark.parametrize("name", ["train", "evaluate", *commands.MODULES])
def test_every_command_explains_itself_without_slow_imports(name, tmp_path):
    code = (
        f"import sys; sys.argv = ['delta-transcoders', {name!r}, '--help']\n"
        "from lightning_modules.commands import main\n"
        "try: main()\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        f"print(sorted(set({SLOW}) & set(sys.modules)))"
    )
    *shown, imported = run(sys.executable, "-c", code, cwd=ROOT).stdout.splitlines()
    assert re.match(rf"usage: .*\b{name}\b", shown[0])
    assert imported == "[]"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["exprot"], "there is no command 'exprot'; did you mean 'export'?"),
        (["x"], "there is no command 'x'; known are study, check, inspect, serve, "),
        (
            ["train", "--config", "configs/tiny/absent.yaml"],
            "no configuration file 'configs/tiny/absent.yaml' (see `delta-transcoders train --help`)",
        ),
        (["evaluate"], "give a configuration: delta-transcoders evaluate --config FILE"),
    ],
)
def test_what_cannot_run_is_one_short_line(program, tmp_path, args, message):
    ended = run(program, *args, cwd=tmp_path, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_a_stage_of_two_processes_and_an_export(program, tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    options = {
        "config": "configs/tiny/base_model.yaml",
        "study": "mine",
        "model.d_model": 32,
        "model.n_layers": 2,
        "model.d_mlp": 64,
        "data.vocab_size": 400,
        "data.n_documents": 48,
        "data.n_validation": 8,
        "trainer.max_steps": 1,
        "trainer.val_check_interval": 1,
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "trainer.enable_progress_bar": "false",
    }
    args = [f"--{key}={value}" for key, value in options.items()]
    run(program, "train", *args, cwd=tmp_path)
    done = json.loads((tmp_path / "mine/base_model/done.json").read_text())
    assert done["command"] == " ".join(["delta-transcoders train", *args])
    logs = tmp_path / "mine/logs/base_model"
    assert {path.name for path in logs.glob("*console.txt")} == {
        "console.txt",
        "rank_1_console.txt",
    }
    run(program, "export", "--run=mine", "--format=base_model", "--out=shared", cwd=tmp_path)
    assert (tmp_path / "shared/model.safetensors").is_file()
    assert (tmp_path / "shared/README.md").is_file()


def test_a_study_runs_the_installed_commands(program, tmp_path):
    options = {
        "model.d_model": 32,
        "model.n_layers": 1,
        "data.vocab_size": 400,
        "data.n_documents": 48,
        "data.n_validation": 8,
        "trainer.max_steps": 1,
        "trainer.val_check_interval": 1,
    }
    args = ["study", "--config=configs/tiny/study.yaml", "--study=mine", "--until=base_model"]
    args += [f"--base_model.{key}={value}" for key, value in options.items()]
    shown = run(program, *args, cwd=tmp_path).stdout
    assert (
        "[1/1] base_model: delta-transcoders train --config configs/tiny/base_model.yaml" in shown
    )
    assert (tmp_path / "mine/base_model/model.safetensors").is_file()
    assert "mine: nothing to do" in run(program, *args, cwd=tmp_path).stdout
    done = json.loads((tmp_path / "mine/base_model/done.json").read_text())
    assert done["command"].startswith("delta-transcoders train --config configs/tiny/base_model")
    ended = run(program, "summary", "mine", cwd=tmp_path, check=False)
    assert (
        "results yet; its study file makes them: delta-transcoders study --config" in ended.stderr
    )
    # Its templates are the checkout's alone.
    findings = ("study", "--config=configs/tiny/study_findings.yaml", "--dry-run")
    ended = run(program, *findings, cwd=tmp_path, check=False)
    assert ended.returncode == 2
    assert "findings reads ./docs/findings.md.j2, which is not there" in ended.stderr


def test_configurations_and_their_examples_are_found_without_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Path(find_config("configs/tiny/lora.yaml"))
    assert found.read_bytes() == (ROOT / "configs/tiny/lora.yaml").read_bytes()
    assert found.with_name("defaults.yaml").is_file()
    task = Examples(jsonl="configs/tasks/lines_as_json.jsonl", judge="json")
    assert len(task.read(task.jsonl)) > 500
    for path in ("configs/tiny/absent.yaml", "export.py", "lora.yaml"):
        assert find_config(path) == path
    mine = tmp_path / "configs/tiny/lora.yaml"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert find_config("configs/tiny/lora.yaml") == "configs/tiny/lora.yaml"
