"""What a study's folder says of its stages, `study.json`: how each was made, from what, how long it took."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from delta_transcoders.files import DONE, is_whole, read_json, run_of, write_json

RECORD = "study.json"
FORMAT = "delta_transcoders study 1"
_HASHED = 64 * 2**20  # bytes: of larger files size and time of change are enough


class Record:
    """The record of a study's folder.

    Attributes:
        stages: by name; `done` is how the finished output was made, `started` the run that was begun last,
            where it was not finished. Both hold `run` (its id), `command`, `began` (seconds since the epoch),
            `config` and `inputs` (fingerprints by path); `done` holds `outputs` (likewise), `seconds` and
            `megabytes` too.

    Raises:
        FileExistsError: the folder belongs to another study file.
        ValueError: damaged, or of another version; names the file.
    """

    def __init__(self, folder: str, file: str) -> None:
        self.folder, self.file = folder, file
        self.stages: dict[str, dict[str, Any]] = {}
        path = Path(folder) / RECORD
        if not path.is_file():
            return
        problem = "what was run cannot be known; move the folder away"
        content = read_json(path, problem)
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{path} is of the format {content.get('format')!r}, expected {FORMAT!r}: move it away, and "
                "every stage is run again"
            )
        if not _is_sound(content):
            raise ValueError(f"{path} is damaged, it is no record of a study: {problem}")
        if Path(content["file"]).resolve() != Path(file).resolve():
            raise FileExistsError(
                f"{folder} is the study of {content['file']}, not of {file}: give another folder (--study), "
                "or, if this is the same file renamed, its old name back"
            )
        self.stages = content["stages"]

    def start(self, name: str, how: dict[str, Any]) -> None:
        """Note, before a stage runs, that it will."""
        self.stages.setdefault(name, {})["started"] = how
        self._save()

    def finish(self, name: str, measured: dict[str, Any]) -> None:
        """Note that the run begun last is finished."""
        stage = self.stages[name]
        stage["done"] = stage.pop("started") | measured
        self._save()

    def _save(self) -> None:
        content = {"format": FORMAT, "file": self.file, "stages": self.stages}
        write_json(Path(self.folder) / RECORD, content)


def _is_sound(content: dict[str, Any]) -> bool:
    """Whether what is read of a record later is there, and of its type."""
    started = {"run": str, "began": (int, float), "config": dict, "inputs": dict}
    measured = {"outputs": dict, "seconds": (int, float), "megabytes": (int, float)}
    keys = {"started": started, "done": started | measured}
    stages = content.get("stages")
    return (
        isinstance(content.get("file"), str)
        and isinstance(stages, dict)
        and all(
            isinstance(stage, dict)
            and all(
                isinstance(stage[state], dict)
                and all(isinstance(stage[state].get(key), kind) for key, kind in needed.items())
                for state, needed in keys.items()
                if state in stage
            )
            for stage in stages.values()
        )
    )


def fingerprint(path: str | Path) -> str | None:
    """What tells a later state of a file or folder from this one; None where there is none.

    Of a finished output, and whatever lies in one, the run that wrote it, and whether all its files are as it
    left them. Of other files the SHA-256, or size
    and time of change of large ones; of other folders names, sizes and times.
    """
    path = Path(path).expanduser()
    if not path.exists():
        return None
    if run := run_of(path):
        return run if is_whole(path) else f"{run}, not as it was written"
    if path.is_file() and path.stat().st_size <= _HASHED:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    seen = [
        (os.path.relpath(p, path), p.stat().st_size, p.stat().st_mtime_ns)
        for p in files
        if p.name != DONE
    ]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def megabytes(paths: Iterable[str]) -> float:
    """What files and folders take on disk."""
    files = [
        file
        for path in map(Path, map(os.path.expanduser, paths))
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    ]
    return sum(map(_size, files)) / 1e6


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # another stage, which runs too, has just put it in its place
        return 0
