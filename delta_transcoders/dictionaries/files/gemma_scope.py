"""Gemma Scope's transcoder files.

Layout: `layer_{L}/width_{W}/average_l0_{k}/params.npz`, a NumPy archive with the float32 arrays
`W_enc` [d_in, n_features], `b_enc` [n_features], `W_dec` [n_features, d_out], `b_dec` [d_out] and
`threshold` [n_features] of a JumpReLU transcoder. The files name no hook site: Gemma Scope's is Gemma 2's
default, and dictionaries of our own for other models are for theirs. Names of widths follow the published
ones: 16384 is `16k` and 65536 is `65k` (thousands, rounded down), 1048576 is `1m`, and a width that is no
multiple of 1024 is written out (`width_512`).
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from delta_transcoders.dictionaries.files.listing import Entry, Files
from delta_transcoders.dictionaries.files.tensors import (
    check_writable,
    dictionary_shapes,
    identify,
    to_transcoder,
    vector_lengths,
)
from delta_transcoders.dictionaries.identity import L0, BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.files import partial_file
from delta_transcoders.tensor_files import check_no_pointer

DAMAGED = (zipfile.BadZipFile, zlib.error)
KEYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_PARAMS = re.compile(r"layer_(\d+)/width_(\d+[km]?)/average_l0_(\d+(?:\.\d+)?)/params\.npz")


def params_path(layer: int, width: int, average_l0: L0) -> str:
    """Path of one dictionary below its folder or hub repository.

    >>> params_path(3, 16384, 76)
    'layer_3/width_16k/average_l0_76/params.npz'
    """
    l0 = int(average_l0) if float(average_l0).is_integer() else average_l0
    return f"layer_{layer}/width_{width_name(width)}/average_l0_{l0}/params.npz"


def width_name(width: int) -> str:
    """
    >>> [width_name(width) for width in (512, 1024, 16384, 65536, 131072, 1048576)]
    ['512', '1k', '16k', '65k', '131k', '1m']
    """
    if width % 2**20 == 0:
        return f"{width // 1_000_000}m"
    return f"{width // 1000}k" if width % 1024 == 0 else str(width)


def width_number(name: str) -> int:
    """The multiple of 1024 (k) or 2^20 (m) whose thousands or millions, rounded down, it names."""
    for suffix, binary, decimal in (("k", 1024, 1000), ("m", 2**20, 10**6)):
        if name.endswith(suffix):
            return -(-int(name[:-1]) * decimal // binary) * binary
    return int(name)


def find(files: Files) -> list[Entry]:
    """
    Raises:
        ValueError: a width or L0 that is not written as Gemma Scope writes it.
    """
    found = []
    for path in files.paths:
        if match := _PARAMS.fullmatch(path):
            layer, width = int(match[1]), width_number(match[2])
            l0 = float(match[3]) if "." in match[3] else int(match[3])
            if params_path(layer, width, l0) != path:
                raise ValueError(
                    f"{files.source}: {path} should be named {params_path(layer, width, l0)}"
                )
            kind = f"layer_*/width_{match[2]}/average_l0_*"
            found.append(Entry(layer, path, kind, width, l0))
    return found


def load(files: Files, entry: Entry) -> tuple[Transcoder, BaseId]:
    """
    Raises:
        ValueError: not an archive of exactly these float32 arrays; names the file and the array.
    """
    path = files.get(entry.path)
    check_no_pointer(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a NumPy .npz archive (it may be a pickle, or cut short); it was not opened"
        )
    arrays: dict[str, np.ndarray] = {}
    with np.load(path, allow_pickle=False) as archive:
        if set(archive.files) != set(KEYS):
            raise ValueError(
                f"{path} holds the keys {sorted(archive.files)}, expected {sorted(KEYS)}"
            )
        for key in KEYS:
            try:
                arrays[key] = archive[key]
            # Of a member that is cut short, damaged, encrypted or compressed in another way.
            except (ValueError, RuntimeError, OSError, EOFError, *DAMAGED) as error:
                raise ValueError(
                    f"{path}: {key} cannot be read as a plain array: {error}"
                ) from error
            if not isinstance(arrays[key], np.ndarray):
                raise ValueError(f"{path}: {key} cannot be read as a plain array: no .npy in it")
            if arrays[key].dtype != np.float32:
                raise ValueError(f"{path}: {key} has dtype {arrays[key].dtype}, expected float32")
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    n_features, d_model = vector_lengths(path, tensors, "b_enc", "b_dec")
    transcoder = to_transcoder(
        path,
        tensors,
        dictionary_shapes(d_model, n_features, d_model),
        "by the lengths of b_enc and b_dec",
    )
    return transcoder, identify(files, entry, transcoder, None, average_l0=entry.l0)


def save_base(folder_root: str | Path, layer: int, transcoder: Transcoder, average_l0: L0) -> Path:
    """Write `params.npz` in the exact layout, atomically; `load_base` reads back the same bits.

    Raises:
        ValueError: not JumpReLU alone; this layout can say neither other activations nor skip and scales.
    """
    check_writable(layer, transcoder, "Gemma Scope's layout", skip=False)
    path = Path(folder_root) / params_path(layer, transcoder.n_features, average_l0)
    tensors = transcoder.state_dict()
    arrays = {key: tensors[key].float().cpu().contiguous().numpy() for key in KEYS}
    # Given a name instead of a file, NumPy would append .npz to it.
    with partial_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return path
