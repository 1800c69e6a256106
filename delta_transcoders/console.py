"""What a stage shows: our own lines on the console, everything that other libraries say in a file.

Of a stage that a study runs only warnings are shown; the study has a line for it.
Modules say things with `logging.getLogger("delta_transcoders").info` and warn with `StudyWarning`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from logging.handlers import MemoryHandler
from pathlib import Path

from delta_transcoders.files import RUN

LOG_NAME = "console.txt"

_buffer: MemoryHandler | None = None


class StudyWarning(UserWarning):
    """A warning of ours, which belongs on the console."""


def in_study() -> bool:
    """Whether a study runs this process as one of its stages."""
    return bool(os.environ.get(RUN))


def start() -> None:
    """Show our lines, and keep what others say until `to_file` tells where it belongs."""
    global _buffer
    ours = logging.getLogger("delta_transcoders")
    ours.setLevel(logging.INFO)
    if os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0":
        console = logging.StreamHandler()  # stderr: stdout is for results
        console.setFormatter(logging.Formatter("%(message)s"))
        console.setLevel(logging.WARNING if in_study() else logging.INFO)
        ours.addHandler(console)
    _buffer = MemoryHandler(1_000_000, flushLevel=logging.CRITICAL + 1, flushOnClose=True)
    logging.getLogger().addHandler(_buffer)
    logging.getLogger().setLevel(logging.INFO)
    warnings.showwarning = _show_warning


def to_file(folder: str | Path) -> None:
    """Write what others have said and will say to `folder/console.txt`; nothing before `start`."""
    global _buffer
    if _buffer is None:
        return
    rank = os.environ.get("LOCAL_RANK", "0")
    path = Path(folder) / (LOG_NAME if rank == "0" else f"rank_{rank}_{LOG_NAME}")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(file)
    root.removeHandler(_buffer)
    _buffer.setTarget(file)
    _buffer.flush()
    _buffer = None
    # Lightning and transformers have put handlers of their own on their loggers.
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name != "delta_transcoders" and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if issubclass(category, StudyWarning):
        print(f"warning: {message}", file=sys.stderr, flush=True)
    text = warnings.formatwarning(message, category, filename, lineno, line)
    logging.getLogger("py.warnings").warning(text)
