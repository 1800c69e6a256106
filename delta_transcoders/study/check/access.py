"""Can what a study reads be had: is it there, may it be read, and if not, what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

from delta_transcoders import files
from delta_transcoders.hub import split_hub_id
from delta_transcoders.study.check.before import make_command
from delta_transcoders.study.check.sources import Source
from delta_transcoders.study.plan import Graph

TIMEOUT = 20  # seconds that the hub has to answer


def access(source: Source, graph: Graph, file: str) -> str:
    """Where a source lies, with its licence as far as it says one.

    Args:
        file: the study file, for the command that makes what is missing.

    Raises:
        FileNotFoundError: it is not there; says what makes or fetches it.
        PermissionError: it may not be read, or its terms were not accepted.
        ConnectionError: a hub that cannot be reached, and no copy in its cache.
        FileExistsError: in the folder that a stage would write lies something else.
    """
    path = Path(source.name).expanduser()
    if source.maker:
        check_made(source, graph, file)
    if source.kind == "file" and not path.is_file():
        raise FileNotFoundError(f"there is no such file: give one, {source.given_as('FILE')}")
    if source.kind != "dataset" and path.exists():
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for found in inside:
            if not os.access(found, os.R_OK):
                raise PermissionError(f"{found} may not be read by you: change its permissions")
        return f"there{_local_licence(path)}" if path.is_dir() else "there"
    if split_hub_id(source.name) is None:
        raise FileNotFoundError(
            f"neither a folder nor a hub id (owner/name): give one, {source.given_as('DIR')}"
        )
    return _on_the_hub(source)


def check_made(source: Source, graph: Graph, file: str) -> None:
    """What a stage without options makes once, for all studies, must be there, whole and its own."""
    path = Path(source.name).expanduser()
    make = make_command(graph, file, source.maker)
    staged = path.parent / f".{path.name}.partial"
    if not path.exists():
        left = f"; {staged}, beside it, is what an interrupted run left" if staged.exists() else ""
        raise FileNotFoundError(f"not there yet{left}. Make it: {make}")
    if files.run_of(path) is None:
        raise FileExistsError(
            f"the stage {source.maker} writes this folder, and something else lies in it: move that away, "
            f"then {make}, or use what it is by {source.given_as('DIR')}"
        )
    if not files.is_whole(path):
        raise ValueError(
            f"files of it were changed or removed since it was made: move {path} away, then {make}"
        )
    stage = graph.steps[source.maker].stage
    if stage.run == "delta_transcoders.smollm2" and source.kind == "model":
        from delta_transcoders.smollm2 import SOURCE, origins

        known = files.read_json(path / SOURCE, f"another model, move it away, then {make}")
        asked = (option in stage.arguments for option in ("--from-package", "--from-hub"))
        expected = origins(*asked)
        if known.get("source") not in expected:
            raise FileExistsError(
                f"{path / SOURCE} says {known.get('source')!r}, expected "
                f"{' or '.join(map(repr, expected))}: move the folder away, then {make}"
            )


def _on_the_hub(source: Source) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    repo, _ = split_hub_id(source.name)
    kind = "dataset" if source.kind == "dataset" else "model"
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    api = HfApi()
    try:
        api.auth_check(repo, repo_type=kind)
        info = api.repo_info(repo, repo_type=kind, timeout=TIMEOUT)
    except GatedRepoError:
        raise PermissionError(
            f"gated: accept the terms on {page} with your account, then `hf auth login` on this machine"
        ) from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{page} does not exist, or is private: mend the name by {source.given_as('NAME')}, or `hf auth "
            "login`"
        ) from None
    except (OSError, HTTPError) as error:
        if kind == "model" and (folder := cached_folder(repo)):
            return f"the hub is out of reach, but a copy is in its cache, {folder}{_local_licence(folder)}"
        raise ConnectionError(
            f"not here, and the hub cannot be reached ({type(error).__name__}). {_fetch(source)}"
        ) from None
    terms = f", gated ({info.gated}), and you have access" if info.gated else ""
    licence = (info.card_data or {}).get("license")
    where = "in the hub's cache" if cached_folder(repo, kind) else "on the hub, not downloaded yet"
    return f"{where}{terms}, licence {licence or f'not said: see {page}'}"


def _fetch(source: Source) -> str:
    folder = f"models/{source.name.split('/')[1]}"
    if source.kind == "dataset":
        return (
            "Where there is none, give lines of your own: options of the task, copy_source file and "
            "copy_file FILE (docs/NEW_TASK.md)"
        )
    return (
        f"Where there is a network: `hf download {source.name} --local-dir {folder}`, then "
        f"{source.given_as(folder)}"
    )


def cached_folder(repo: str, kind: str = "model") -> Path | None:
    """The snapshot of a repository in the hub's cache, which may hold only some of its files."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo, repo_type=kind, local_files_only=True, allow_patterns=[])
        )
    except OSError:
        return None


def _local_licence(folder: Path) -> str:
    """What a folder says of its licence, as the end of a line; a hub's README has it on top."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    on_top = re.search(r"\A---\n.*?^license: *(\S+)", text, re.DOTALL | re.MULTILINE)
    if named := on_top or re.search(r"\bLicence: ([\w.-]*\w)", text):
        return f", licence {named[1]}"
    return ", see its LICENSE" if (folder / "LICENSE").is_file() else ", licence not said"
