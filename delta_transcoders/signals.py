"""SIGTERM and SIGINT as an exception, at once or, where a step must not be torn apart, after it."""

from __future__ import annotations

import signal
import time
from types import FrameType

ONE_PRESS = 1.0  # seconds: Ctrl-C reaches a process from the terminal and from whoever started it


class Stopped(BaseException):
    """Somebody asked the process to end; no `except Exception` on the way holds it up.

    Attributes:
        signum: the signal.
        checkpoint: file to go on from, where one was saved.
    """

    def __init__(self, signum: int, checkpoint: str | None = None) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.checkpoint = checkpoint


pending: int | None = None
"""The signal that has come while `defer(True)` was in force."""

_deferred = False
_came = 0.0


def install() -> None:
    """Handle both signals here; libraries that install their own handlers are overruled."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _handle)


def defer(on: bool) -> None:
    """Whether a first signal only sets `pending`, for a loop that looks at it between two steps."""
    global _deferred
    _deferred = on


def _handle(signum: int, frame: FrameType | None) -> None:
    global pending, _came
    again, _came = time.monotonic() - _came < ONE_PRESS, time.monotonic()
    if again:
        return
    if _deferred and pending is None:
        pending = signum
        return
    raise Stopped(signum)
