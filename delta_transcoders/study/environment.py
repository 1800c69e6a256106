"""On what a stage runs: noted in `study.json`, and shown in a study's report."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from delta_transcoders.git import git

PACKAGES = (
    "delta-transcoders",
    "torch",
    "lightning",
    "transformers",
    "transformer-lens",
    "peft",
    "numpy",
)
_CGROUP_LIMITS = (  # of version 2 and 1, as a container sees its own
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_CHECKOUT = Path(__file__).resolve().parents[2]


_KEPT = (":!docs/results", ":!docs/*/results/*")
"""Tables that a registered study keeps there while it runs."""


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Commit (`-dirty` with changes, empty without a checkout), CPU, what bounds a stage's threads, and
    versions, for readers.

    Args:
        variables: of the stage's environment.
    """
    versions = [f"python {platform.python_version()}", *map(_version, PACKAGES)]
    return {
        "commit": _commit(),
        "cpu": _cpu(),
        "threads": _threads(variables),
        "versions": ", ".join(filter(None, versions)),
    }


def _commit() -> str:
    if not (_CHECKOUT / ".git").exists():
        return ""
    try:
        commit = git(_CHECKOUT, "rev-parse", "HEAD")
        changed = git(_CHECKOUT, "status", "--porcelain", "--untracked-files=no", "--", ".", *_KEPT)
        return f"{commit}-dirty" if changed else commit
    except ValueError:  # no git, or another user's checkout
        return ""


def memory_bytes() -> int:
    """What this machine has, or what its container may use."""
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        if path.is_file() and (text := path.read_text("utf-8").strip()).isdigit():  # or "max"
            bounds.append(int(text))
    return min(bounds)


def n_cpus() -> int:
    """CPUs that this process may use, which its stages may too."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(variables: Mapping[str, str]) -> str:
    """The CPUs, and what was set."""
    allowed = " allowed" if hasattr(os, "sched_getaffinity") else ""  # macOS does not say
    found = f"{n_cpus()} CPUs{allowed}"
    asked = variables.get("OMP_NUM_THREADS")
    return f"{found}, OMP_NUM_THREADS {asked}" if asked else found


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""
