"""A study of small scripts in place of training: they write what they read, and nothing slow is imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from delta_transcoders import command
from delta_transcoders.study.__main__ import main

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import yaml
from delta_transcoders import files
from delta_transcoders.command import run

def main():
    args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    config = yaml.safe_load(Path(args["--config"]).read_text())
    given = config["model"]["init_args"]
    fill = lambda text: str(text).replace("${study}", args["--study"])
    mode = Path("mode.txt").read_text() if given.get("slow") else ""
    with files.new_output(fill(given["output"]), given["output"]) as folder:
        texts = [Path(fill(given[k])).read_text() for k in sorted(given) if k.startswith("reads")]
        options = sorted(f"{k} {v}" for k, v in args.items() if k.startswith(("--model", "--seed")))
        logs = Path(args["--study"], "logs", Path(args["--config"]).stem, "checkpoints")
        if mode == "sleep":
            time.sleep(60)
        if mode == "fail":
            raise ValueError("no luck")
        if mode == "write nothing":
            raise SystemExit
        if mode == "nap":
            time.sleep(0.2)
        files.write_text(folder / "text.txt", "; ".join([given["output"], *options, *texts]))
        files.finish_output(fill(given["output"]))
    if "--ckpt_path" in args:
        (Path(args["--study"]) / "resumed.txt").write_text(args["--ckpt_path"])

run(main)
"""
DRIVER = """
import sys
from pathlib import Path
from delta_transcoders import command
command._CHECKOUT = Path.cwd()
from delta_transcoders.study.__main__ import main
command.run(main)
"""
DEFAULTS = """
trainer:
  default_root_dir: ${study}/logs/${stage}
  logger: {class_path: x.L, init_args: {save_dir: "${study}/logs", name: "${stage}", version: ""}}
"""
STAGES = {
    "a": {"reads": "given.txt", "lr": 0.5},
    "b": {"reads": "${study}/a/text.txt"},
    "c": {"reads": "${study}/a/text.txt"},
    "d": {"reads_1": "${study}/b/text.txt", "reads_2": "${study}/c/text.txt", "slow": True},
}


class Lab:
    """A folder with a study file of four stages: b and c read a, and d reads both."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(command, "_CHECKOUT", folder)
        monkeypatch.setenv("PYTHONPATH", str(Path(command.__file__).parents[1]))
        self.folder = folder
        self.write("train.py", SCRIPT)
        self.write("evaluate.py", SCRIPT)
        self.write("pyproject.toml", "")
        self.write("given.txt", "given")
        self.write("mode.txt", "")
        self.write("configs/defaults.yaml", DEFAULTS)
        lines = ["study: runs", "stages:"]
        for name, args in STAGES.items():
            init = "".join(f"    {k}: {v}\n" for k, v in args.items())
            text = f"model:\n  class_path: x.Y\n  init_args:\n    output: ${{study}}/{name}\n{init}"
            self.write(f"configs/{name}.yaml", text)
            lines.append(
                f"  {name}: {{run: {'train' if name == 'd' else 'evaluate'}, config: {name}.yaml}}"
            )
        self.write("configs/study.yaml", "\n".join(lines) + "\n")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def replace(self, name: str, old: str, new: str) -> None:
        assert old in self.read(name)
        self.write(name, self.read(name).replace(old, new))

    def start(self, *args: str, config: str = "configs/study.yaml") -> subprocess.Popen:
        """In a process of its own, the first of its group."""
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, "--config", config, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=dict(os.environ),
        )


@pytest.fixture
def lab(tmp_path, monkeypatch):
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield Lab(tmp_path, monkeypatch)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture
def study(lab, capsys):
    """Run the study in this process; returns labels and reasons by the plan, in their order."""

    def run(*args: str, config: str = "configs/study.yaml") -> dict[str, str]:
        capsys.readouterr()
        main(["--config", config, *args])
        shown = capsys.readouterr().out
        if "why\n" not in shown:
            return {}
        head, rest = shown.rsplit("why\n", 1)
        column = len(head.splitlines()[-1])
        lines = rest.split("\n\n")[0].splitlines()
        return {line.split()[0]: line[column:] for line in lines if not line.startswith("together")}

    return run
