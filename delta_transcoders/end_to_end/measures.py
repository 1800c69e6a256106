"""What a student does on held-out examples, exact over batches and processes.

Shapes: N target tokens, S subsets, L layers of the model, F features of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from delta_transcoders.end_to_end.student import Losses, Reference
from delta_transcoders.end_to_end.trained import alive
from delta_transcoders.interventions.sources import DictionarySource
from delta_transcoders.metrics.grouped import GroupedMean


class StudentMeasures(nn.Module):
    """KL of each subset, error of the stream after each layer, and how often each feature is active.

    Args:
        subsets: of the held-out examples; each has some.
        n_layers: of the model.
        deltas: the sources, by layer.
    """

    def __init__(
        self, subsets: Sequence[str], n_layers: int, deltas: Mapping[int, DictionarySource]
    ) -> None:
        super().__init__()
        self.subsets, self.n_layers = subsets, n_layers
        self._deltas = dict(deltas)
        self.kl = GroupedMean(len(subsets))
        self.nmse = GroupedMean(n_layers)
        self.density = GroupedMean(sum(source.n_features for source in deltas.values()))

    def reset(self) -> None:
        for metric in (self.kl, self.nmse, self.density):
            metric.reset()

    def update(self, subset_N: Tensor, losses: Losses, reference: Reference) -> None:
        """
        Args:
            subset_N: of each target token.
        """
        self.kl.update(subset_N, losses.kl_N)
        if losses.error_L is not None:
            layer_L = torch.arange(self.n_layers, device=losses.error_L.device)
            self.nmse.update(layer_L, losses.error_L, reference.change_L)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, it is counted on how many of the tokens that a delta sees each feature is active."""
        handles, first = [], 0
        for source in self._deltas.values():

            def count(module: nn.Module, args: tuple, written: tuple, first: int = first) -> None:
                a_NF = written[1]
                fired_F = (a_NF > 0).sum(0).double()
                feature_F = torch.arange(len(fired_F), device=fired_F.device) + first
                self.density.update(feature_F, fired_F, torch.full_like(fired_F, len(a_NF)))

            handles.append(source.register_forward_hook(count))
            first += source.n_features
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def compute(self) -> tuple[dict[str, float], dict[int, dict[str, float]], int]:
        """Of all processes, each of which must call it.

        Returns:
            `worst_kl` and `kl_SUBSET`, in nats per target token; of each layer with a delta `l0_delta`,
            `dead_fraction` (of the features that are left) and, where it was measured, `nmse`; and the number
            of features that are active anywhere.
        """
        kl_S, nmse_L = self.kl.compute().reshape(-1), self.nmse.compute().reshape(-1)
        density_F = self.density.compute().reshape(-1)
        kl = {f"kl_{s}": v for s, v in zip(self.subsets, kl_S.tolist(), strict=True)}
        finite = all(map(math.isfinite, kl.values()))
        layers, first = {}, 0
        for layer, source in self._deltas.items():
            part_F = density_F[first : first + source.n_features]
            first += source.n_features
            left_F = part_F[alive(source.transcoder)]
            dead = float((left_F == 0).double().mean()) if len(left_F) else 0.0
            layers[layer] = {"l0_delta": float(part_F.sum()), "dead_fraction": dead}
            if not nmse_L[layer].isnan():
                layers[layer]["nmse"] = float(nmse_L[layer])
        worst = max(kl.values()) if finite else math.inf
        return {"worst_kl": worst, **kl}, layers, int((density_F > 0).sum())
