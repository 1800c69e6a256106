"""What a study of a public model says once, for all its stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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


SITES = (
    "gemma_scope",
    "after_gain",
    "original",
    "residual",
)  # `SiteName`, without what that imports


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _is_layers(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_count, value))


def _is_groups(value: Any) -> bool:
    is_group = re.compile(r"all|\d+(\+\d+)*").fullmatch
    return isinstance(value, list) and value != [] and all(is_group(str(group)) for group in value)


VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_text, "a hub id or folder"),
    "transcoders": (_is_text, "a hub id or folder"),
    "files": (lambda value: value is None or _is_text(value), "a pattern of paths"),
    "layers": (lambda value: value is None or _is_layers(value), "layers as in [7, 14], or null"),
    "groups": (_is_groups, "groups of layers as in [7, 7+14, all]"),
    "hook_site": (lambda value: value in (None, *SITES), " or ".join(SITES)),
    "leading": (lambda value: value is None or _is_count(value), "a whole number from 0"),
    "rows": (lambda value: _is_count(value, 1), "a whole number from 1"),
}
"""By key, whether a value may stand there, and what may."""


def check_values(label: str, base: Mapping[str, Any], used: set[str]) -> None:
    """
    Args:
        used: the keys that are looked at.

    Raises:
        ValueError: a value of another type, or a group with a layer that has no dictionary.
    """
    for key in VALUES:
        if key in used and not VALUES[key][0](base[key]):
            raise ValueError(f"{label}: base.{key} is {base[key]!r}, expected {VALUES[key][1]}")
    layers = base["layers"]
    for group in base["groups"] if "groups" in used and _is_layers(layers) else ():
        for layer in map(int, re.findall(r"\d+", str(group))):
            if layer not in layers:
                raise ValueError(
                    f"{label}: base.groups has layer {layer}, which is not of base.layers {layers}"
                )


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
