"""The files of a set of dictionaries, in a local folder or a hub repository alike."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.identity import L0
from delta_transcoders.files import read_json
from delta_transcoders.hub import check_hub_id, split_hub_id

DEPTH = 4  # of a set's files below its folder: layer_L/width_W/average_l0_K/params.npz


class Entry(NamedTuple):
    """One dictionary of a set, as far as the names of its files tell."""

    layer: int
    path: str
    """Of its weights, below the set's folder."""
    kind: str
    """What it shares with the set's other layers: the path with `*` for the layer and the L0."""
    width: int | None = None
    l0: L0 | str | None = None
    """Average L0, or `small`, `medium`, `big`."""


@dataclass(frozen=True)
class Files:
    """
    Attributes:
        source: folder or hub id (with a folder of the repository: `owner/name/folder`).
        paths: of all files, below the source.
        folder: where they lie; None where each must be downloaded first.
    """

    source: str
    paths: Sequence[str]
    folder: Path | None

    def get(self, path: str) -> Path:
        """The local file.

        Raises:
            FileNotFoundError: there is none.
        """
        if path not in self.paths:
            raise FileNotFoundError(f"{self.source}/{path} does not exist")
        if self.folder is not None:
            return self.folder / path
        from huggingface_hub import hf_hub_download

        repo, below = split_hub_id(self.source)
        return Path(hf_hub_download(repo, below + path))

    def json(self, path: str) -> dict[str, Any]:
        return read_json(self.get(path))


def list_files(source: str | Path) -> Files:
    """
    Raises:
        FileNotFoundError: neither a folder nor a hub id that can be had.
    """
    source = str(source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Files(source, _local_paths(folder), folder)
    split = split_hub_id(source)
    if split is None:
        check_hub_id(source)
    repo, below = split
    paths, folder = _hub_listing(repo)
    inside = [path.removeprefix(below) for path in paths if path.startswith(below)]
    return Files(source, inside, folder and folder / below)


def _local_paths(folder: Path) -> list[str]:
    patterns = ["/".join(["*"] * depth) for depth in range(1, DEPTH + 1)]
    found = (path for pattern in patterns for path in folder.glob(pattern))
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


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
                f"{repo} is neither a local folder nor reachable on the hub nor in its cache. Download the "
                f"dictionaries that you need of https://huggingface.co/{repo} (`hf download {repo} "
                f"--local-dir models/{repo.split('/')[1]}`) and give that folder instead of the hub id. The "
                f"hub said: {unreachable}"
            ) from unreachable
        warnings.warn(
            f"the hub is out of reach: choosing among the files of {repo} in {folder} only",
            StudyWarning,
            stacklevel=2,
        )
        return _local_paths(folder), folder
