"""What a command takes, the processes that it starts included, for the benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
EVERY = 0.05  # seconds


class Taken(NamedTuple):
    """By one command."""

    peak: int
    """Largest resident set of all its processes together, in bytes; a page that they share counts twice."""
    seconds: float


def measured(*arguments: str) -> Taken:
    """Run Python with these arguments in the repository and wait for it.

    Raises:
        RuntimeError: the command failed; with the end of what it printed.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as shown:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=shown, stderr=subprocess.STDOUT
        )
        sampled = [0]
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, sampled, done))
        sampler.start()
        # The kernel's own peak of the process alone misses nothing between two samples.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        sampler.join()
        if process.returncode:
            shown.seek(0)
            ended = f"{arguments} ended with {process.returncode}"
            raise RuntimeError(f"{ended}:\n{shown.read()[-4000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Taken(max(sampled[0], usage.ru_maxrss * unit), time.perf_counter() - started)


def _sample(pid: int, sampled: list[int], done: threading.Event) -> None:
    parent = psutil.Process(pid)
    while not done.wait(EVERY):
        total = 0
        try:
            for process in (parent, *parent.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:  # one of them has just ended
            continue
        sampled[0] = max(sampled[0], total)
