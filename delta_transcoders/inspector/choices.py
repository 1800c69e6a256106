"""Which interventions a request comes to, and what their answers are called."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from delta_transcoders.inspector.request import Request
from delta_transcoders.interventions.intervention import RAW, Intervention, Term, Write, from_spec


class Answer(NamedTuple):
    """One of the answers that are asked for."""

    name: str
    label: str
    intervention: Intervention | None
    """None: the base model's own."""


class Choices:
    """What a study can be asked for.

    Attributes:
        n_features: of each layer's delta.
        n_layers: of the model.
        base_label: what the deltas correct.
        labels: of the conditions that the study has.
    """

    def __init__(
        self,
        n_features: Mapping[int, int],
        n_layers: int,
        base_label: str,
        absent: Collection[str],
    ) -> None:
        self.n_features, self.n_layers, self.base_label = n_features, n_layers, base_label
        labels = {
            "base_model": "base model",
            "raw": "finetuned model",
            "no_delta": f"{base_label} alone",
            "full": f"{base_label} + delta",
        }
        self.labels = {name: label for name, label in labels.items() if name not in absent}

    def layers(self, request: Request) -> tuple[int, ...]:
        """Where MLPs are replaced.

        Raises:
            ValueError: none, or one that has no delta.
        """
        if request.layers is None:
            return tuple(sorted(self.n_features))
        layers = tuple(sorted(set(request.layers)))
        if not layers:
            raise ValueError("no layer is chosen: give at least one")
        for layer in layers:
            if layer >= self.n_layers:
                raise ValueError(
                    f"there is no layer {layer}: the model has {self.n_layers}, 0 to {self.n_layers - 1}"
                )
            if layer not in self.n_features:
                raise ValueError(f"layer {layer} has no delta; there is one at {self._held()}")
        return layers

    def answers(self, request: Request) -> list[Answer]:
        """The base model's first, where it is asked for.

        Raises:
            ValueError: nothing is asked for, or a layer or feature that is not there.
        """
        layers = self.layers(request)
        drop: dict[int, list[int]] = {layer: [] for layer in layers}
        for layer, number in request.drop:
            self._check_feature(layer, number, layers)
            drop[layer].append(number)
        answers = []
        for name, label in self.labels.items():
            if name in request.conditions:
                whole = {"base_model": None, "raw": RAW}
                intervention = whole[name] if name in whole else from_spec(name, layers)
                answers.append(Answer(name, label, intervention))
        without = ", ".join(f"L{layer}F{number}" for layer, number in dict.fromkeys(request.drop))
        rest = f" without {without}" if without else ""
        for alpha in request.alphas or ((1.0,) if without else ()):
            alpha = alpha + 0.0  # no minus zero
            writes = {}
            for layer in layers:
                delta = Term("delta", alpha, drop_features=tuple(drop[layer]))
                writes[layer] = Write(0.0, (Term("base"), delta))
            name = f"alpha_{alpha:.2f}"
            sign, times = "−" if alpha < 0 else "+", "" if alpha == 1 else f"{abs(alpha):g} · "
            label = f"{self.base_label} {sign} {times}delta{rest}"
            answers.append(Answer(name, label, Intervention(name, writes, alpha)))
        if not answers:
            raise ValueError("nothing is asked for: give conditions or alphas")
        return answers

    def _check_feature(self, layer: int, number: int, layers: Collection[int]) -> None:
        name = f"L{layer}F{number}"
        if layer not in self.n_features:
            raise ValueError(f"there is no feature {name}: deltas are at layers {self._held()}")
        n_features = self.n_features[layer]
        if number >= n_features:
            raise ValueError(
                f"there is no feature {name}: layer {layer} has {n_features}, "
                f"L{layer}F0 to L{layer}F{n_features - 1}"
            )
        if layer not in layers:
            raise ValueError(f"{name} cannot be dropped: layer {layer} is not among those replaced")

    def _held(self) -> str:
        return ", ".join(map(str, sorted(self.n_features)))
