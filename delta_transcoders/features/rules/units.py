"""Units that rules are written for: features of a delta and as many neurons, drawn the same way.

Shapes: P tokens, U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from delta_transcoders.files import check_version, read_json, write_json

FORMAT_VERSION = 1
UNITS_NAME = "units.json"
REMAKE = "draw them anew with `python evaluate.py --config …/unit_firing.yaml`"
Kind = Literal["feature", "neuron"]
DrawnBy = Literal["effect", "seed"]
KINDS: tuple[Kind, ...] = ("feature", "neuron")
WAYS: tuple[DrawnBy, ...] = ("effect", "seed")


@dataclass(frozen=True)
class Unit:
    name: str
    """U01, U02 …, shuffled: whoever writes its rule is not told what it is."""
    kind: Kind
    drawn_by: DrawnBy
    pair: int
    """The same number for a feature and for the neuron that stands beside it."""
    layer: int
    number: int
    """Of the feature in the layer's delta, or of the neuron in its MLP."""
    attribution: float
    """Of `attribution.attributed` on half A: each subset's mean, its size averaged; nats an example."""
    sign: int = 1
    """A neuron's activations are multiplied by it, so that the largest of half A is positive."""
    threshold: float = 0.0
    """Fires above it. A neuron's gives it its feature's rate on half A, or less where values are equal; it is
    below 0 where the feature fires more often than the neuron is positive."""
    rate: float = 0.0
    """Share of half A's tokens on which it fires."""

    @property
    def place(self) -> str:
        """L3F17, or L3N204."""
        return f"L{self.layer}{self.kind[0].upper()}{self.number}"


Scores = Mapping[tuple[int, int], float]
"""Attribution by layer and number, of all that may be drawn."""


def draw(features: Scores, neurons: Scores, n: int, seed: int) -> list[Unit]:
    """Of both kinds the n with the largest scores, and n others at random; by name.

    Raises:
        ValueError: fewer than 2 n of a kind.

    >>> scores = {(0, i): float(i) for i in range(4)}
    >>> [(u.name, u.place, u.drawn_by) for u in draw(scores, scores, 1, seed=0)]
    [('U1', 'L0N1', 'seed'), ('U2', 'L0N3', 'effect'), ('U3', 'L0F3', 'effect'), ('U4', 'L0F2', 'seed')]
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for kind, scores in zip(KINDS, (features, neurons), strict=True):
        if len(scores) < 2 * n:
            raise ValueError(
                f"n is {n}, so that {2 * n} {kind}s are to be drawn, but half A has {len(scores)} that fire: "
                f"give --model.n {len(scores) // 2}"
            )
        by_size = sorted(scores, key=lambda key: (-scores[key], key))
        rest = sorted(by_size[n:])
        chosen = by_size[:n] + [rest[i] for i in rng.choice(len(rest), n, replace=False)]
        for pair, (layer, number) in enumerate(chosen):
            way = WAYS[pair >= n]
            drawn.append(Unit("", kind, way, pair, layer, number, scores[layer, number]))
    width = len(str(len(drawn)))
    order = rng.permutation(len(drawn))
    return [replace(drawn[i], name=f"U{k:0{width}}") for k, i in enumerate(order, start=1)]


def with_thresholds(units: Sequence[Unit], values_PU: np.ndarray) -> list[Unit]:
    """The units with sign, threshold and rate on the tokens of half A.

    Args:
        values_PU: activations.
    """
    n_fires = {
        unit.pair: int((values_PU[:, u] > 0).sum())
        for u, unit in enumerate(units)
        if unit.kind == "feature"
    }
    found = []
    for u, unit in enumerate(units):
        values_P, sign, threshold = values_PU[:, u], 1, 0.0
        if unit.kind == "neuron":
            sign = 1 if values_P.max() >= -values_P.min() else -1
            descending_P = np.sort(sign * values_P)[::-1]
            threshold = float(descending_P[min(n_fires[unit.pair], len(descending_P) - 1)])
        rate = float((sign * values_P > threshold).mean())
        found.append(replace(unit, sign=sign, threshold=threshold, rate=rate))
    return found


def margins(units: Sequence[Unit], values_PU: np.ndarray) -> np.ndarray:
    """Activations above the thresholds, [P, U]: a unit fires where its own is above 0."""
    signs_U = np.array([unit.sign for unit in units], dtype=np.float32)
    thresholds_U = np.array([unit.threshold for unit in units], dtype=np.float32)
    return signs_U * values_PU - thresholds_U


def write_units(folder: str | Path, units: Sequence[Unit], info: Mapping[str, Any]) -> None:
    """Write `units.json`.

    Args:
        info: what they are of, such as `delta` and `delta_fingerprints`.
    """
    written = {"format_version": FORMAT_VERSION, **info, "units": [asdict(unit) for unit in units]}
    write_json(Path(folder) / UNITS_NAME, written)


def read_units(folder: str | Path) -> tuple[list[Unit], dict[str, Any]]:
    """Units and info of `write_units`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another version, or a damaged file; names it.
    """
    path = Path(folder) / UNITS_NAME
    info = read_json(path, f"no drawn units there; {REMAKE}")
    check_version(path, info.pop("format_version", None), FORMAT_VERSION, REMAKE)
    try:
        units = [Unit(**unit) for unit in info.pop("units")]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {REMAKE}") from error
    return units, info
