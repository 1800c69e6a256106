"""Running a study's stages, one after the other, each as the command that a user would type."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from delta_transcoders import files, signals
from delta_transcoders.command import script_command
from delta_transcoders.study.environment import environment
from delta_transcoders.study.plan import Graph, Step, checkpoint, outputs_of, recorded
from delta_transcoders.study.records import Record, megabytes
from delta_transcoders.study.study_file import SCRIPTS, Stage, Study

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONHASHSEED": "0",  # peft writes sets into its files
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

PROGRAMS = {
    "python": [sys.executable],
    # Wherever pip has put the program itself.
    "delta-transcoders": [sys.executable, "-m", "lightning_modules.commands"],
}
"""How the first words of commands are started."""


def command_of(stage: Stage, resume: Path | None = None) -> list[str]:
    """A stage as a user would type it."""
    if stage.run not in SCRIPTS:
        return ["python", "-m", stage.run, *stage.arguments]
    command = [*script_command(stage.run), "--config", stage.config]
    for file in stage.more_configs:
        command += ["--config", file]
    command += ["--study", stage.study, "--seed_everything", str(stage.seed)]
    for option, value in stage.options.items():
        command += (
            [f"--{option}={_text(value)}"]
            if option.endswith("+")
            else [f"--{option}", _text(value)]
        )
    return command + (["--ckpt_path", str(resume)] if resume else [])


def _text(value: Any) -> str:
    """A value as it is typed.

    >>> _text([8, 16]), _text({"mode": "l1", "l1_weight": 0.0}), _text("a b"), _text(None), _text(0)
    ('[8, 16]', '{mode: l1, l1_weight: 0.0}', 'a b', 'null', '0')
    """
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def run_command(
    command: Sequence[str], keep: Sequence[int] = (), run: str = "", quiet: bool = False
) -> int:
    """Run a command until it ends; SIGTERM and SIGINT are passed on to it.

    Args:
        keep: file descriptors that it holds too.
        run: the id of its outputs.
        quiet: only its warnings and errors are shown.

    Raises:
        signals.Stopped: a signal came, and the command has ended.
    """
    given: list[int] = []
    process: subprocess.Popen | None = None

    def pass_on(signum: int, frame: object) -> None:
        given.append(signum)
        if process is not None:
            process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, pass_on)
    try:
        environment = ENVIRONMENT | os.environ | ({files.RUN: run} if run else {})
        if (
            command[0] != "python"
        ):  # packages that lie in the working directory are not the program's
            environment["PYTHONSAFEPATH"] = "1"
        process = subprocess.Popen(
            [*PROGRAMS[command[0]], *command[1:]],
            env=environment,
            pass_fds=keep,
            stdout=subprocess.DEVNULL if quiet else None,
        )
        for signum in given:  # came before there was a process
            process.send_signal(signum)
        status = process.wait()
    finally:
        signals.install()
    if given:
        raise signals.Stopped(given[0])
    return 128 - status if status < 0 else status


@contextmanager
def locks(folders: Sequence[str]) -> Iterator[list[int]]:
    """Have studies' folders alone.

    A stage gets the file descriptors too: one that outlives its study, which was killed, keeps the lock.

    Raises:
        FileExistsError: another run has one of them.
    """
    held: list[int] = []
    try:
        for folder in folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
            held.append(os.open(folder, os.O_RDONLY))
            try:
                fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(
                    f"another run is working on {folder} (or a stage that it started still is): wait for "
                    "it, or give another folder (--study)"
                ) from None
        yield held
    finally:
        for handle in held:
            os.close(handle)


def run_steps(
    graph: Graph, steps: Sequence[Step], records: Mapping[str, Record], keep: Sequence[int]
) -> None:
    """Run stages in this order, and record each.

    Raises:
        SystemExit: a stage ended with an error, whose status it is.
        signals.Stopped: a signal came.
    """
    found = environment()
    for number, step in enumerate(steps, start=1):
        stage = step.stage
        record = records[stage.study]
        _make_links(graph.study, stage.study)
        resume = checkpoint(step, record.stages.get(stage.name, {}).get("started"))
        command, run = command_of(stage, resume), uuid.uuid4().hex
        print(f"[{number}/{len(steps)}] {stage.label}: {shlex.join(command)}", flush=True)
        how = {"run": run, "command": shlex.join(command), "began": time.time()}
        how |= {"environment": found}
        if resume:  # what that start has left may be gone on from again
            how["began"] = record.stages[stage.name]["started"]["began"]
        record.start(stage.name, how | recorded(step))
        started, read = time.perf_counter(), megabytes(step.inputs)
        # What pages and reports print is long, and in the files that they write.
        quiet = stage.run.startswith(("delta_transcoders.report.", "delta_transcoders.pages."))
        status = run_command(command, keep, run, quiet)
        seconds = time.perf_counter() - started
        outputs = outputs_of(step)
        if status == 0 and not all(
            found == run if stage.run in SCRIPTS else found for found in outputs.values()
        ):
            print(f"error: {stage.label} ended without writing its output", file=sys.stderr)
            status = 1
        if status:
            print(f"error: {stage.label} ended with status {status}", file=sys.stderr)
            raise SystemExit(status)
        measured = {
            "seconds": round(seconds, 1),
            # What it adds to its inputs too, as the delta stage adds its targets to the cache.
            "megabytes": round(
                megabytes(step.config.outputs) + max(0, megabytes(step.inputs) - read), 2
            ),
        }
        record.finish(stage.name, measured | {"outputs": outputs})


def _make_links(study: Study, folder: str) -> None:
    for link, target in study.links.items():
        path = Path(link)
        if path.parent == Path(folder) and not path.is_symlink():
            path.symlink_to(os.path.relpath(target, path.parent))
