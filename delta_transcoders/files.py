"""Files and folders that are whole or absent, and the rule that a stage replaces only its own.

A stage builds its output beside the place where it belongs, checks it, and swaps it in. The file
`done.json` is written last; it names the kind of output, the run that wrote it, and every file with its
size. A folder that has one is finished. Another kind of output, and a folder with anything that the list does
not name, is refused. While an output is being built its process holds a lock, and a second run with the same
output is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TextIO, TypeVar

DONE = "done.json"
FORMAT = "delta_transcoders output 1"
RUN = "DELTA_TRANSCODERS_RUN"  # environment variable: the id that a study has given to this run
_MADE_FROM = "made_from.json"  # in an unfinished folder of ours that a later run may go on with
_UNFINISHED = (
    "unfinished.txt"  # marks a folder of ours that is being built; locked by who builds it
)

Config = TypeVar("Config")

_locks: dict[Path, int] = {}
"""File descriptors that hold the locks of this process, by staged folder."""


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends without an error."""
    folder = _empty_staging(path)
    try:
        yield folder
    except BaseException:
        discard_output(path)
        raise
    _release(folder)
    _swap(folder, _resolved(path))


@contextmanager
def partial_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there takes its place when the block ends without an error.

    Where `path` lies in a finished output, its `done.json` names the file from then on. One that a killed
    process left beside it is nobody's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path) as partial:
        yield partial
    record(path)


@contextmanager
def replace_file(path: str | Path) -> Iterator[TextIO]:
    """`partial_file`, open as a UTF-8 text."""
    with partial_file(path) as partial, partial.open("w", encoding="utf-8") as handle:
        yield handle


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file in one step, see `partial_file`."""
    with replace_file(path) as handle:
        handle.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file in one step, see `partial_file`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path, problem: str = "") -> dict[str, Any]:
    """What a JSON file holds that is an object.

    Args:
        problem: what it means if the file is missing or damaged, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or no object; names the file.
    """
    path, problem = Path(path), problem and f": {problem}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist{problem}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not JSON ({error}){problem}") from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise ValueError(f"{path} is damaged, it holds a {found} and no dict{problem}")
    return value


def check_version(path: str | Path, found: object, reads: int, remake: str) -> None:
    """Refuse a file whose format is of another version than this code reads.

    Args:
        remake: what makes it anew, for the message.

    Raises:
        ValueError: names the file, both versions and `remake`.
    """
    if found != reads:
        raise ValueError(f"{path}: format_version is {found!r}, this code reads {reads}; {remake}")


def read_config(
    path: str | Path, kind: type[Config], problem: str = "", remake: str = ""
) -> Config:
    """A dataclass from a JSON file that holds each of its fields without a default, and no other key.

    Where the dataclass has a `format_version`, its default is what is read; a file without one is of
    version 1.

    Raises:
        FileNotFoundError, ValueError: see `read_json` and `check_version`; an unknown or missing key, or a
            value that the dataclass refuses; names the file.
    """
    raw, known = read_json(path, problem), {field.name for field in fields(kind)}
    if "format_version" in known:
        check_version(path, raw.setdefault("format_version", 1), kind.format_version, remake)
    for key in sorted(raw.keys() - known):
        raise ValueError(f"{path}: unknown key {key!r}; known are {sorted(known)}")
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    for key in sorted(needed - raw.keys()):
        raise ValueError(f"{path}: key {key!r} is missing")
    try:
        return kind(**raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_output(path: str | Path, kind: str) -> None:
    """Refuse a folder that a stage cannot write, or that is not its own to replace; changes nothing.

    A symbolic link to a folder is followed: what it points to is written.

    Args:
        kind: of the output, one name for each kind of stage.

    Raises:
        ValueError: cannot be written, is the working directory, or lies in another output; names it.
        FileExistsError: holds something else, and names the first such file, or another kind of output; or
            another run is writing it.
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
    if outer := next((p for p in folder.parents if _done(p)), None):
        raise ValueError(
            f"the output folder {str(path)!r} lies in {outer}, which is a finished output itself"
        )
    if (found_kind := _done(folder).get("kind", kind)) != kind:
        raise FileExistsError(
            f"the output folder {str(path)!r} holds the results of another kind of stage ({found_kind}, not "
            f"{kind}): give another folder, or move them away"
        )
    check_no_strangers(path)
    for beside in (_staging(folder), _aside(folder)):
        _check_ours(beside)


def free_bytes(path: str | Path) -> int:
    """What is free on the disk of a path, which need not be there yet."""
    at = _resolved(path)
    return shutil.disk_usage(next(p for p in (at, *at.parents) if p.exists())).free


def check_no_strangers(path: str | Path) -> None:
    """Refuse an output folder that holds what no stage wrote there, or not in this state.

    Raises:
        FileExistsError: names the first such file.
    """
    if strangers := _strangers(_resolved(path)):
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise FileExistsError(
            f"the output folder {str(path)!r} holds {strangers[0]}{more}, which no stage wrote there (or not "
            "in this state): give another folder, or move away what is in it"
        )


def is_whole(path: str | Path) -> bool:
    """Whether the finished output which `path` is or lies in has all its files, each of the size written."""
    top = _finished(path)
    return top is not None and all(
        (top / name).is_file() and (top / name).stat().st_size == size
        for name, size in _listed(top).items()
    )


def is_finished(path: str | Path, kind: str) -> bool:
    """Whether a folder holds a finished output of this kind, whole and as it was written."""
    folder = _resolved(path)
    whole = _listed(folder).keys() <= {p.relative_to(folder).as_posix() for p in _files(folder)}
    return _done(folder).get("kind") == kind and whole and not _strangers(folder)


def start_output(path: str | Path, kind: str, made_from: Mapping[str, Any] | None = None) -> Path:
    """An empty folder beside `path` to build the output in; one process calls it, see `staged_output`.

    What an earlier run left unfinished there is removed.

    Args:
        made_from: of an output in pieces, what decides them (JSON): what a run made from the same left
            unfinished is kept, to go on with.

    Raises:
        ValueError, FileExistsError: see `check_output`.
    """
    check_output(path, kind)
    folder = _resolved(path)
    old = _old(folder)
    if old.is_dir() and not folder.exists():  # killed between the two renames of `_swap`
        os.rename(old, folder)
    staging = _staging(folder)
    if made_from is not None and _was_made_from(staging, kind, made_from):
        _lock(staging)
        return staging
    _empty_staging(path, kind)
    if made_from is not None:
        write_json(staging / _MADE_FROM, made_from)
    return staging


def _was_made_from(staging: Path, kind: str, made_from: Mapping[str, Any]) -> bool:
    try:
        is_kind = (staging / _UNFINISHED).read_text(encoding="utf-8") == kind
        return is_kind and read_json(staging / _MADE_FROM) == json.loads(json.dumps(made_from))
    except (OSError, ValueError):
        return False


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
    kind = (staging / _UNFINISHED).read_text(encoding="utf-8")
    (staging / _MADE_FROM).unlink(missing_ok=True)
    files = {p.relative_to(staging).as_posix(): p.stat().st_size for p in _files(staging)}
    del files[_UNFINISHED]
    done = {
        "format": FORMAT,
        "kind": kind,
        "run": os.environ.get(RUN) or uuid.uuid4().hex,
        "command": command_line(),
        "files": files,
    }
    _write_done(staging, done)
    _release(staging)
    _swap(staging, folder)


def discard_output(path: str | Path) -> None:
    """Remove the folder that this process has staged, if any; what is in `path` stays."""
    staging = _staging(_resolved(path))
    if staging in _locks:
        os.close(_locks.pop(staging))
        _remove(staging)


def leave_output(path: str | Path) -> None:
    """Let go of the folder that this process has staged, if any, for a later run to go on with."""
    if (handle := _locks.pop(_staging(_resolved(path)), None)) is not None:
        os.close(handle)


def set_aside_output(path: str | Path) -> Path:
    """Move the staged folder to `PATH.incomplete`, replacing an earlier one; what is in `path` stays."""
    folder = _resolved(path)
    staging, aside = _staging(folder), _aside(folder)
    _remove(aside)
    os.close(_locks.pop(staging))
    os.rename(staging, aside)
    return aside


@contextmanager
def new_output(path: str | Path, kind: str) -> Iterator[Path]:
    """`start_output` before a block that ends with `finish_output`; after an error nothing has changed."""
    folder = start_output(path, kind)
    try:
        yield folder
    except BaseException:
        discard_output(path)
        raise


def record(*paths: str | Path) -> None:
    """Name files that were added to a finished output in its `done.json`; elsewhere nothing is done.

    Args:
        paths: all of one output.
    """
    resolved = [_resolved(path) for path in paths]
    folder = next((p for p in resolved[0].parents if _done(p)), None)
    if folder is None:
        return
    with locked(folder):
        done = read_json(folder / DONE)
        for path in resolved:
            done["files"][path.relative_to(folder).as_posix()] = path.stat().st_size
        _write_done(folder, done)


def run_of(path: str | Path) -> str | None:
    """Id of the run that finished the output which `path` is or lies in; None outside of such.

    Files that are added later (`record`) leave it as it was.
    """
    top = _finished(path)
    return None if top is None else _done(top)["run"]


def command_line(args: Sequence[str] | None = None) -> str:
    """This process's command, as it is typed again.

    `python train.py …`, `python -m delta_transcoders.smollm2 …`, or an installed program's name.

    Args:
        args: instead of the process's own.
    """
    script, *own = sys.argv
    module = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m`
    if module is not None and module.origin == script:
        program = f"python -m {module.name.removesuffix('.__main__')}"
    else:
        program = f"python {shlex.quote(script)}" if script.endswith(".py") else Path(script).name
    return " ".join([program, shlex.join(own if args is None else args)])


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


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + ".incomplete")


def _check_ours(staging: Path) -> None:
    """Refuse an unfinished folder that is not ours, or that another run is writing."""
    if not staging.exists() or staging in _locks:
        return
    if not (staging / _UNFINISHED).is_file():
        if _done(staging) or (staging.is_dir() and not any(staging.iterdir())):
            return  # killed as soon as it was made, or just before it would have taken its place
        raise FileExistsError(
            f"{staging} is in the way and was not written by a stage; move it away"
        )
    with (staging / _UNFINISHED).open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"another run is writing {staging.name[1:].removesuffix('.partial')!r} in {staging.parent}: "
                "wait for it, or give another output folder"
            ) from None


def _empty_staging(path: str | Path, kind: str = "") -> Path:
    staging = _staging(_resolved(path))
    _check_ours(staging)
    discard_output(path)
    _remove(staging)
    staging.mkdir(parents=True)
    marker = staging / _UNFINISHED
    marker.write_text(kind, encoding="utf-8")
    _lock(staging)
    return staging


def _lock(staging: Path) -> None:
    _locks[staging] = os.open(staging / _UNFINISHED, os.O_RDONLY)
    fcntl.flock(_locks[staging], fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove(folder: Path) -> None:
    """Remove what is unfinished, if it is there; what says that it is ours goes last, after any kill."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in (_UNFINISHED, DONE):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _release(staging: Path) -> None:
    (staging / _UNFINISHED).unlink()
    os.close(_locks.pop(staging))


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
    """Everything below a folder that is a file, a link (none is followed) or an empty folder."""
    return sorted(
        p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir() or not any(p.iterdir())
    )


def _done(folder: Path) -> dict:
    """What `done.json` says; empty where there is none of ours."""
    try:
        done = read_json(folder / DONE)
        return done if done["format"] == FORMAT and isinstance(done["files"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _finished(path: str | Path) -> Path | None:
    """The finished output which a path is or lies in."""
    folder = _resolved(path)
    return next((p for p in (folder, *folder.parents) if _done(p).get("run")), None)


def _listed(folder: Path) -> dict[str, int]:
    """Sizes by name of what a finished output holds."""
    return _done(folder).get("files", {})


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
    with _partial(folder / DONE) as partial:
        partial.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _link(source: Path, copy: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    with contextlib.suppress(OSError):
        os.link(source, copy)
        return
    shutil.copy2(source, copy)
