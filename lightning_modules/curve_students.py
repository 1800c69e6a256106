"""The students of a feature curve: what some of a delta's features are added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from delta_transcoders.end_to_end.student import WRITES as TRAINED_WRITES
from delta_transcoders.interventions.intervention import Intervention, Term, Write
from delta_transcoders.interventions.loading import DictionarySet, relabel
from lightning_modules.interventions import Column

Features = Mapping[int, tuple[int, ...]]
"""By layer."""
Student = Literal["transplant", "base_mlp", "dictionary"]
WRITES: dict[str, Write] = {
    **TRAINED_WRITES,
    "base_mlp": Write(0.0, (Term("base_mlp"), Term("delta"))),
}


@dataclass(frozen=True)
class CurveColumn(Column):
    """A student with some of the delta's features."""

    curve: str
    """Its label."""
    n: int
    """How many, in all layers."""
    draw: int | None
    """Of features drawn at random; None: those with the largest attributions."""


def features_of(dictionaries: DictionarySet) -> Features:
    """All of a delta's."""
    by_layer = dictionaries.sources["delta"]
    return {layer: tuple(range(by_layer[layer].n_features)) for layer in sorted(by_layer)}


def refits_of(folder: str, grid: Sequence[int]) -> list[str]:
    """The deltas of an end-to-end run with as many features as the grid says, and the largest one.

    Raises:
        FileNotFoundError: no such folder, or no delta in it.
        ValueError: it was not trained with one of these numbers.
    """
    found = {
        int(path.name.removeprefix("n"))
        for path in Path(folder).glob("n*")
        if path.name.removeprefix("n").isdecimal()
    }
    if not found:
        raise FileNotFoundError(
            f"refits: {folder} holds no n128, n64 or the like; train.py with an EndToEndDelta writes them"
        )
    if missing := {*grid} - found:
        there = ", ".join(map(str, sorted(found, reverse=True)))
        raise ValueError(
            f"grid asks for {min(missing)} features, {folder} was trained with {there}: leave it out, or "
            "train with it among --model.budgets"
        )
    return [f"{folder}/n{n}" for n in sorted({*grid, max(found)}, reverse=True)]


def student_with(
    dictionaries: DictionarySet, student: Student, name: str, features: Features
) -> Intervention:
    """The student with these features of a delta alone.

    Args:
        name: of the condition.
    """
    *others, delta = WRITES[student].terms
    writes = {
        layer: Write(
            WRITES[student].keep,
            (*others, Term(delta.source, keep_features=tuple(features[layer]))),
        )
        for layer in sorted(dictionaries.layers)
    }
    return relabel(Intervention(name, writes), dictionaries.label, set(dictionaries.sources))
