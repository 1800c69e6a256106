"""Which weights these are, and whether a study has already run on others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from delta_transcoders.activations.layout import MANIFEST_NAME
from delta_transcoders.study.check.sources import (
    DictionaryUse,
    Source,
    dtype_of,
    stages_with_options,
)
from delta_transcoders.study.plan import Graph, Step


def model_hash(source: Source, graph: Graph) -> str:
    """A model's fingerprint, after a comparison with what finished stages have noted.

    Raises:
        ValueError: a stage ran on other weights; names it, and both hashes.
    """
    from delta_transcoders.weights import StoredWeights

    found = StoredWeights(source.name, source.dtype).fingerprint()
    noted = list(_noted_of_model(source, graph))
    for where, hash_ in noted:
        _compare(where, hash_, found)
    return _said(found, source.dtype, noted)


def _noted_of_model(source: Source, graph: Graph) -> Iterator[tuple[str, str]]:
    """Where the model was noted, and its hash there."""
    for step in stages_with_options(graph):
        if dtype_of(step.config.values) != source.dtype:  # which would be other weights
            continue
        for output in map(Path, step.config.outputs):
            captured = step.config.values.get("model.model") == source.name
            if captured and (output / MANIFEST_NAME).is_file():
                yield str(output), _read(output / MANIFEST_NAME)["meta"]["model_fingerprint"]
        yield from _noted_by_deltas(step, source.name)


def _noted_by_deltas(step: Step, base_id: str) -> Iterator[tuple[str, str]]:
    """Folders and `base_hash` of a stage's deltas whose base this is, a model's or a dictionary's file."""
    for output in map(Path, step.config.outputs):
        for config in sorted(output.glob("**/layer_*/config.json")):
            delta = _read(config)
            if delta.get("base_id") == base_id:
                yield str(config.parent), delta["base_hash"]


def dictionary_hashes(use: DictionaryUse, layers: list[int], graph: Graph) -> str:
    """Those of some layers of a set, likewise."""
    from delta_transcoders.dictionaries.bases import load_base

    said = []
    for layer in layers:
        _, base_id = load_base(use.dictionaries, layer, **dict(use.which))
        noted = [
            found
            for step in stages_with_options(graph)
            for found in _noted_by_deltas(step, base_id.path)
        ]
        for where, hash_ in noted:
            _compare(where, hash_, base_id.hash)
        said.append(f"layer {layer} {_said(base_id.hash, '', noted)}")
    return "; ".join(said)


def _compare(where: str, noted: str, found: str) -> None:
    if noted != found:
        raise ValueError(
            f"{where} was made with other weights (sha256 {noted[:16]}…, these have {found[:16]}…): give "
            "another folder for the study (--study), or the weights of then"
        )


def _said(found: str, dtype: str, noted: list[tuple[str, str]]) -> str:
    same = f", as in {noted[0][0]}" if noted else ", nothing ran on it yet"
    return f"sha256 {found}{f' in {dtype}' if dtype else ''}{same}"


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
