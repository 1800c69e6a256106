"""Contrasts of conditions, paired over examples and pooled over seeds, with their intervals.

A contrast is a weighted sum of differences between two conditions on the same examples. Within a seed
whole examples are drawn with replacement, the same ones for every condition, contrast and measure. Seeds
are strata: each resample draws each seed's examples anew and averages the seeds' estimates, every seed
weighing the same. Such an interval covers the examples, not the seeds: three seeds are too few to
estimate the spread over retraining, so their estimates and range belong beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from delta_transcoders.metrics.intervals import bootstrap_counts, newcombe_paired
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
    """

    estimate: float
    resampled: np.ndarray
    ends: tuple[float, float] | None

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

    Folders with the same examples are drawn together, others independently. Where all paired differences
    of a rate are equal, the interval is Newcombe's (`newcombe_paired`) of each difference, their ends
    added with the contrast's weights: for more than one difference that is wider than need be.
    Measures that no example of the subset has in some folder are left out.
    """
    asked = [experiment.examples[subset] for experiment in experiments]
    measured = np.all([e.weights[subset].any(axis=1) for e in experiments], axis=0)
    samples: list[dict[str, list[Sample]]] = [{} for _ in contrasts]
    for experiment, examples in zip(experiments, asked, strict=True):
        weights_MN = experiment.weights[subset]
        counts_RN = bootstrap_counts(len(examples), seed=asked.index(examples))
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
                ends = None
                if measure.endswith("_rate") and np.ptp(contrasts_CMN[c, m, has]) == 0:
                    ends = _newcombe(experiment, subset, contrast, m, has)
                sample = Sample(float(estimates_CM[c, m]), resampled_CMR[c, m], ends)
                samples[c].setdefault(measure, []).append(sample)
    return samples


def _newcombe(
    experiment: Experiment, subset: str, contrast: Contrast, m: int, has_N: np.ndarray
) -> tuple[float, float]:
    low = high = 0.0
    for weight, *sides in contrast:
        a_N, b_N = (experiment.values[side, subset][m, has_N] > 0 for side in sides)
        counts = [(a_N & b_N), (a_N & ~b_N), (~a_N & b_N), (~a_N & ~b_N)]
        ends = sorted(weight * end for end in newcombe_paired(*(int(c.sum()) for c in counts)))
        low, high = low + ends[0], high + ends[1]
    return low, high


def pool(samples: Sequence[Sample]) -> Sample:
    """The mean over seeds.

    Where a seed's interval is not the bootstrap's, its resamples lack that seed's variation; the ends are
    then the means of the seeds' ends, wider than need be since the seeds do not err together.
    """
    ends = None
    if any(sample.ends is not None for sample in samples):
        lows, highs = zip(*(sample.interval for sample in samples), strict=True)
        ends = (sum(lows) / len(samples), sum(highs) / len(samples))
    return Sample(
        sum(sample.estimate for sample in samples) / len(samples),
        np.mean([sample.resampled for sample in samples], axis=0),
        ends,
    )


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
    return Sample(part.estimate / whole.estimate, part.resampled / nonzero, ends)
