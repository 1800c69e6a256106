"""Safetensors files, read with a plain refusal and written in one step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from delta_transcoders.files import partial_file


def check_no_pointer(path: str | Path) -> None:
    """Refuse what Git LFS leaves in place of a file.

    Raises:
        ValueError: names the file.
    """
    with Path(path).open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise ValueError(
                f"{path} is not the file but a Git LFS pointer to it: fetch it with `git lfs pull`, or with "
                "`hf download`"
            )


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file; what of it is never looked at is never read from disk.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file; a pickle under this name is not opened as one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    check_no_pointer(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file (it may be a pickle, or cut short); nothing of it was "
            f"executed: {error}"
        ) from error


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> int:
    """Write a file in one step; returns its size in bytes.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    with partial_file(path) as partial:
        try:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, partial)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
    return Path(path).stat().st_size
