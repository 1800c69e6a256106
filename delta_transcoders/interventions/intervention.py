"""An intervention as data: what is written at which layer in place of the MLP's output.

    out = keep · y + Σ c_j · f_j(x)

with y the MLP's own output, x its input, and each f_j a named source (`sources.SourceBank`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Term:
    """coefficient · source(x), of some of the source's features only where that is said.

    A source's bias counts once, whichever features are left.
    """

    source: str
    coefficient: float = 1.0
    keep_features: tuple[int, ...] | None = None
    """The only features that may be active; None: all of them."""
    drop_features: tuple[int, ...] = ()
    """Features that are set to zero."""


@dataclass(frozen=True)
class Write:
    """keep · y + Σ terms, each source at most once."""

    keep: float
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        names = [term.source for term in self.terms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source {name!r} occurs twice in one write: {names}")


@dataclass(frozen=True)
class Intervention:
    """What one row of a batch has written where; no writes at all is the untouched model.

    Attributes:
        condition: name in the result table.
        writes: by layer.
        alpha: for a condition that is one point of a sweep over α.
    """

    condition: str
    writes: Mapping[int, Write]
    alpha: float | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are written to, ascending."""
        return tuple(sorted(self.writes))

    @property
    def sources(self) -> list[str]:
        """The sources that contribute anywhere: those with a coefficient other than 0."""
        terms = [term for write in self.writes.values() for term in write.terms]
        return sorted({term.source for term in terms if term.coefficient})

    def layer_label(self, n_layers: int) -> str:
        """The result table's `layer`: a number, `all` of the model's n_layers, `0+2`, or nothing.

        >>> from_spec("full", (2, 0)).layer_label(n_layers=4)
        '0+2'
        """
        if self.layers == tuple(range(n_layers)):
            return "all"
        return "+".join(map(str, self.layers))


RAW = Intervention("raw", {})
"""The untouched model."""

_FIXED: dict[str, Write] = {
    "no_delta": Write(0.0, (Term("base"),)),
    "full": Write(0.0, (Term("base"), Term("delta"))),
    "random_delta": Write(0.0, (Term("base"), Term("random_delta"))),
    "base_mlp": Write(0.0, (Term("base_mlp"),)),
    "finetuned_mlp": Write(0.0, (Term("finetuned_mlp"),)),
    "dictionary_error": Write(1.0, (Term("base"), Term("base_mlp", -1.0))),
    "transplant": Write(1.0, (Term("delta"),)),
}
# Two decimals at most: a condition's name must tell it from every other.
_SWEPT = re.compile(r"(alpha|error_kept)_(-?\d+(?:\.\d{1,2})?)")
KNOWN = ("raw", *_FIXED, "error_kept", "alpha_A", "error_kept_A")


def from_spec(spec: str | Mapping[str, Any], layers: Collection[int]) -> Intervention:
    """An intervention on the given layers from what a YAML file says.

    Args:
        spec: a name, or a mapping for everything else (each key but `condition` optional):
            `{condition: x, keep: 0.0, alpha: 0.5, terms: [{source: base, coefficient: 1.0,
            keep_features: [0, 1], drop_features: [2]}, ...]}`. The names:
            `raw` y; `no_delta` base; `full` base + delta; `alpha_A` base + A·delta, A with up to two
            decimals, of any sign and size; `error_kept` y − delta, and `error_kept_A`
            y − (1 − A)·delta; `random_delta` base + a random delta of the same norms and activations;
            `base_mlp` the un-finetuned model's MLP; `finetuned_mlp` the finetuned one's (in the base
            model); `dictionary_error` y + base − base_mlp; `transplant` y + delta, in the base model.
        layers: all of them get the same write.

    Raises:
        ValueError: an unknown name, key or type; says which, and what is known.

    >>> from_spec("alpha_-0.5", [3])
    Intervention(condition='alpha_-0.50', writes={3: Write(keep=0.0, terms=(Term(source='base', \
coefficient=1.0, keep_features=None, drop_features=()), Term(source='delta', coefficient=-0.5, \
keep_features=None, drop_features=())))}, alpha=-0.5)
    """
    if isinstance(spec, Mapping):
        return _from_mapping(spec, layers)
    if spec == "raw":
        return RAW
    if spec in _FIXED:
        return Intervention(spec, dict.fromkeys(layers, _FIXED[spec]))
    swept = _SWEPT.fullmatch("error_kept_0" if spec == "error_kept" else str(spec))
    if swept is None:
        raise ValueError(
            f"unknown condition {spec!r}; known are {', '.join(KNOWN)} (A a number with up to two "
            "decimals), and mappings with `condition` and `terms`"
        )
    alpha = float(swept[2]) + 0.0  # no minus zero
    if swept[1] == "alpha":
        write = Write(0.0, (Term("base"), Term("delta", alpha)))
    else:
        write = Write(1.0, (Term("delta", alpha - 1.0),))
    name = spec if spec == "error_kept" else f"{swept[1]}_{alpha:.2f}"
    return Intervention(name, dict.fromkeys(layers, write), alpha)


def _from_mapping(spec: Mapping[str, Any], layers: Collection[int]) -> Intervention:
    _check_keys(spec, ("condition",), ("keep", "alpha", "terms"), "an intervention")
    name = spec["condition"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"the condition of an intervention must be a name, not {name!r}")
    if name == "raw" or name in _FIXED:
        raise ValueError(f"the condition {name!r} is already a known one; name yours otherwise")
    where = f"intervention {name!r}"
    if not isinstance(spec.get("terms", ()), Sequence) or isinstance(spec.get("terms"), str):
        raise ValueError(f"{where}: terms must be a list, not {spec['terms']!r}")
    terms = []
    for term in spec.get("terms", ()):
        if not isinstance(term, Mapping):
            raise ValueError(f"{where}: a term must be a mapping with `source`, not {term!r}")
        optional = ("coefficient", "keep_features", "drop_features")
        _check_keys(term, ("source",), optional, f"a term of {where}")
        kept = term.get("keep_features")
        terms.append(
            Term(
                source=term["source"],
                coefficient=_number(term.get("coefficient", 1.0), f"{where}: coefficient"),
                keep_features=None if kept is None else _features(kept, where),
                drop_features=_features(term.get("drop_features", ()), where),
            )
        )
    write = Write(_number(spec.get("keep", 0.0), f"{where}: keep"), tuple(terms))
    alpha = spec.get("alpha")
    return Intervention(
        name,
        dict.fromkeys(layers, write),
        None if alpha is None else _number(alpha, f"{where}: alpha"),
    )


def _check_keys(
    spec: Mapping[str, Any], required: Sequence[str], optional: Sequence[str], what: str
) -> None:
    for key in spec:
        if key not in (*required, *optional):
            raise ValueError(
                f"{what} has the unknown key {key!r}; known are {', '.join((*required, *optional))}"
            )
    for key in required:
        if key not in spec:
            raise ValueError(f"{what} needs the key {key!r}: {dict(spec)}")


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{what} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, not {value!r}")
    return float(value)


def _features(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{where}: features must be a list of numbers, not {value!r}")
    if any(isinstance(index, bool) or not isinstance(index, int) for index in value):
        raise ValueError(f"{where}: features must be whole numbers, got {list(value)}")
    return tuple(value)


def layer_groups(
    specs: Sequence[int | str], n_layers: int, available: Collection[int]
) -> list[tuple[int, ...]]:
    """The groups of layers that a YAML list names, each of them intervened on at once.

    Args:
        specs: numbers, `all`, or several joined by `+`.
        n_layers: of the model.
        available: layers that have a dictionary.

    Raises:
        ValueError: not a layer of the model, a layer without a dictionary, or one named twice.

    >>> layer_groups([0, "0+2", "all"], n_layers=3, available={0, 1, 2})
    [(0,), (0, 2), (0, 1, 2)]
    """
    groups = []
    for spec in specs:
        parts = list(range(n_layers)) if spec == "all" else str(spec).split("+")
        try:
            layers = sorted(map(int, parts))
        except ValueError:
            raise ValueError(
                f"layers {spec!r}: expected a number, several joined by + as in 0+1+2, or all"
            ) from None
        for layer in layers:
            if not 0 <= layer < n_layers:
                raise ValueError(
                    f"layers {spec!r}: there is no layer {layer}, the model has {n_layers}, from 0"
                )
            if layers.count(layer) > 1:
                raise ValueError(f"layers {spec!r}: layer {layer} is named twice")
        missing = [layer for layer in layers if layer not in available]
        if missing:
            raise ValueError(
                f"layers {spec!r}: no dictionary for layer {', '.join(map(str, missing))}; there is "
                f"one for {', '.join(map(str, sorted(available))) or 'none'}"
            )
        groups.append(tuple(layers))
    return groups
