"""A study's stages as the commands that a user would type: starting them, passing signals on, locks."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from delta_transcoders import signals
from delta_transcoders.command import script_command
from delta_transcoders.files import RUN
from delta_transcoders.study.study_file import SCRIPTS, Stage, Study

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # glibc: what a large tensor held stays the process's own. Given back, it comes zeroed at the next step,
    # and training a model of 135 M parameters on two cores took twice as long (docs/LOG.md).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "THP_MEM_ALLOC_ENABLE": "1",  # torch: in pages of 2 MB
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

SECONDS_BETWEEN_LOOKS = 0.05

_started: list[subprocess.Popen] = []
"""All that this process has started."""


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


class Ended(NamedTuple):
    """How a command ended: its status in a shell's numbers, and the most memory of one of its processes.

    Where it has several at once, as two devices have, together they took more.
    """

    status: int
    memory_gb: float


def run_command(
    command: Sequence[str],
    keep: Sequence[int] = (),
    quiet: bool = False,
    log: Path | None = None,
    run: str = "",
) -> Ended:
    """Run a command until it ends; SIGTERM and SIGINT are passed on to it.

    Args:
        keep, quiet, log: see `start_command`.
        run: the id of its outputs.

    Raises:
        signals.Stopped: a signal came, and the command has ended.
    """
    with passing_on() as given:
        variables = ENVIRONMENT | os.environ | ({RUN: run} if run else {})
        process = start_command(command, variables, keep, quiet, log)
        pass_on(given)  # what came before there was a process
        while (ended := end_of(process)) is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return ended


def start_command(
    command: Sequence[str],
    variables: Mapping[str, str],
    keep: Sequence[int] = (),
    quiet: bool = False,
    log: Path | None = None,
) -> subprocess.Popen:
    """Start a command.

    Args:
        variables: of its environment.
        keep: file descriptors that it holds too.
        quiet: only its warnings and errors are shown.
        log: where they, or all that it shows, are written in place of the terminal. A file and no pipe: the
            command goes on where this process is killed.
    """
    if command[0] != "python":  # packages that lie in the working directory are not the program's
        variables = {**variables, "PYTHONSAFEPATH": "1"}
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") if log else nullcontext() as shown:
        process = subprocess.Popen(
            [*PROGRAMS[command[0]], *command[1:]],
            env=variables,
            pass_fds=keep,
            stdout=subprocess.DEVNULL if quiet else shown,
            stderr=shown,
        )
    _started.append(process)
    return process


def end_of(process: subprocess.Popen) -> Ended | None:
    """How a started command has ended; None while it runs. Memory is that of its largest process."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None
    status = process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Ended(128 - status if status < 0 else status, peak / 1e9)


def pass_on(signums: Iterable[int]) -> None:
    """Send signals to all that runs."""
    for signum in signums:
        for process in _started:
            # `send_signal` would look whether it has ended, and `end_of` could no more say how.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signum)


@contextmanager
def passing_on() -> Iterator[list[int]]:
    """Send SIGTERM and SIGINT on to all that runs; yields a list of those that come.

    Raises:
        signals.Stopped: at the end of the block, if any came.
    """
    given: list[int] = []

    def handle(signum: int, frame: object) -> None:
        given.append(signum)
        pass_on([signum])

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield given
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if given:
        raise signals.Stopped(given[0])


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


def make_links(study: Study, folder: str) -> None:
    """What a study within another shares with it, as links in its folder."""
    for link, target in study.links.items():
        path = Path(link)
        if path.parent == Path(folder) and not path.is_symlink():
            path.symlink_to(os.path.relpath(target, path.parent))
