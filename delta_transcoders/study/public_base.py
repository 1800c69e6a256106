"""What a study of a public model says once, for all its stages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from delta_transcoders.command import nearest

_REFERENCE = re.compile(r"\$\{base\.(\w+)")


@dataclass(frozen=True)
class PublicBase:
    """A base model and a public set of its dictionaries: `${base.model}` and so on in `configs/public/`.

    Attributes:
        model: hub id or folder of the base model.
        transcoders: hub id or folder of the dictionaries.
        files: which of them, where a layer has several kinds: `files` of `dictionaries.bases.load_base`.
        layers: those that are captured and get a delta; all where None.
        groups: what the experiments replace, each a layer, several joined by `+`, or `all`.
        hook_site, leading: where the dictionaries read, and how many of a text's first tokens they were not
            trained on, where the model's family says otherwise: options of `ActivationCapture`.
        rows: texts that go through the model at once in the experiments.
    """

    model: str | None = None
    transcoders: str | None = None
    files: str | None = None
    layers: list[int] | None = None
    groups: list[int | str] | None = None
    hook_site: str | None = None
    leading: int | None = None
    rows: int = 32


def used_keys(*parts: Any) -> set[str]:
    """Keys that configurations and options refer to.

    >>> used_keys({"model": {"model": "${base.model}"}}, ["--model.layers=${base.layers}"]) == {
    ...     "layers",
    ...     "model",
    ... }
    True
    """
    return set(_REFERENCE.findall(str(parts)))


def no_use(key: str) -> str:
    """What a `base.KEY` is that nothing refers to.

    >>> no_use("modle"), no_use("model")
    ("no option base.modle; did you mean 'model'?", 'no use of base.model: no file says ${base.model}')
    """
    known = asdict(PublicBase())
    if key not in known:
        return f"no option base.{key}; {nearest(key, known)}"
    return f"no use of base.{key}: no file says ${{base.{key}}}"


def check_base(
    label: str, configs: Sequence[Mapping[str, Any]], options: Sequence[str], fix: str
) -> None:
    """
    Args:
        label: what messages begin with.
        configs: of a stage, each over the ones before it.
        options: as typed, over them all.
        fix: what gives a stage its base.

    Raises:
        ValueError: an option gives what nothing refers to, or what is referred to is missing.
    """
    used = used_keys(configs, options)
    given = [found[1] for text in options if (found := re.match(r"--base\.(\w+)", text))]
    for key in given:
        if key not in used:
            raise ValueError(f"{label}: there is {no_use(key)}")
    bases = [config["base"] for config in configs if "base" in config]
    held = {key: value for base in bases if isinstance(base, dict) for key, value in base.items()}
    missing = sorted(key for key in used if held.get(key) == "???" and key not in given)
    if missing or (used and None in bases):
        raise ValueError(f"{label} needs a base ({', '.join(missing) or 'it is empty'}): {fix}")
