"""What signals do to every stage: `python benchmarks/signals_table.py` (or `make signals`).

Each stage of a very small study sends itself SIGTERM, SIGINT or SIGKILL amid its fit, a validation, the
writing of its results, its predictions or its tests. The table says with which status the process ended,
after how many seconds, what it left beside what was there before, and whether the study is the
uninterrupted one's after the command that its last line names (after SIGKILL: the same command again).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAINER = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
BASE = {"model.d_model": 32, "model.n_layers": 2, "model.d_mlp": 64, "data.vocab_size": 400}
BASE |= {"data.n_documents": 48, "data.n_validation": 8, "data.batch_size": 8}
FEW_STEPS = {"trainer.max_steps": 6, "trainer.val_check_interval": 3}
FINETUNE = FEW_STEPS | {"data.n_train": 64, "data.n_validation": 15, "data.n_evaluation": 5}
SMALL = {"data.batch_tokens": 128, "trainer.val_check_interval": 4, "trainer.log_every_n_steps": 4}
PROMPTS = {"data.n_per_subset": 5, "data.batch_size": 2}
FIT = ("fit", "validation", "export")


@dataclass(frozen=True)
class Stage:
    """One stage: its configuration, the folder it writes, options that make it small, its phases."""

    name: str
    config: str
    output: str
    options: dict
    phases: tuple[str, ...]

    def command(self, study: Path) -> list[str]:
        script = "train.py" if self.phases == FIT else "evaluate.py"
        options = {"config": f"configs/tiny/{self.config}.yaml", "study": study}
        options |= TRAINER | self.options
        return [script, *(f"--{key}={value}" for key, value in options.items())]


STAGES = {
    stage.name: stage
    for stage in (
        Stage("base_model", "base_model", "base_model", BASE | FEW_STEPS, FIT),
        Stage("finetune", "lora", "finetune", FINETUNE | {"data.batch_size": 8}, FIT),
        Stage("behaviour", "behaviour", "behaviour", PROMPTS, ("test", "export")),
        Stage(
            "base_activations",
            "base_activations",
            "base_activations",
            {"data.n_train": 48, "data.n_validation": 16, "data.batch_size": 8},
            ("predict", "export"),
        ),
        Stage(
            "base_transcoders",
            "base_transcoder",
            "base_transcoders",
            SMALL | {"data.passes": 4, "model.width": 64, "model.l0": "[16]"},
            FIT,
        ),
        Stage(
            "activations",
            "activations",
            "activations",
            # A site that is wrong on purpose: a model of so few steps would fit no site, and be refused.
            {"model.hook_site": "residual", "data.batch_size": 8},
            ("predict", "export"),
        ),
        Stage(
            "delta",
            "delta",
            "delta",
            SMALL | {"data.passes": 4, "model.d_new": "[6]", "model.l0": 2},
            FIT,
        ),
        Stage("corrections", "corrections", "corrections", {"data.batch_tokens": 128}, FIT),
        Stage(
            "exp2a",
            "exp2a",
            "exp2a",
            PROMPTS
            | {
                "model.layers": "[0, all]",
                "model.conditions": "[no_delta, full]",
                "model.max_new_tokens": 8,
            },
            ("test", "export"),
        ),
        Stage(
            "ranking",
            "ranking",
            "ranking",
            PROMPTS | {"model.layers": "[0]", "model.rows_per_pass": 32},
            ("test", "export"),
        ),
    )
}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)

# Runs a script with a callback that sends the signal; its time goes to a file, to be subtracted.
SENDER = """
import os, sys, time
from pathlib import Path
script, phase, signum, note = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
sys.argv = [script, *sys.argv[5:]]
sys.path.insert(0, os.getcwd())
def send(*args, **kwargs):
    if not note.exists():
        note.write_text(repr(time.time()))
        os.kill(os.getpid(), signum)
        time.sleep(0.1)
from lightning import Callback
from delta_transcoders import command, files
from lightning_modules.cli import StudyCLI
HOOKS = {"fit": "on_train_batch_start", "validation": "on_validation_batch_start",
         "predict": "on_predict_batch_start", "test": "on_test_batch_start"}
class Sender(Callback):
    pass
if phase == "export":
    finish = files.finish_output
    def finish_output(*args, **kwargs):
        send()
        finish(*args, **kwargs)
    files.finish_output = finish_output
else:
    calls = []
    def second(self, trainer, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            send()
    setattr(Sender, HOOKS[phase], second)
make = StudyCLI.instantiate_trainer
def instantiate_trainer(self, **kwargs):
    trainer = make(self, **kwargs)
    trainer.callbacks.insert(0, Sender())
    return trainer
StudyCLI.instantiate_trainer = instantiate_trainer
import train, evaluate
command.run({"train.py": train, "evaluate.py": evaluate}[script].main, is_stage=True)
"""


@dataclass(frozen=True)
class Row:
    """What became of one stage; `left` and `again` are for people."""

    stage: str
    phase: str
    signal: str
    status: int
    seconds: float
    left: str
    again: str


def run(command: list[str], **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Files by name; without `done.json`, which holds the command that was given."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "done.json"
    }


def results(study: Path) -> dict[str, bytes]:
    """Without what later stages add to a cache, and peft's files with lists in random order."""
    left_out = (
        "residual-",
        "manifest.json",
        "hook_site_check.json",
        "adapter_config.json",
        "README.md",
        "ranking.json",  # says whose features they are, by the study's own path
    )
    return {
        name: data
        for name, data in contents(study).items()
        if not name.startswith("logs/") and not any(part in name for part in left_out)
    }


def interrupt(
    stage: Stage, phase: str, signum: signal.Signals, prepared: Path, scratch: Path
) -> Row:
    """Send a stage of a copy of the prepared study a signal, then do what its last line says.

    Args:
        prepared: a study in which the stage is finished with these very options; read only.
        scratch: an empty folder.
    """
    study, note = scratch / "study", scratch / "sent"
    shutil.copytree(prepared, study)
    before = results(study)
    command = stage.command(study)
    ended = run(["-c", SENDER, command[0], phase, str(int(signum)), str(note), *command[1:]])
    if not note.exists():
        raise RuntimeError(f"{stage.name}: no {phase} to interrupt\n{ended.stderr[-2000:]}")
    seconds = time.time() - float(note.read_text())
    status = 128 - ended.returncode if ended.returncode < 0 else ended.returncode
    after = results(study)
    left = []
    if {name: data for name, data in after.items() if name in before} != before:
        left.append("FINISHED WORK CHANGED")
    if beside := sorted({name.split("/")[0] for name in after.keys() - before.keys()}):
        left.append("beside it " + ", ".join(beside))
    again, said = command, ended.stderr.strip().splitlines()
    if signum != signal.SIGKILL:
        (line,) = said[-1:] or [""]
        named = re.search(r"(?:Go on with|run it again): python (.*)", line)
        if named is None:
            left.append(f"NO WORD ON HOW TO GO ON: {line[:100]}")
        elif "--ckpt_path" in line:
            checkpoint = shlex.split(named[1])[-2:]
            again = [*command, *checkpoint]
            left.append("a checkpoint" if Path(checkpoint[1]).is_file() else "NO CHECKPOINT")
    shutil.rmtree(study / stage.output)
    repeated = run(again)
    same = repeated.returncode == 0 and results(study) == before
    return Row(
        stage.name,
        phase,
        signum.name,
        status,
        seconds,
        ", ".join(left) or "nothing",
        "equal" if same else f"DIFFERENT (status {repeated.returncode})",
    )


def prepare(study: Path) -> None:
    """Every stage once, uninterrupted."""
    for stage in STAGES.values():
        ended = run(stage.command(study))
        if ended.returncode:
            raise RuntimeError(f"{stage.name}: {ended.stderr[-2000:]}")


def problems(row: Row) -> list[str]:
    """What is wrong with a row, in capitals where it says so itself."""
    expected = 128 + int(signal.Signals[row.signal])
    found = [] if row.status == expected else [f"status {row.status}, expected {expected}"]
    if row.seconds > 10:
        found.append(f"{row.seconds:.0f} s")
    return found + [text for text in (row.left, row.again) if re.search("[A-Z]{4}", text)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    args = parser.parse_args()
    todo = [
        (STAGES[name], phase, signum)
        for name in args.stages
        for phase in STAGES[name].phases
        for signum in SIGNALS
    ]
    print(f"{len(todo)} interruptions, each about 20 s on two cores", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        prepare(prepared)
        print("| stage | during | signal | status | seconds | left | after going on |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for number, (stage, phase, signum) in enumerate(todo):
            scratch = Path(folder) / str(number)
            scratch.mkdir()
            row = interrupt(stage, phase, signum, prepared, scratch)
            shutil.rmtree(scratch)
            wrong = problems(row)
            failed += bool(wrong)
            print(
                f"| {row.stage} | {row.phase} | {row.signal} | {row.status} | {row.seconds:.1f} | "
                f"{row.left} | {row.again} |" + (f"  ← {'; '.join(wrong)}" if wrong else ""),
                flush=True,
            )
    if failed:
        sys.exit(f"{failed} of {len(todo)} rows are wrong")


if __name__ == "__main__":
    main()
