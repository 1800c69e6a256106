"""Files and folders that are whole or absent, and the rule that a stage replaces only its own.

A stage builds its output beside the place where it belongs, checks it, and swaps it in. The file
`done.json` is written last and lists every file with its size: a folder that has one is finished, and
anything in it that the list does not name was put there by somebody else, so that the folder is refused
as an output.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

DONE = "done.json"
FORMAT = "delta_transcoders output 1"
_UNFINISHED = "unfinished.txt"  # marks a folder of ours that is being built


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends without an error."""
    folder = _empty_staging(path)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / _UNFINISHED).unlink()
    _swap(folder, _resolved(path))


@contextmanager
def replace_file(path: str | Path) -> Iterator[TextIO]:
    """Yield a UTF-8 file beside `path` that takes its place when the block ends without an error.

    Where `path` lies in a finished output, its `done.json` names the file from then on.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_file(path)
    try:
        with partial.open("w", encoding="utf-8") as handle:
            yield handle
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    record(path)


def partial_file(path: Path) -> Path:
    """Where a file is written before it takes its place; one that a killed process left is nobody's."""
    return path.with_name(f".{path.name}.partial")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file in one step, see `replace_file`."""
    with replace_file(path) as handle:
        handle.write(text)


def check_output(path: str | Path) -> None:
    """Refuse a folder that a stage cannot write, or that holds what no stage wrote; changes nothing.

    A symbolic link to a folder is followed: what it points to is written.

    Raises:
        ValueError: cannot be written, or is the working directory; names the folder that is in the way.
        FileExistsError: holds something else; names the first such file.
    """
    if not str(path):
        raise ValueError("the output folder is empty, expected a path")
    folder = _resolved(path)
    found = next(p for p in (folder, *folder.parents) if p.exists())
    for needed in (found, folder.parent if folder.exists() else found):
        if not (needed.is_dir() and os.access(needed, os.W_OK)):
            problem = "cannot be written" if needed.is_dir() else "is not a folder"
            raise ValueError(f"the output folder is {str(path)!r}, but {needed} {problem}")
    if folder.is_dir() and (os.path.ismount(folder) or Path.cwd().is_relative_to(folder)):
        raise ValueError(
            f"the output folder {str(path)!r} cannot be replaced: it is a mount point or holds the working "
            "directory; give a folder below it"
        )
    if strangers := _strangers(folder):
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise FileExistsError(
            f"the output folder {str(path)!r} holds {strangers[0]}{more}, which no stage wrote there (or not "
            "in this state): give another folder, or move away what is in it"
        )
    _check_staging(_staging(folder))


def start_output(path: str | Path) -> Path:
    """An empty folder beside `path` to build the output in; one process calls it, see `staged_output`.

    What an earlier run left unfinished there is removed.

    Raises:
        ValueError, FileExistsError: see `check_output`.
    """
    check_output(path)
    folder = _resolved(path)
    old = _old(folder)
    if old.is_dir() and not folder.exists():  # killed between the two renames of `_swap`
        os.rename(old, folder)
    return _empty_staging(path)


def staged_output(path: str | Path) -> Path:
    """The folder that `start_output` made, for the other processes."""
    return _staging(_resolved(path))


def finish_output(path: str | Path, replaces: Collection[str] | None = None) -> None:
    """Write `done.json` into the staged folder and put it in the place of `path`.

    Args:
        replaces: folders below `path` that this run has made anew; the rest of an earlier output is kept.
            None: the whole output is new.
    """
    folder = _resolved(path)
    staging = _staging(folder)
    if replaces is not None:
        for name in _listed(folder):
            if not any(Path(name).is_relative_to(part) for part in replaces):
                copy = staging / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link(folder / name, copy)
    (staging / _UNFINISHED).unlink()
    files = {p.relative_to(staging).as_posix(): p.stat().st_size for p in _files(staging)}
    command = shlex.join(["python", *sys.argv])
    _write_done(staging, {"format": FORMAT, "command": command, "files": files})
    _swap(staging, folder)


def discard_output(path: str | Path) -> None:
    """Remove the staged folder; what is in `path` stays."""
    shutil.rmtree(_staging(_resolved(path)), ignore_errors=True)


def set_aside_output(path: str | Path) -> Path:
    """Move the staged folder to `PATH.incomplete`, replacing an earlier one; what is in `path` stays."""
    folder = _resolved(path)
    aside = folder.with_name(folder.name + ".incomplete")
    if (aside / _UNFINISHED).is_file():
        shutil.rmtree(aside)
    os.rename(_staging(folder), aside)
    return aside


@contextmanager
def new_output(path: str | Path, *, keep: bool = True) -> Iterator[Path]:
    """`start_output` and `finish_output` around a block; after an error nothing has changed.

    Args:
        keep: False for a trial run, whose output is thrown away.
    """
    folder = start_output(path)
    try:
        yield folder
    except BaseException:
        discard_output(path)
        raise
    if keep:
        finish_output(path)
    else:
        discard_output(path)


def record(*paths: str | Path) -> None:
    """Name files that were added to a finished output in its `done.json`; elsewhere nothing is done.

    Args:
        paths: all of one output.
    """
    resolved = [_resolved(path) for path in paths]
    folder = next((p for p in resolved[0].parents if _is_done(p)), None)
    if folder is None:
        return
    with locked(folder):
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
        for path in resolved:
            done["files"][path.relative_to(folder).as_posix()] = path.stat().st_size
        _write_done(folder, done)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """One process at a time per folder; the others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _resolved(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def _staging(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _check_staging(staging: Path) -> None:
    if staging.exists() and not (staging / _UNFINISHED).is_file():
        raise FileExistsError(
            f"{staging} is in the way and was not written by a stage; move it away"
        )


def _empty_staging(path: str | Path) -> Path:
    staging = _staging(_resolved(path))
    _check_staging(staging)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    (staging / _UNFINISHED).write_text("an output that is being built\n", encoding="utf-8")
    return staging


def _swap(staging: Path, folder: Path) -> None:
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(staging, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    """Everything below a folder that is no folder itself; links are not followed."""
    return sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def _is_done(folder: Path) -> bool:
    return bool(_listed(folder))


def _listed(folder: Path) -> dict[str, int]:
    """Sizes by name of what a finished output holds; empty where there is no `done.json` of ours."""
    try:
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
        return dict(done["files"]) if done["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _strangers(folder: Path) -> list[str]:
    """What is in a folder and was not written by the stage that finished it, or was changed since."""
    if not folder.is_dir():
        return []
    listed = _listed(folder)
    names = {p.relative_to(folder).as_posix(): p for p in _files(folder)}
    if listed:
        names.pop(DONE)
    return [
        name
        for name, path in names.items()
        if (path.is_symlink() or path.stat().st_size != listed.get(name))
        and not (path.name.startswith(".") and path.name.endswith(".partial"))
    ]


def _write_done(folder: Path, done: dict) -> None:
    partial = partial_file(folder / DONE)
    partial.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / DONE)


def _link(source: Path, copy: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    with contextlib.suppress(OSError):
        os.link(source, copy)
        return
    shutil.copy2(source, copy)
