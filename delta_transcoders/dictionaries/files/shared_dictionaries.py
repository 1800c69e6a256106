"""A study's deltas and base dictionaries, written for others, in float32 or rounded to bfloat16.

Rounded base dictionaries are SAELens's folders: NumPy's archives, of which Gemma Scope's layout is made, hold
no bfloat16. Deltas on a rounded base name it and its hash, so that what was shared together loads together.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from delta_transcoders.dictionaries.bases import held, load_base
from delta_transcoders.dictionaries.delta import (
    ON_DICTIONARIES,
    load_base_of,
    load_deltas,
    save_delta,
)
from delta_transcoders.dictionaries.files import DType, saelens
from delta_transcoders.dictionaries.files.rounding import (
    RoundingCost,
    TokensOf,
    rounded,
    rounding_cost,
)
from delta_transcoders.dictionaries.files.tensors import for_other_tools
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import AFTER_GAIN, HookSite
from delta_transcoders.hub import portable_name


def write_deltas(
    folder: Path,
    source: Path,
    dtype: DType,
    tokens_of: TokensOf,
    bases: str | None = None,
    base_repository: str | None = None,
) -> tuple[dict[int, str], dict[int, RoundingCost]]:
    """Write the deltas of a folder, in one dtype.

    Args:
        bases: folder or hub id of the bases that they were trained on.
        base_repository: hub id at which these are shared, in the same dtype, by `write_bases`; goes into the
            deltas' configurations in place of what they were trained on. None: it stays.

    Returns:
        by layer the hash of the delta as it was trained; and what rounding costs, where it was measured.

    Raises:
        FileNotFoundError, ValueError: deltas that are damaged or do not belong together, or on other bases,
            or on none where `base_repository` is given.
    """
    hashes, costs = {}, {}
    for layer, (path, delta, config) in load_deltas(source).items():
        config = replace(config, base_id=portable_name(config.base_id, config.base_file))
        if base_repository:
            if config.target not in ON_DICTIONARIES:
                raise ValueError(
                    f"--base-repository does not apply to {path}: a delta of target {config.target!r} stands "
                    "on no dictionary"
                )
            base, found = load_base_of(path, config, bases)
            file, shared = found.file, base
            if dtype != "float32":
                file, shared = f"layer_{layer}/{saelens.WEIGHTS_NAME}", _shared(base, dtype)
            config = replace(
                config,
                base_id=f"{base_repository}/{file}",
                base_file=file,
                base_hash=shared.fingerprint(),
            )
        hashes[layer] = delta.fingerprint()
        stored = delta
        if dtype != "float32":
            stored = rounded(delta, dtype)
            if (x := tokens_of(layer)) is not None:
                costs[layer] = rounding_cost(delta, stored, x)
        save_delta(folder / f"layer_{layer}", stored, config)
    return hashes, costs


@dataclass(frozen=True)
class SharedBase:
    """One base dictionary as it is shared."""

    layer: int
    file: str
    hash: str
    trained_file: str
    """In the study; the same where nothing was rounded, and so is the hash."""
    trained_hash: str


def write_bases(
    folder: Path,
    source: Path,
    dtype: DType,
    tokens_of: TokensOf,
    site: HookSite | None = None,
    base_model: str | None = None,
) -> tuple[list[SharedBase], dict[int, RoundingCost]]:
    """Write a study's base dictionaries; which they are, and by layer what rounding costs, where measured.

    Args:
        site: where they read and write; not needed for float32.
        base_model: name of the model they explain.

    Raises:
        ValueError: to be rounded, a layer has several, or their site has a scale.
    """
    entries, bases, costs = held(source), [], {}
    if dtype != "float32":
        _check_roundable(source, [entry.layer for entry in entries], site)
    for entry in entries:
        base, found = load_base(source, entry.layer, files=entry.path)
        if dtype == "float32":
            path = folder / entry.path
            path.parent.mkdir(parents=True)
            shutil.copyfile(source / entry.path, path)
            shared = base
        else:
            shared = _shared(base, dtype)
            if (x := tokens_of(entry.layer)) is not None:
                costs[entry.layer] = rounding_cost(base, shared, x)
            written = saelens.save_layer(
                folder, entry.layer, shared, site, base_model, base_model, None
            )
            path = written / saelens.WEIGHTS_NAME
        file = path.relative_to(folder).as_posix()
        bases.append(SharedBase(entry.layer, file, shared.fingerprint(), entry.path, found.hash))
    return bases, costs


def _shared(base: Transcoder, dtype: DType) -> Transcoder:
    return rounded(for_other_tools(base, AFTER_GAIN), dtype)  # thresholds from 0 on; no scale


def _check_roundable(source: Path, layers: list[int], site: HookSite | None) -> None:
    several = [layer for layer, n in Counter(layers).items() if n > 1]
    if several:
        raise ValueError(
            f"{source} has several dictionaries of layer {several[0]}, and --dtype bfloat16 writes one a "
            "layer (SAELens's folders): share them in float32"
        )
    if site is None:
        raise ValueError(
            f"--dtype bfloat16 writes SAELens's folders, which name a hook site, and nothing beside {source} "
            "says theirs (base_activations/manifest.json does): share them in float32"
        )
    if site.scale != "1":
        raise ValueError(
            f"{source} is for hook site {site.name!r}, whose scale SAELens's folders, which --dtype bfloat16 "
            "writes, cannot name: share them in float32"
        )
