"""Which stretches of texts show what a feature fires on.

By subset: the texts with its strongest activations, then others for places with weaker ones, then some on
which it is silent. Of texts that are the same up to the place but for digits one is shown: what follows
cannot have changed an activation.

Shapes: P places, K activations above 0, G texts on which a feature fires.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from delta_transcoders.features.feature import WINDOW, Context, Kind
from delta_transcoders.features.texts import Texts

N_TOP = 12
N_FIFTH = 4
N_SILENT = 4
BEFORE = 3 * WINDOW // 4
"""Tokens of a window that stand before the peak, where the text has as many."""
_TRIED = 64
"""Silent texts that are looked at for different ones."""


@dataclass(frozen=True)
class _Chosen:
    kind: Kind
    text: int
    peak: int
    """Place."""
    n_alike: int


@dataclass(frozen=True)
class Peaks:
    """Each text's strongest activation of a feature, of the texts on which it fires."""

    texts_G: np.ndarray
    places_G: np.ndarray
    """The first, where several are equal."""
    values_G: np.ndarray


def peaks_of(texts: Texts, places_K: np.ndarray, values_K: np.ndarray) -> Peaks:
    """
    Args:
        places_K, values_K: as of `Firing.of`.
    """
    if not len(places_K):
        return Peaks(*(np.zeros(0, dtype) for dtype in (np.int32, np.int32, np.float32)))
    text_K = texts.text_P[places_K]
    starts_G = np.flatnonzero(np.diff(text_K, prepend=-1))
    peaks_G = np.maximum.reduceat(values_K, starts_G)
    group_K = np.repeat(np.arange(len(starts_G)), np.diff(starts_G, append=len(text_K)))
    at_peak = np.flatnonzero(values_K == peaks_G[group_K])
    _, first = np.unique(group_K[at_peak], return_index=True)
    return Peaks(text_K[starts_G], places_K[at_peak[first]], peaks_G)


class ContextChooser:
    """Chooses and cuts the contexts of features, with a random order of its own.

    Args:
        shown: text of each token id.
        special: ids of special tokens.
    """

    def __init__(self, texts: Texts, shown: list[str], special: set[int], seed: int = 0) -> None:
        self.texts, self.shown, self.special, self.seed = texts, shown, special, seed
        self.prefix_P = texts.prefixes(shown)
        # A text whose only token is unread has a peak all the same where it is silent: the last token.
        self.last_E = texts.start_E[1:] - 1
        order = np.random.default_rng(seed).permutation(len(texts.examples))
        self.shuffled = [order[texts.subset_E[order] == s] for s in range(len(texts.subsets))]

    def contexts(
        self,
        layer: int,
        number: int,
        places_K: np.ndarray,
        values_K: np.ndarray,
        peaks: Peaks,
        maximum: float,
    ) -> Iterator[Context]:
        """Subset by subset, the strongest first, then fifths downwards, then silent ones."""
        generator = np.random.default_rng([self.seed, layer, number])
        subset_G = self.texts.subset_E[peaks.texts_G]
        subset_K = self.texts.subset_E[self.texts.text_P[places_K]]
        fires_E = np.zeros(len(self.texts.examples), dtype=bool)
        fires_E[peaks.texts_G] = True
        for s in range(len(self.texts.subsets)):
            here = subset_G == s
            ours = Peaks(peaks.texts_G[here], peaks.places_G[here], peaks.values_G[here])
            chosen = self._strongest(ours)
            fires = subset_K == s
            chosen += self._weaker(places_K[fires], values_K[fires], maximum, chosen, generator)
            silent = self.shuffled[s][~fires_E[self.shuffled[s]]]
            chosen += self._silent(silent, generator)
            yield from self._cut(s, chosen, places_K, values_K)

    def _strongest(self, peaks: Peaks) -> list[_Chosen]:
        order = np.argsort(-peaks.values_G, kind="stable")
        keys = self.prefix_P[peaks.places_G[order]]
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        strongest_first = np.argsort(first)[:N_TOP]
        return [
            _Chosen("top", int(peaks.texts_G[g]), int(peaks.places_G[g]), int(n) - 1)
            for g, n in zip(order[first[strongest_first]], counts[strongest_first], strict=True)
        ]

    def _weaker(
        self,
        places_K: np.ndarray,
        values_K: np.ndarray,
        maximum: float,
        strongest: list[_Chosen],
        generator: np.random.Generator,
    ) -> list[_Chosen]:
        """Of each lower fifth of the range some places, drawn evenly among those whose texts up to there
        differ; one a text, and none of a text that is shown, or is like one up to there."""
        texts, shown = self.texts, list(strongest)
        fifth_K = np.ceil(5 * values_K / maximum) if maximum else values_K
        for n in (4, 3, 2, 1):
            places = generator.permutation(places_K[fifth_K == n])
            if not len(places):
                continue
            spans = [slice(*texts.start_E[c.text : c.text + 2]) for c in shown]
            known = np.concatenate([self.prefix_P[span] for span in spans])
            places = places[~np.isin(self.prefix_P[places], known)]
            _, first = np.unique(self.prefix_P[places], return_index=True)
            places = places[generator.permutation(first)]
            _, first = np.unique(texts.text_P[places], return_index=True)
            places = np.sort(places[np.sort(first)[:N_FIFTH]])
            values = values_K[np.searchsorted(places_K, places)]
            for place in places[np.argsort(-values, kind="stable")].tolist():
                alike = places_K[self.prefix_P[places_K] == self.prefix_P[place]]
                n_alike = len(np.unique(texts.text_P[alike])) - 1
                shown.append(_Chosen(f"fifth_{n}", int(texts.text_P[place]), place, n_alike))
        return shown[len(strongest) :]

    def _silent(self, texts: np.ndarray, generator: np.random.Generator) -> Iterator[_Chosen]:
        if not len(texts):
            return
        keys = self.prefix_P[self.last_E[texts]]
        start = generator.integers(len(texts))
        tried = (start + np.arange(min(_TRIED, len(texts)))) % len(texts)
        _, first = np.unique(keys[tried], return_index=True)
        for i in tried[np.sort(first)[:N_SILENT]]:
            alike = int((keys == keys[i]).sum()) - 1
            yield _Chosen("silent", int(texts[i]), int(self.last_E[texts[i]]), alike)

    def _cut(
        self, subset: int, chosen: list[_Chosen], places_K: np.ndarray, values_K: np.ndarray
    ) -> Iterator[Context]:
        texts = self.texts
        for c in chosen:
            first, end = (int(place) for place in texts.start_E[c.text : c.text + 2])
            start = max(first, min(c.peak - BEFORE, end - WINDOW))
            stop = min(end, start + WINDOW)
            activations = np.where(texts.read_P[start:stop], 0.0, math.nan).astype(np.float32)
            here = slice(*np.searchsorted(places_K, [start, stop]))
            activations[places_K[here] - start] = values_K[here]
            target = first + int(texts.n_prompt_E[c.text])
            ids = texts.ids_P[start:stop].tolist()
            yield Context(
                kind=c.kind,
                subset=texts.subsets[subset].name,
                example=texts.examples[c.text],
                tokens=tuple(self.shown[i] for i in ids),
                special=tuple(i in self.special for i in ids),
                activations=tuple(activations.tolist()),
                peak=c.peak - start,
                target_from=max(0, target - start) if target < stop else None,
                cut_left=start > first,
                cut_right=stop < end,
                n_alike=c.n_alike,
            )
