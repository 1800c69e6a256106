"""What git says of a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(folder: str | Path, *args: str) -> str:
    """What a git command prints that is run in a folder, without space around it.

    Raises:
        ValueError: no git, no such folder, or the command fails, as outside of a repository.
    """
    command = ["git", "-C", str(folder), *args]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(
            f"git is not installed, and it alone knows when {folder} changed: install it"
        ) from None
    if ended.returncode:
        raise ValueError(f"git {args[0]} in {folder}: {ended.stderr.strip()}")
    return ended.stdout.strip()
