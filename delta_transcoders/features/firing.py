"""Where the features of a layer fire: the activations above 0, feature by feature.

Shapes: N tokens, F features, K activations above 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.dictionaries.transcoder import Transcoder

MOST_WORK = 2**40
"""Multiplications that `together` may take; where all places are more, it looks at a random sample."""
N_TOGETHER = 5
_ROWS = 8192


class Firing:
    """Takes 8 bytes for an activation above 0, and twice that in `finish`."""

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features
        self._counts: list[np.ndarray] = []
        self._places: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def add(self, places_N: np.ndarray, a_NF: Tensor) -> None:
        """
        Args:
            places_N: of `Texts.places`, each once over all calls.
        """
        a_FN = a_NF.T.contiguous()
        features_K, rows_K = a_FN.nonzero(as_tuple=True)
        self._values.append(a_FN[features_K, rows_K].float().cpu().numpy())
        self._places.append(places_N[rows_K.cpu().numpy()])
        self._counts.append(torch.bincount(features_K, minlength=self.n_features).cpu().numpy())

    def finish(self) -> None:
        """Put each feature's activations together; nothing can be added afterwards."""
        pieces_F: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(self.n_features)]
        for counts, places, values in zip(self._counts, self._places, self._values, strict=True):
            ends = np.cumsum(counts)[:-1]
            parts = np.split(places, ends), np.split(values, ends)
            for pieces, piece in zip(pieces_F, zip(*parts, strict=True), strict=True):
                pieces.append(piece)
        self._of_feature = []
        for pieces in pieces_F:
            places, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
            order = np.argsort(places, kind="stable")
            self._of_feature.append((places[order], values[order]))
        self._counts = self._places = self._values = []

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Places, ascending, and activations of a feature: int32 and float32 [K]."""
        return self._of_feature[feature]


def read_cache(
    cache: ActivationCache, layer: int, delta: Transcoder, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Tensor]]:
    """Activations [N, F] of the cached training tokens in their order, with the first one's row.

    Raises:
        ValueError: NaN or infinite values in the cache; names layer and shard.
    """
    for span in cache.spans("train", _ROWS):
        x_ND = cache.rows("train", layer, "x", span).to(device)
        yield span.row, delta.encode(x_ND)


def n_looked_at(n_features: int, n_places: int) -> int:
    """Places that `together` looks at for so many features of all layers."""
    return min(n_places, max(1, MOST_WORK // n_features**2))


def together(
    firings: dict[int, Firing], n_places: int
) -> dict[tuple[int, int], tuple[tuple[int, int, float], ...]]:
    """Of each feature (layer, number) those that fire with it most: layer, number and Jaccard index.

    Jaccard index: places where both fire, of those where either does; see `n_looked_at`.
    """
    keys = [(layer, k) for layer, firing in firings.items() for k in range(firing.n_features)]
    n = len(keys)
    n_rows = n_looked_at(n, n_places)
    # At random, as texts of one length have a period.
    looked_at_S = np.random.default_rng(0).choice(n_places, n_rows, replace=False)
    row_P = np.full(n_places, -1, dtype=np.int32)
    row_P[looked_at_S] = np.arange(n_rows)
    fires_GS = np.zeros((n, n_rows), dtype=bool)
    for g, (layer, k) in enumerate(keys):
        rows = row_P[firings[layer].of(k)[0]]
        fires_GS[g, rows[rows >= 0]] = True
    both_GG = torch.zeros(n, n)
    for start in range(0, n_rows, _ROWS):
        part_GS = torch.from_numpy(fires_GS[:, start : start + _ROWS]).float()
        both_GG += part_GS @ part_GS.T
    counts_G = both_GG.diagonal().clone()
    either_GG = counts_G[:, None] + counts_G - both_GG
    jaccard_GG = both_GG / either_GG.clamp(min=1)
    jaccard_GG.fill_diagonal_(0)
    values, indices = jaccard_GG.topk(min(N_TOGETHER, n))
    found = zip(keys, values.tolist(), indices.tolist(), strict=True)
    return {
        key: tuple((*keys[g], value) for value, g in zip(row, others, strict=True) if value > 0)
        for key, row, others in found
    }
