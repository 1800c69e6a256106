"""Contrasts of conditions, paired over examples and pooled over seeds, with their intervals.

A contrast is a weighted sum of differences between two conditions on the same examples. Within a seed
wordings are drawn with replacement and then their examples, the same ones for every condition, contrast and
measure. Over seeds the unit is the seed: Student's t over their estimates, which vary with all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np

from delta_transcoders.metrics.intervals import bootstrap_counts, newcombe_of, t_interval
from delta_transcoders.report.records import Column, Experiment

Contrast = tuple[tuple[float, Column, Column], ...]
"""Σ w · (a − b) over its (w, a, b)."""


@dataclass(frozen=True)
class Sample:
    """An estimate and how it varies with the examples that were drawn.

    Attributes:
        estimate: on all examples.
        resampled: [resamples], on each resample; nan where it has no value.
        ends: of an interval that does not come from the resamples.
        kind: of the interval: `bootstrap`, `newcombe` or `t`.
    """

    estimate: float
    resampled: np.ndarray
    ends: tuple[float, float] | None = None
    kind: str = "bootstrap"

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high) at 95 %: `ends`, or else the percentiles of the resamples."""
        if self.ends is not None:
            return self.ends
        low, high = np.quantile(self.resampled[~np.isnan(self.resampled)], [0.025, 0.975])
        return float(low), float(high)

    @property
    def holds_zero(self) -> bool:
        low, high = self.interval
        return low <= 0 <= high


def sample_contrasts(
    experiments: Sequence[Experiment], subset: str, contrasts: Sequence[Contrast]
) -> list[dict[str, list[Sample]]]:
    """For each contrast and measure, a sample of each experiment, from the same resamples.

    Where all paired differences of a rate are equal, the interval is Newcombe's (`newcombe_of`) of each
    difference, their ends added with the contrast's weights (for more than one difference that is wider than
    need be), each wording counting as one example.
    Measures that no example of the subset has in some folder are left out.
    """
    measured = np.all([e.weights[subset].any(axis=1) for e in experiments], axis=0)
    samples: list[dict[str, list[Sample]]] = [{} for _ in contrasts]
    for experiment in experiments:
        weights_MN = experiment.weights[subset]
        counts_RN = bootstrap_counts(experiment.wordings[subset])
        # Differences first, then sums: where conditions agree on every example the sum is 0 to the bit.
        contrasts_CMN = np.stack(
            [
                sum(
                    w * (experiment.values[a, subset] - experiment.values[b, subset])
                    for w, a, b in contrast
                )
                for contrast in contrasts
            ]
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            estimates_CM = contrasts_CMN.sum(2) / weights_MN.sum(1)
            resampled_CMR = (contrasts_CMN @ counts_RN.T) / (weights_MN @ counts_RN.T)
        for c, contrast in enumerate(contrasts):
            for m, measure in enumerate(experiment.measures):
                if not measured[m]:
                    continue
                has = weights_MN[m] > 0
                sample = Sample(float(estimates_CM[c, m]), resampled_CMR[c, m])
                if measure.endswith("_rate") and np.ptp(contrasts_CMN[c, m, has]) == 0:
                    ends = _newcombe(experiment, subset, contrast, m, has)
                    sample = replace(sample, ends=ends, kind="newcombe")
                samples[c].setdefault(measure, []).append(sample)
    return samples


def _newcombe(
    experiment: Experiment, subset: str, contrast: Contrast, m: int, has_N: np.ndarray
) -> tuple[float, float]:
    low = high = 0.0
    wordings = list(compress(experiment.wordings[subset], has_N))
    for weight, *sides in contrast:
        a_N, b_N = (experiment.values[side, subset][m, has_N] > 0 for side in sides)
        ends = sorted(weight * end for end in newcombe_of(a_N, b_N, wordings))
        low, high = low + ends[0], high + ends[1]
    return low, high


def pool(samples: Sequence[Sample]) -> Sample:
    """The mean over seeds with Student's interval.

    Where the seeds agree to the last bit that has no width; the ends are then the means of the seeds' own.
    """
    if len(samples) == 1:
        return samples[0]
    estimates = [sample.estimate for sample in samples]
    none = np.empty(0)
    if len(set(estimates)) > 1:
        mean, *ends = t_interval(estimates)
        return Sample(mean, none, tuple(ends), "t")
    lows, highs = zip(*(sample.interval for sample in samples), strict=True)
    ends = (sum(lows) / len(samples), sum(highs) / len(samples))
    return Sample(estimates[0], none, ends, samples[0].kind)


def share(part: Sample, whole: Sample) -> Sample | None:
    """part / whole; None, undefined, where the interval of the whole holds 0.

    The parts of a whole may have opposite signs: a share may lie outside [0, 1].
    """
    if whole.holds_zero:
        return None
    ends = None
    if part.ends is not None or whole.ends is not None:
        quotients = [x / y for x in part.interval for y in whole.interval]
        ends = (min(quotients), max(quotients))
    nonzero = np.where(whole.resampled == 0, np.nan, whole.resampled)
    kind = "bootstrap" if ends is None else "newcombe"
    return Sample(part.estimate / whole.estimate, part.resampled / nonzero, ends, kind)
