"""Whether rules stand in git as they are: only then are the texts opened that they are scored on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from delta_transcoders.features.rules.language import RULES_NAME
from delta_transcoders.features.rules.units import UNITS_NAME
from delta_transcoders.git import git


def committed(folder: str | Path) -> str:
    """The hash of the last commit that changed the rules or units of a folder.

    Raises:
        ValueError: one of them is not committed, or was changed since; or no git, or no repository.
    """
    for name in (RULES_NAME, UNITS_NAME):
        path = Path(folder) / name
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist; `python -m delta_transcoders.features.rules draw` writes it"
            )
        # Of a file that git ignores `status` says nothing.
        is_known = git(folder, "ls-files", "--", name)
        if not is_known or git(folder, "status", "--porcelain", "--", name):
            how = "was changed since it was committed" if is_known else "is not committed"
            raise ValueError(
                f"{path} {how}, and half B is opened for committed rules only: `git add {path}`, then "
                "`git commit`"
            )
    return git(folder, "log", "-1", "--format=%H", "--", RULES_NAME, UNITS_NAME)


def rules_sha256(folder: str | Path) -> str:
    """Of rules and units together."""
    digest = hashlib.sha256()
    for name in (RULES_NAME, UNITS_NAME):
        digest.update((Path(folder) / name).read_bytes())
    return digest.hexdigest()
