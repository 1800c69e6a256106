"""The seeds of registered claims: `python -m delta_transcoders.study.seeds [--n 5]`.

They are derived from the hash of the commit that last changed what is registered, `docs/REGISTERED.md` and
`docs/findings_conditions.csv`: who writes the claims cannot have tried the seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
from collections.abc import Sequence

from delta_transcoders.command import run

REGISTERED = ("docs/REGISTERED.md", "docs/findings_conditions.csv")


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


def registering_commit(paths: Sequence[str] = REGISTERED) -> str:
    """The hash of the commit that registered the claims.

    Raises:
        ValueError: no such commit, or the files have changed since.
    """
    if changed := _git("status", "--porcelain", "--", *paths):
        raise ValueError(f"not committed, and so not registered: {' '.join(changed.split()[1::2])}")
    commit = _git("log", "-1", "--format=%H", "--", *paths)
    if not commit:
        raise ValueError(f"no commit holds {' or '.join(paths)}: run this in a checkout")
    return commit


def _git(*args: str) -> str:
    ended = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(f"git {args[0]}: {ended.stderr.strip()}")
    return ended.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5, help="how many")
    args = parser.parse_args()
    print(*seeds_of(registering_commit(), args.n))


if __name__ == "__main__":
    run(main)
