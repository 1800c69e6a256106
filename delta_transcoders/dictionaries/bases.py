"""Base dictionaries of every published layout, from a local folder or the Hugging Face hub alike.

A layout is recognised by the files there are; its reader is the module of `files/` that has its name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType

from delta_transcoders.dictionaries.files import (
    circuit_tracer,
    gemma_scope,
    gemma_scope_2,
    saelens,
    sparsify,
)
from delta_transcoders.dictionaries.files.listing import Entry, Files, list_files
from delta_transcoders.dictionaries.identity import L0, BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder

LAYOUTS: dict[str, ModuleType] = {
    "Gemma Scope": gemma_scope,
    "Gemma Scope 2": gemma_scope_2,
    "circuit-tracer": circuit_tracer,
    "sparsify": sparsify,
    "SAELens": saelens,
}
LAYOUT_FILES = (
    "layer_L/width_W/average_l0_K/params.npz (Gemma Scope), transcoder_all/…/params.safetensors (Gemma "
    "Scope 2), config.yaml and layer_L.safetensors (circuit-tracer), …layers.L.mlp/sae.safetensors "
    "(sparsify), …layer_L…/sae_weights.safetensors (SAELens)"
)
SIZES = ("small", "medium", "big")


def load_base(
    source: str | Path,
    layer: int,
    *,
    width: int | None = None,
    percentile: float | None = None,
    average_l0: L0 | str | None = None,
    files: str | None = None,
    d_model: int | None = None,
) -> tuple[Transcoder, BaseId]:
    """Read one base dictionary, in the dtype it is stored in, from a local folder or a hub id.

    Args:
        source: folder or hub id, also `owner/name/folder`.
        width, files: say which, where a layer has several kinds; `files` is a kind as errors list them, a
            path below the source, or a pattern of some, as in `transcoder_all/*_l0_small`.
        percentile, average_l0: say which of one kind, where there are several; a number, or one of
            `small`, `medium` and `big` where the set has these.
        d_model: the model's, to refuse another model's dictionaries.

    Raises:
        FileNotFoundError: no such source, or a file is missing.
        ValueError: no set or several where one is expected, no such dictionary or several, or files that do
            not hold what they should; names them, and what there is.
    """
    listed = list_files(source)
    reader, entries = _layout(listed)
    entry = _choose(listed, entries, layer, width, percentile, average_l0, files)
    transcoder, base_id = reader.load(listed, entry)
    where = f"{listed.source}/{entry.path}"
    expected = width or entry.width or transcoder.n_features
    if transcoder.n_features != expected:
        raise ValueError(
            f"{where}: W_enc has {transcoder.n_features} features, expected {expected}"
        )
    for name, found in (("W_enc", transcoder.d_in), ("W_dec", transcoder.d_out)):
        if d_model is not None and found != d_model:
            raise ValueError(
                f"{where}: {name} has d_model {found}, the model expects {d_model}; "
                "these dictionaries belong to another model"
            )
    return transcoder, base_id


def held(source: str | Path) -> list[Entry]:
    """All dictionaries of a set.

    Raises:
        FileNotFoundError, ValueError: as `load_base`.
    """
    return _layout(list_files(source))[1]


def check_held(
    source: str | Path,
    layers: Collection[int],
    *,
    width: int | None = None,
    percentile: float | None = None,
    files: str | None = None,
) -> list[Entry]:
    """What `load_base` would take for these layers; refuses what it would, as far as the names of files tell.

    Raises:
        FileNotFoundError, ValueError: as `load_base`.
    """
    listed = list_files(source)
    entries = _layout(listed)[1]
    return [_choose(listed, entries, layer, width, percentile, files=files) for layer in layers]


def available_l0s(source: str | Path, layer: int, width: int | None = None) -> list[L0 | str]:
    """The values of average L0 of one layer (and width), ascending."""
    entries = [entry for entry in held(source) if entry.layer == layer]
    return _ascending({entry.l0 for entry in entries if width in (None, entry.width)})


def entry_of(source: str | Path, base_id: str) -> Entry:
    """The dictionary of a source that `BaseId.path` named, wherever the set was then.

    Raises:
        ValueError: the source holds none of that name.
    """
    for entry in held(source):
        if f"/{base_id}".endswith(f"/{entry.path}"):
            return entry
    raise ValueError(f"{source} holds no dictionary whose path ends like {base_id}")


def _choose(
    listed: Files,
    entries: Sequence[Entry],
    layer: int,
    width: int | None = None,
    percentile: float | None = None,
    average_l0: L0 | str | None = None,
    files: str | None = None,
) -> Entry:
    """One dictionary of a layer; arguments and errors as of `load_base`."""
    found = [entry for entry in entries if entry.layer == layer]
    if not found:
        layers = sorted({entry.layer for entry in entries})
        raise ValueError(
            f"{listed.source} holds no base dictionary of layer {layer}; its layers: {layers}"
        )
    kinds = sorted({entry.kind for entry in found})
    if width is not None:
        found = [entry for entry in found if entry.width in (None, width)]
    if files is not None:
        patterns = (files, f"{files.rstrip('/')}/*")
        found = [entry for entry in found if entry.kind == files] or [
            e for e in found if any(fnmatch.fnmatchcase(e.path, p) for p in patterns)
        ]
    if not found:
        wanted = [f"width {width}"] if width is not None else []
        wanted += [f"files {files!r}"] if files is not None else []
        raise ValueError(
            f"{listed.source}: layer {layer} has nothing of {' and '.join(wanted)}; it has "
            f"{', '.join(kinds)}"
        )
    kinds = sorted({entry.kind for entry in found})
    if len(kinds) > 1:
        raise ValueError(
            f"{listed.source}: layer {layer} is there as {', '.join(kinds)}; say which, by width or by "
            "files, a pattern of paths"
        )
    by_l0 = {entry.l0: entry for entry in found}
    for entry in found:
        if by_l0[entry.l0] is not entry:
            raise ValueError(
                f"{listed.source}: layer {layer} is there as {entry.path} and as {by_l0[entry.l0].path}; "
                "say which by files"
            )
    if len(by_l0) == 1 and percentile is None and average_l0 is None:
        return found[0]
    return by_l0[choose_l0(list(by_l0), percentile=percentile, average_l0=average_l0)]


def choose_l0(
    l0s: Sequence[L0 | str | None],
    *,
    percentile: float | None = None,
    average_l0: L0 | str | None = None,
) -> L0 | str | None:
    """One of the available values of average L0, by percentile or by name.

    Percentile p takes index min(n - 1, int(n·p)) of the ascending values.

    >>> choose_l0([9, 40, 151, 76], percentile=0.5), choose_l0(["big", "small"], percentile=0.25)
    (76, 'small')
    """
    l0s = _ascending(l0s)
    if (percentile is None) == (average_l0 is None):
        raise ValueError(
            f"give percentile or average_l0 (there are {l0s}), got {percentile} and {average_l0}"
        )
    if not l0s:
        raise ValueError("there is no average_l0 to choose from")
    if percentile is not None:
        if not 0 <= percentile <= 1:
            raise ValueError(f"percentile is {percentile}, expected a number between 0 and 1")
        return l0s[min(len(l0s) - 1, int(len(l0s) * percentile))]
    if average_l0 not in l0s:
        raise ValueError(f"there is no average_l0 {average_l0}; there are {l0s}")
    return average_l0


def _ascending(l0s: Collection[L0 | str | None]) -> list[L0 | str | None]:
    return sorted(l0s, key=lambda l0: SIZES.index(l0) if l0 in SIZES else l0 or 0)


def _layout(listed: Files) -> tuple[ModuleType, list[Entry]]:
    found = {name: entries for name, m in LAYOUTS.items() if (entries := m.find(listed))}
    if len(found) > 1:
        paths = [f"{name} ({entries[0].path}, …)" for name, entries in found.items()]
        raise ValueError(
            f"{listed.source} holds dictionaries of several layouts: {' and '.join(paths)}; give the folder "
            "of one of them"
        )
    if not found:
        raise ValueError(f"{listed.source} holds no dictionaries: {_why_none(listed)}")
    ((name, entries),) = found.items()
    return LAYOUTS[name], entries


def _why_none(listed: Files) -> str:
    for path in listed.paths:
        if path.endswith(".safetensors.index.json"):
            return f"{path} is an index of parts, and a dictionary is read from one file; join them"
        if path.endswith(("hyperparams.json", "checkpoints/final.safetensors")):
            return (
                f"{path} is of Llama Scope, whose transcoders cut at one threshold for pre-activation times "
                "decoder norm, and rescale inputs by a measured norm; no reader does that"
            )
        if path.endswith((".pt", ".pth", ".pkl", ".bin")):
            return (
                f"{path} is a pickle, which can run code when it is opened (GPT-2's transcoders are "
                "published so); convert it to safetensors elsewhere"
            )
    return f"expected {LAYOUT_FILES}"
