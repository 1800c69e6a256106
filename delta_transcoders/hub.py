"""Sources that are a local folder or a hub id (`owner/name`) of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path


def is_hub_id(source: str) -> bool:
    """Whether a source that is no folder may be meant as a hub id.

    `owner/name` is, unless `owner` is a folder here: then a folder inside it is meant, which an earlier
    stage has not written yet.

    >>> [is_hub_id(source) for source in ("google/gemma-2-2b", "runs/tiny", "./a", "gemma", "a/b/c")]
    [True, False, False, False, False]
    """
    if source.startswith((".", "/", "~", "runs/")) or source.count("/") != 1:
        return False
    return not Path(source).parent.is_dir()


def local_folder(source: str | Path, patterns: list[str]) -> Path:
    """The folder itself, or the local copy of a hub repository's files that match.

    Raises:
        FileNotFoundError: neither a folder nor a hub id.
        ConnectionError: a hub id that cannot be had; says what to put where.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(str(source)):
        raise FileNotFoundError(
            f"no such folder: {source} (a hub id would read owner/name, with no folder `owner` here)"
        )
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=patterns))
    except (OSError, HTTPError) as error:
        raise ConnectionError(
            f"{source!r} is neither a local folder nor to be had from the Hugging Face hub "
            f"({type(error).__name__}). Where there is a network: `hf download {source} --local-dir "
            f"models/{folder.name}`, then give that folder in place of the hub id."
        ) from error
