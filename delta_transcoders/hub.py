"""The Hugging Face hub: sources that are a local folder or a hub id (`owner/name`), texts, and uploads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
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


def split_hub_id(source: str) -> tuple[str, str] | None:
    """Repository, and folder in it, of a source that may be meant as a hub id; None for other sources.

    >>> split_hub_id("google/gemma-scope-2-1b-pt/transcoder_all")
    ('google/gemma-scope-2-1b-pt', 'transcoder_all/')
    >>> split_hub_id("google/gemma-2-2b"), split_hub_id("./a/b"), split_hub_id("a/b/c/d")
    (('google/gemma-2-2b', ''), None, None)
    """
    found = re.fullmatch(r"([^/]+/[^/]+)(?:/([^/]+))?/?", source)
    if found is None or not is_hub_id(found[1]):
        return None
    return found[1], f"{found[2]}/" if found[2] else ""


def are_two_models(one: str | None, other: str | None) -> bool:
    """Whether both are hub ids, and of different models: owners and a `-pt` at the end say nothing.

    >>> are_two_models("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B")
    True
    >>> are_two_models("google/gemma-3-270m-pt", "mirror/gemma-3-270m"), are_two_models("a/b", "./c")
    (False, False)
    """
    if not all(source and is_hub_id(source) for source in (one, other)):
        return False
    names = [source.split("/")[1].lower().removesuffix("-pt") for source in (one, other)]
    return names[0] != names[1]


def split_layer(path: str, file: str | None = None) -> tuple[str, str]:
    """The set that a dictionary belongs to, and the dictionary's own path in it.

    Args:
        file: that own path, where it is known; else it starts at the folder that names a layer.

    >>> split_layer("owner/name/layer_0/width_16k/average_l0_76/params.npz")
    ('owner/name', 'layer_0/width_16k/average_l0_76/params.npz')
    >>> split_layer("skip/model.layers.3.mlp/sae.safetensors")
    ('skip', 'model.layers.3.mlp/sae.safetensors')
    >>> split_layer("sets/mine/blocks.3.mlp/sae_weights.safetensors", "blocks.3.mlp/sae_weights.safetensors")
    ('sets/mine', 'blocks.3.mlp/sae_weights.safetensors')
    """
    if file and path.endswith(f"/{file}"):
        return path.removesuffix(f"/{file}"), file
    found = re.fullmatch(r"(.*)/([^/]*layers?[._]\d.*)", path)
    return (found[1], found[2]) if found else (path, "")


def portable_name(source: str, file: str | None = None) -> str:
    """A model's or dictionary's id, without the folders of the machine it lies on.

    Args:
        file: of `split_layer`.

    >>> portable_name("/data/me/base_transcoders/layer_0/width_16k/average_l0_76/params.npz")
    'base_transcoders/layer_0/width_16k/average_l0_76/params.npz'
    >>> portable_name("owner/name/layer_0/width_16k/average_l0_76/params.npz")
    'owner/name/layer_0/width_16k/average_l0_76/params.npz'
    """
    source, own = split_layer(source, file)
    folder = os.path.basename(os.path.abspath(source))  # `.` has no name of its own
    name = source if split_hub_id(source) else folder
    return f"{name}/{own}" if own else name


def check_hub_id(source: str, what: str = "folder") -> None:
    """Refuse a source that is neither a folder, which the caller has seen, nor a hub id.

    Args:
        what: kind of folder it could have been, for the message.

    Raises:
        FileNotFoundError: names the source.
    """
    if not is_hub_id(source):
        raise FileNotFoundError(
            f"no {what} {source!r}; an earlier stage writes it, or give a hub id (owner/name, with no "
            "folder `owner` here)"
        )


def local_folder(source: str | Path, patterns: list[str]) -> Path:
    """The folder itself, or the local copy of a hub repository's files that match.

    Args:
        source: folder or hub id, also `owner/name/folder`.
        patterns: of paths below it.

    Raises:
        FileNotFoundError: neither a folder nor a hub id, or no such folder in the repository.
        ConnectionError: a hub id that cannot be had; says what to put where.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    split = split_hub_id(str(source))
    if split is None:
        check_hub_id(str(source))
    repository, below = split
    local = f"models/{repository.split('/')[1]}"
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    try:
        found = huggingface_hub.snapshot_download(
            repository, allow_patterns=[below + pattern for pattern in patterns]
        )
    except (OSError, HTTPError) as error:
        raise ConnectionError(
            f"{source!r} is neither a local folder nor to be had from the Hugging Face hub "
            f"({type(error).__name__}). Where there is a network: `hf download {repository} --local-dir "
            f"{local}`, then give {f'{local}/{below}' if below else 'that folder'} in place of the hub id."
        ) from error
    folder = Path(found) / below
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the copy here of {repository!r} holds no folder {below.removesuffix('/')!r} with such files: "
            f"{', '.join(patterns)}"
        )
    return folder


def hub_texts(dataset: str, name: str | None = None) -> Iterator[str]:
    """Texts of a hub dataset's `train` split, streamed.

    Args:
        dataset: hub id of a dataset with a `text` column, for example `allenai/c4`; rows without text are
            left out.
        name: its configuration, for example `en`.

    Raises:
        ConnectionError: the hub cannot be reached.
        ValueError: no such column, something else than text in it, or files that cannot be read; names the
            dataset.
    """
    from datasets import load_dataset

    try:
        for row in load_dataset(dataset, name, split="train", streaming=True):
            if text := _text(row):
                yield text
    except OSError as error:
        raise ConnectionError(
            f"cannot stream the dataset {dataset!r} from the hub ({type(error).__name__})"
        ) from error
    except (ValueError, RuntimeError, StopIteration) as error:  # the last: an empty file
        said = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"the dataset {dataset!r} cannot be read: {said[0][:200]}") from error


def _text(row: dict[str, object]) -> str:
    if "text" not in row:
        raise ValueError(f"no column 'text'; it has {', '.join(map(repr, row))}")
    text = row["text"]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the column 'text' holds {text!r:.60}, no text")
    return (text or "").removeprefix("\ufeff")


def check_push(repo_id: str) -> None:
    """Refuse a push that cannot succeed, before anything is written or sent.

    Raises:
        ValueError: not `owner/name` as the hub allows it, or no token on this machine.
    """
    from huggingface_hub import get_token

    check_repository(repo_id, "--push-to-hub")
    if get_token() is None:
        raise ValueError(
            "no Hugging Face token here: run `hf auth login` with a token that may write, or set HF_TOKEN"
        )


def check_repository(repo_id: str, option: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        ValueError: not `owner/name` as the hub allows it; names the option that it was given by.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not re.fullmatch(r"[^/]+/[^/]+", repo_id):
        raise ValueError(f"{option} {repo_id!r}: a hub id is USER/NAME, with one slash")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{option} {repo_id!r}: {error}") from error


OF_AN_EXPORT = ("layer_*", "transcoder_all/*", "model*", "features/*")
"""Layers, weights and texts."""


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    replaced: Sequence[str] = OF_AN_EXPORT,
) -> str:
    """Upload a folder as one commit to a model repository, made where there is none; its address.

    Args:
        repo_id: one that `check_push` lets pass.
        replaced: patterns of paths; what the repository holds of these and the folder does not is deleted
            from it, as readers would mix them. Its history keeps it.

    Raises:
        ValueError: a private push into a repository that is public.
        ConnectionError: the hub refuses or cannot be reached; says what it said.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        # An existing repository keeps its visibility, whatever was asked for.
        if private and not api.repo_info(repo_id).private:
            raise ValueError(
                f"{repo_id} exists and is public; make it private in its settings, give another name, "
                "or leave out --private"
            )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Upload {Path(folder).name}",
            delete_patterns=list(replaced),
        )
    except (OSError, HTTPError) as error:
        said = str(error).strip().splitlines()
        raise ConnectionError(
            f"the hub did not take {folder} as {repo_id}: {said[-1] if said else type(error).__name__}; it "
            f"needs a network and a token that may write to {repo_id.split('/')[0]} (`hf auth whoami`)"
        ) from error
    return str(url)
