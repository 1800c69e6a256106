"""Are the files of a model or a set whole and of a known format, and which weights are they?"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from delta_transcoders.files import free_bytes, read_json
from delta_transcoders.hub import split_hub_id
from delta_transcoders.study.check.access import TIMEOUT, cached_folder
from delta_transcoders.study.check.sources import DictionaryUse, Source
from delta_transcoders.tensor_files import check_no_pointer

if TYPE_CHECKING:
    from delta_transcoders.dictionaries.files.listing import Entry, Files
    from delta_transcoders.study.plan import Step

GB = 1e9


def here(name: str) -> Path | None:
    """The folder of a source that needs no download."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    split = split_hub_id(name)
    folder = cached_folder(split[0]) if split else None
    return folder / split[1] if folder else None


def check_safetensors(path: Path) -> None:
    """Whether the file is as long as its header says; none of its tensors is read.

    Raises:
        ValueError: cut short, or no such file; says what to do.
    """
    check_no_pointer(path)
    size = path.stat().st_size
    fetch = "fetch it again (`hf download` goes on where it stopped), or copy it again"
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header = file.read(length) if length < size else b""
    try:
        entries = json.loads(header)
        ends = [e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path} ({size:,} bytes) is no whole safetensors file, its header cannot be read: {fetch}"
        ) from None
    if size != expected:
        raise ValueError(f"{path} has {size:,} bytes, its header says {expected:,}: {fetch}")


def check_weights(path: Path) -> None:
    """`check_safetensors`, and whether a .npz has its table of contents, which stands at its end."""
    if path.suffix == ".safetensors":
        check_safetensors(path)
    elif path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short, it is no whole .npz: fetch it again"
        )


def check_no_leftovers(folder: Path) -> None:
    """
    Raises:
        ValueError: `hf download` was interrupted in this folder.
    """
    if left := sorted(folder.glob(".cache/huggingface/download/**/*.incomplete")):
        raise ValueError(
            f"{left[0]} is half of a download: run the same `hf download` again, which goes on"
        )


def check_model(source: Source) -> tuple[str, float]:
    """Refuse a model whose files are not all there, whole and of a supported family.

    Returns:
        What was found, and the bytes that are still to be downloaded.

    Raises:
        FileNotFoundError, ValueError: names the file, and what to do.
    """
    from delta_transcoders.language_models import check_model_source, load_tokenizer, shards

    folder = here(source.name)
    if folder is None or not (folder / "config.json").is_file():
        size = hub_bytes(source.name, lambda path: re.fullmatch(r"[^/]+\.safetensors", path))
        return f"to be downloaded, {size / GB:.2f} GB", size
    check_no_leftovers(folder)
    check_model_source(str(folder))
    paths = [folder / name for name in shards(folder) or ["model.safetensors"]]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: fetch it (`hf download` adds what is not there), or give another "
                f"folder, {source.given_as('DIR')}"
            )
        check_weights(path)
    tokenizer = load_tokenizer(str(folder))
    kind = read_json(folder / "config.json").get("model_type")
    template = "with" if tokenizer.chat_template else "without"
    return f"{kind}, {_gigabytes(paths)} in {len(paths)} files, {template} chat template", 0.0


def check_dictionaries(use: DictionaryUse) -> tuple[str, float]:
    """Likewise of a set, for those of its dictionaries that the study takes."""
    from delta_transcoders.dictionaries.files.listing import list_files

    if folder := here(use.dictionaries):
        check_no_leftovers(folder)
    listed, entries = list_files(use.dictionaries), taken(use)
    found = {entry.path: _local_file(listed, entry.path) for entry in entries}
    local = [path for path in found.values() if path]
    for path in local:
        check_weights(path)
    missing = {path for path, at in found.items() if at is None}
    size = hub_bytes(use.dictionaries, missing.__contains__) if missing else 0.0
    text = f"layers {_ranges(e.layer for e in entries)}, {_gigabytes(local)} here, {entries[0].path}, …"
    return text + (f"; to be downloaded, {size / GB:.2f} GB" if missing else ""), size


def taken(use: DictionaryUse) -> list[Entry]:
    """The dictionaries of a set that a study takes, one a layer."""
    from delta_transcoders.dictionaries.bases import check_held, held

    layers = use.layers or sorted({entry.layer for entry in held(use.dictionaries)})
    return check_held(use.dictionaries, layers, **dict(use.which))


def _local_file(listed: Files, path: str) -> Path | None:
    if listed.folder is not None:
        return listed.folder / path
    from huggingface_hub import try_to_load_from_cache

    repo, below = split_hub_id(listed.source)
    found = try_to_load_from_cache(repo, below + path)
    return Path(found) if isinstance(found, str) else None


def hub_bytes(name: str, is_wanted: Callable[[str], object]) -> float:
    """Size of those files of a repository on the hub whose path, below the source, is wanted."""
    from huggingface_hub import HfApi

    repo, below = split_hub_id(name)
    siblings = HfApi().repo_info(repo, files_metadata=True, timeout=TIMEOUT).siblings
    return float(sum(s.size or 0 for s in siblings if is_wanted(s.rfilename.removeprefix(below))))


def check_free(steps: Iterable[Step], folder: str, download: float) -> str:
    """Refuse a disk on which what the study file guesses of stages that were never run does not fit.

    Args:
        download: bytes that are not here yet.
    """
    free = free_bytes(folder)
    new = [s for s in steps if not all(Path(out).exists() for out in s.config.outputs)]
    needed = sum(step.stage.takes.get("megabytes", 0) for step in new) * 1e6 + download
    if needed > free:
        raise OSError(
            f"{needed / GB:.1f} GB are needed (as the study file guesses) and {free / GB:.1f} GB are free in "
            f"{folder}: make room, or give a folder on another disk (--study)"
        )
    return f"{needed / GB:.1f} GB needed (as the study file guesses), {free / GB:.1f} GB free"


def _gigabytes(paths: Sequence[Path]) -> str:
    return f"{sum(path.stat().st_size for path in paths) / GB:.2f} GB"


def _ranges(layers: Iterable[int]) -> str:
    """
    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
