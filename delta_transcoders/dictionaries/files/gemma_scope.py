"""Gemma Scope's transcoder files, from a local folder or the Hugging Face hub alike.

Layout: `layer_{L}/width_{W}/average_l0_{k}/params.npz`, a NumPy archive with the float32 arrays
`W_enc` [d_in, n_features], `b_enc` [n_features], `W_dec` [n_features, d_out], `b_dec` [d_out] and
`threshold` [n_features]. Names of widths follow the published ones: 16384 is `16k` and 65536 is
`65k` (thousands, rounded down), 1048576 is `1m`, and a width that is no multiple of 1024 is
written out (`width_512`).
"""

import functools
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder
from delta_transcoders.files import partial_file
from delta_transcoders.fingerprints import hash_tensors
from delta_transcoders.hub import check_hub_id

KEYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_PARAMS = re.compile(r"layer_(\d+)/width_(\d+[km]?)/average_l0_(\d+(?:\.\d+)?)/params\.npz")

L0 = int | float


@dataclass(frozen=True)
class BaseId:
    """Which base dictionary this is, and the hash of its tensors."""

    source: str
    layer: int
    width: int
    average_l0: L0
    hash: str

    @property
    def path(self) -> str:
        """Folder or hub path of the file: what `DeltaConfig.base_id` records."""
        return f"{self.source}/{params_path(self.layer, self.width, self.average_l0)}"


def params_path(layer: int, width: int, average_l0: L0) -> str:
    """Path of one dictionary below its folder or hub repository.

    >>> params_path(3, 16384, 76)
    'layer_3/width_16k/average_l0_76/params.npz'
    """
    l0 = int(average_l0) if float(average_l0).is_integer() else average_l0
    return f"layer_{layer}/width_{width_name(width)}/average_l0_{l0}/params.npz"


def base_width(path: str) -> int:
    """Number of features, from a path that ends as `params_path` does.

    >>> base_width("google/gemma-scope-2b-pt-transcoders/" + params_path(3, 16384, 76))
    16384

    Raises:
        ValueError: it does not end so.
    """
    found = re.search(_PARAMS.pattern + "$", path)
    if found is None:
        raise ValueError(f"{path!r} is not the path of a base dictionary's params.npz")
    return _width_number(found[2])


def width_name(width: int) -> str:
    """
    >>> [width_name(width) for width in (512, 1024, 16384, 65536, 131072, 1048576)]
    ['512', '1k', '16k', '65k', '131k', '1m']
    """
    if width % 2**20 == 0:
        return f"{width // 1_000_000}m"
    return f"{width // 1000}k" if width % 1024 == 0 else str(width)


def _width_number(name: str) -> int:
    """The multiple of 1024 (k) or 2^20 (m) whose thousands or millions, rounded down, it names."""
    for suffix, binary, decimal in (("k", 1024, 1000), ("m", 2**20, 10**6)):
        if name.endswith(suffix):
            return -(-int(name[:-1]) * decimal // binary) * binary
    return int(name)


def choose_l0(
    l0s: Sequence[L0],
    *,
    percentile: float | None = None,
    average_l0: L0 | None = None,
) -> L0:
    """One of the available values of average L0, by percentile or by name.

    Percentile p takes index min(n - 1, int(n·p)) of the ascending values.

    >>> choose_l0([9, 40, 151, 76], percentile=0.5)
    76
    """
    if (percentile is None) == (average_l0 is None):
        raise ValueError(f"give percentile or average_l0, got {percentile} and {average_l0}")
    l0s = sorted(l0s)
    if not l0s:
        raise ValueError("there is no average_l0 to choose from")
    if percentile is not None:
        if not 0 <= percentile <= 1:
            raise ValueError(f"percentile is {percentile}, expected a number between 0 and 1")
        return l0s[min(len(l0s) - 1, int(len(l0s) * percentile))]
    if average_l0 not in l0s:
        raise ValueError(f"there is no average_l0 {average_l0}; there are {l0s}")
    return average_l0


def available_l0s(source: str | Path, layer: int, width: int) -> list[L0]:
    """The values of average L0 of one layer and width, ascending."""
    l0s = sorted(l0 for at, w, l0 in _index(str(source)) if (at, w) == (layer, width))
    if not l0s:
        raise ValueError(
            f"{source} holds no layer_{layer}/width_{width_name(width)}; "
            f"widths of this layer: {_widths(str(source), layer)}"
        )
    return l0s


def load_base(
    source: str | Path,
    layer: int,
    *,
    width: int | None = None,
    percentile: float | None = None,
    average_l0: L0 | None = None,
    d_model: int | None = None,
) -> tuple[JumpReLUTranscoder, BaseId]:
    """Read one base dictionary, float32, from a local folder or a hub id.

    `width` may be left out where the layer has only one; `d_model` is checked when given.
    """
    source = str(source)
    if width is None:
        widths = _widths(source, layer)
        if not widths:
            raise ValueError(
                f"{source} holds no base dictionary of layer {layer}: no "
                f"layer_{layer}/width_W/average_l0_K/params.npz"
            )
        if len(widths) != 1:
            raise ValueError(f"{source}: layer {layer} has widths {widths}; say which with width=")
        (width,) = widths
    l0s = available_l0s(source, layer, width)
    l0 = choose_l0(l0s, percentile=percentile, average_l0=average_l0)
    transcoder = _read_params(_local_file(source, params_path(layer, width, l0)))
    where = f"{source}/{params_path(layer, width, l0)}"
    if transcoder.n_features != width:
        raise ValueError(f"{where}: W_enc has {transcoder.n_features} features, expected {width}")
    for name, found in (("W_enc", transcoder.d_in), ("W_dec", transcoder.d_out)):
        if d_model is not None and found != d_model:
            raise ValueError(
                f"{where}: {name} has d_model {found}, the model expects {d_model}; "
                "these dictionaries belong to another model"
            )
    return transcoder, BaseId(source, layer, width, l0, hash_tensors(transcoder.state_dict()))


def save_base(
    folder_root: str | Path, layer: int, transcoder: JumpReLUTranscoder, average_l0: L0
) -> Path:
    """Write `params.npz` in the exact layout, atomically; `load_base` reads back the same bits."""
    path = Path(folder_root) / params_path(layer, transcoder.n_features, average_l0)
    tensors = transcoder.state_dict()
    arrays = {key: tensors[key].float().cpu().contiguous().numpy() for key in KEYS}
    # Given a name instead of a file, NumPy would append .npz to it.
    with partial_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return path


def _read_params(path: Path) -> JumpReLUTranscoder:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a NumPy .npz archive (it may be a pickle); it was not opened"
        )
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        if set(archive.files) != set(KEYS):
            raise ValueError(
                f"{path} holds the keys {sorted(archive.files)}, expected {sorted(KEYS)}"
            )
        for key in KEYS:
            try:
                arrays[key] = archive[key]
            except (ValueError, zipfile.BadZipFile) as error:
                raise ValueError(
                    f"{path}: {key} cannot be read as a plain array: {error}"
                ) from error
            if arrays[key].dtype != np.float32:
                raise ValueError(f"{path}: {key} has dtype {arrays[key].dtype}, expected float32")
    try:
        return JumpReLUTranscoder(**{key: torch.from_numpy(arrays[key]) for key in KEYS})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _widths(source: str, layer: int) -> list[int]:
    return sorted({width for at, width, _ in _index(source) if at == layer})


def _index(source: str) -> list[tuple[int, int, L0]]:
    """(layer, width, average_l0) of every dictionary in the source."""
    found = []
    for path in _listing(source)[0]:
        if match := _PARAMS.fullmatch(path):
            layer, width, l0 = match.groups()
            entry = (int(layer), _width_number(width), float(l0) if "." in l0 else int(l0))
            if params_path(*entry) != path:
                raise ValueError(f"{source}: {path} should be named {params_path(*entry)}")
            found.append(entry)
    return found


def _listing(source: str) -> tuple[list[str], Path | None]:
    """Paths of the files, and the folder they lie in (None where each must still be downloaded)."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _local_paths(folder), folder
    check_hub_id(source)
    return _hub_listing(source)


@functools.cache  # without a network every attempt takes the hub client half a minute
def _hub_listing(repo: str) -> tuple[list[str], Path | None]:
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return list_repo_files(repo), None
    except (OSError, HTTPError) as unreachable:
        try:
            # No pattern: a snapshot with only some of the repository's files will do.
            folder = Path(snapshot_download(repo, local_files_only=True, allow_patterns=[]))
        except OSError:
            raise FileNotFoundError(
                f"{repo} is neither a local folder nor reachable on the hub nor in its cache. "
                f"Download layer_*/width_*/average_l0_*/params.npz of https://huggingface.co/{repo}"
                f" (of the layers you need) into one folder, with these paths below it, "
                f"and give that folder instead of the hub id. The hub said: {unreachable}"
            ) from unreachable
        warnings.warn(
            f"the hub is out of reach: choosing among the files of {repo} in {folder} only",
            StudyWarning,
            stacklevel=2,
        )
        return _local_paths(folder), folder


def _local_paths(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.glob("layer_*/*/*/params.npz")]


def _local_file(source: str, path: str) -> Path:
    folder = _listing(source)[1]
    if folder is not None:
        return folder / path
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, path))
