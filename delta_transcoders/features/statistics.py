"""What is counted of each feature, from where it fires.

Shapes: P places, K activations above 0, G features of all layers, F of one, D d_model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.features.contexts import ContextChooser, Peaks, peaks_of
from delta_transcoders.features.feature import Activity, Feature, TokenActivity
from delta_transcoders.features.firing import Firing, together

N_BINS = 20
N_TOKENS = 10
_TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Look:
    """What is known of a feature besides where it fires; see `Feature`."""

    promotes: tuple[tuple[str, float], ...]
    suppresses: tuple[tuple[str, float], ...]
    matches: tuple[tuple[str, int, float], ...]


def features_of(
    firings: Mapping[int, Firing], looks: Mapping[int, Sequence[Look]], chooser: ContextChooser
) -> Iterator[Feature]:
    """Features layer by layer and by number; one at a time is held.

    Args:
        firings: by layer, finished.
        chooser: of the same texts, whose read places are marked.
    """
    counter = _Counter(chooser)
    companions = together(dict(firings), len(chooser.texts.ids_P))
    for layer, firing in firings.items():
        for number in range(firing.n_features):
            places, values = firing.of(number)
            peaks = peaks_of(chooser.texts, places, values)
            maximum = float(values.max(initial=0))
            contexts = chooser.contexts(layer, number, places, values, peaks, maximum)
            yield Feature(
                layer=layer,
                number=number,
                maximum=maximum,
                activity=counter.activity(places, values, peaks, maximum),
                tokens=counter.tokens(places, values),
                together=companions[layer, number],
                **vars(looks[layer][number]),
                effects=(),
                attributions={},
                contexts=tuple(contexts),
            )


class _Counter:
    """Counts that need the number of places of each subset and token."""

    def __init__(self, chooser: ContextChooser) -> None:
        texts = self.texts = chooser.texts
        self.shown = chooser.shown
        n = len(texts.subsets)
        self.subset_P = texts.subset_E[texts.text_P]
        self.n_tokens_S = np.bincount(self.subset_P[texts.read_P], minlength=n)
        self.n_examples_S = np.bincount(texts.subset_E, minlength=n)
        # By the tokens that occur, not by the whole vocabulary.
        self.used_ids, self.token_P = np.unique(texts.ids_P, return_inverse=True)
        self.occurrences = np.bincount(self.token_P[texts.read_P], minlength=len(self.used_ids))

    def activity(
        self, places_K: np.ndarray, values_K: np.ndarray, peaks: Peaks, maximum: float
    ) -> dict[str, Activity]:
        subset_K, subset_G = self.subset_P[places_K], self.texts.subset_E[peaks.texts_G]
        found = {}
        for s, subset in enumerate(self.texts.subsets):
            values = values_K[subset_K == s]
            n_tokens, n_examples = int(self.n_tokens_S[s]), int(self.n_examples_S[s])
            histogram, _ = np.histogram(values, N_BINS, (0, maximum or 1))
            found[subset.name] = Activity(
                held_out=subset.held_out,
                n_tokens=n_tokens,
                n_examples=n_examples,
                density=len(values) / max(1, n_tokens),
                example_density=int((subset_G == s).sum()) / max(1, n_examples),
                mean=float(values.mean(dtype=np.float64)) if len(values) else math.nan,
                maximum=float(values.max(initial=0)),
                histogram=tuple(histogram.tolist()),
            )
        return found

    def tokens(self, places_K: np.ndarray, values_K: np.ndarray) -> tuple[TokenActivity, ...]:
        token_K = self.token_P[places_K]
        counts = np.bincount(token_K, minlength=len(self.used_ids))
        sums = np.bincount(token_K, values_K, minlength=len(self.used_ids))
        largest = np.argsort(-sums, kind="stable")[:N_TOKENS]
        return tuple(
            TokenActivity(
                token=self.shown[self.used_ids[t]],
                share=float(sums[t] / sums.sum()),
                fires=float(counts[t] / self.occurrences[t]),
                mean=float(sums[t] / counts[t]),
            )
            for t in largest
            if counts[t]
        )


@torch.inference_mode()
def logit_extremes(rows_GD: Tensor, unembedding_VD: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the smallest logits of each row and their tokens.

    Args:
        rows_GD: decoder rows, times the final norm's gain.

    Returns:
        values float32 and token ids int64, [G, 2 N] each: the N largest from the top, then the N smallest
        from the bottom; N = `N_TOKENS`, or V where that is smaller.
    """
    rows_GD = rows_GD.to(unembedding_VD.device, torch.float32)
    best = rows_GD.new_empty(2, len(rows_GD), 0)
    ids = torch.empty_like(best, dtype=torch.long)
    for start in range(0, len(unembedding_VD), _TOKENS_AT_ONCE):
        part_GV = rows_GD @ unembedding_VD[start : start + _TOKENS_AT_ONCE].float().T
        values, found = torch.stack([part_GV, -part_GV]).topk(min(N_TOKENS, part_GV.shape[1]))
        best, ids = torch.cat([best, values], -1), torch.cat([ids, found + start], -1)
        best, order = best.topk(min(N_TOKENS, best.shape[-1]))
        ids = ids.gather(-1, order)
    return torch.cat([best[0], -best[1]], 1).cpu(), torch.cat([ids[0], ids[1]], 1).cpu()


def nearest_rows(ours: Transcoder, theirs: Transcoder) -> tuple[list[int], list[float]]:
    """Of each feature of the first, the one of the other whose decoder row has the largest cosine."""
    a_FD, b_GD = (torch.nn.functional.normalize(t.W_dec.float().cpu()) for t in (ours, theirs))
    cosines, numbers = (a_FD @ b_GD.T).max(1)
    return numbers.tolist(), cosines.tolist()
