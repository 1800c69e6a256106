"""The seeds of registered claims: `python -m delta_transcoders.study.seeds [--registered docs/smollm2]`.

They are derived from the hash of the commit that last changed what is registered in that folder,
`REGISTERED`: who writes the claims cannot have tried the seeds.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.git import git

DOCS = "docs"
"""Where the tiny study's claims are."""
CLAIMS, CONDITIONS, PLAN = "REGISTERED.md", "findings_conditions.csv", "plan.json"
REGISTERED = (CLAIMS, CONDITIONS, PLAN)
"""The claims, their pass conditions, and the plan of the study that tests them (`registration`)."""
N_SEEDS = 5


def seeds_of(commit: str, n: int) -> list[int]:
    """The first n different seeds of a commit's hash, each of six digits: SHA-256 of `HASH 0`, `HASH 1`, …

    >>> seeds_of("3bd7ae7", 3)
    [320165, 425287, 818052]
    """
    seeds: list[int] = []
    i = 0
    while len(seeds) < n:
        digest = hashlib.sha256(f"{commit} {i}".encode()).hexdigest()
        seed = 100_000 + int(digest, 16) % 900_000
        i += 1
        if seed not in seeds:
            seeds.append(seed)
    return seeds


class NotRegistered(ValueError):
    """What is in a folder is not registered, as far as git can say so."""


def last_commit(folder: str) -> str:
    """The hash of the commit that last changed the claims of a folder, whatever was changed since.

    Empty where there is none.

    Raises:
        ValueError: git cannot say: it is not installed, no repository, or a clone without history.
    """
    if git(folder, "rev-parse", "--is-shallow-repository") == "true":  # all is of its oldest commit
        raise ValueError(
            f"a clone without history does not have the commit that registered {folder}: git fetch "
            "--unshallow"
        )
    if not git(
        folder, "rev-list", "--all", "--max-count=1"
    ):  # where there is no commit, `log` fails
        return ""
    return git(folder, "log", "-1", "--format=%H", "--", *REGISTERED)


def registering_commit(folder: str = DOCS) -> str:
    """The hash of the commit that registered the claims of a folder.

    Raises:
        NotRegistered: no such commit, the files have changed since, or there are claims of a study of one's
            own without its plan.
        ValueError: git cannot say, see `last_commit`.
    """
    if not Path(folder).is_dir():
        raise NotRegistered(f"nothing is registered in {folder}: there is no such folder")
    if Path(folder) != Path(DOCS) and not (Path(folder) / PLAN).is_file():
        raise NotRegistered(
            f"nothing is registered in {folder} yet: there is no {PLAN}, which `python -m "
            "delta_transcoders.study.register STUDY.yaml` writes"
        )
    commit = last_commit(folder)
    if changed := git(folder, "status", "--porcelain", "--", *REGISTERED):
        names = " ".join(changed.split()[1::2])
        raise NotRegistered(f"not committed, and so not registered: {names}")
    if not commit:
        names = " or ".join(f"{folder}/{name}" for name in REGISTERED)
        raise NotRegistered(f"no commit holds {names}: run this in a checkout")
    return commit


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=N_SEEDS, help="how many")
    parser.add_argument(
        "--registered",
        default=DOCS,
        metavar="DIR",
        help="folder of the claims (default: %(default)s)",
    )
    given = parser.parse_args(args)
    print(*seeds_of(registering_commit(given.registered), given.n))


if __name__ == "__main__":
    run(main)
