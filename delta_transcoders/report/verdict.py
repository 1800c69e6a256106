"""The answer by rule: does the delta hold what finetuning changed?"""

from __future__ import annotations

from typing import NamedTuple

from delta_transcoders.report.sentences import condition_title, of, percent, replaced
from delta_transcoders.report.study_results import (
    BASE_MODEL,
    FULL,
    NO_DELTA,
    RAW,
    StudyResults,
    agree,
)


class Answer(NamedTuple):
    verdict: str
    """Yes, Partly, No or Not known."""
    headline: str
    """What that means, without numbers."""
    sentence: str
    """What it rests on."""


def answer(results: StudyResults) -> Answer:
    """Whether the delta holds what finetuning changed.

    Two conditions agree where the interval of one holds the estimate of the other. On the subset and measure
    that the answer is about, with as many layers replaced at once as the study has:

    - **Not known**: the finetuned model, no_delta or full is missing, or nothing was generated.
    - **No**: the finetuned model agrees with the base model, or no_delta with the finetuned model (there is
      nothing to bring back), or full is no closer to the finetuned model than no_delta, or agrees with it.
    - **Partly**: full is closer, but does not agree with the finetuned model; or it agrees, but less than
      half of finetuning's change was lost without the delta; or it does not agree on another subset or
      measure.
    - **Yes**: full agrees with the finetuned model wherever both were measured, and at least half of
      finetuning's change was lost without the delta.
    """
    if results.measure is None:
        text = "no answers were generated, so there is no behaviour to compare."
        return Answer("Not known", "no behaviour was measured", text)
    raw, no_delta, full, base = (
        results.level(name, results.subset) for name in (RAW, NO_DELTA, FULL, BASE_MODEL)
    )
    names = {RAW: raw, NO_DELTA: no_delta, FULL: full}
    if missing := [condition_title(results, n) for n, level in names.items() if level is None]:
        text = f"not measured on {results.subset or 'any subset'}: {', '.join(missing)}."
        return Answer("Not known", "what it takes was not measured", text)
    what, features = of(results), f"{delta_size(results)}delta features".strip()
    whole = f"the finetuned model has {percent(raw.value)} %"
    if base:
        whole += f", the base model {percent(base.value)} %"
    if base and agree(base, raw):
        return Answer("No", f"finetuning did not change {what}", f"{whole} of {what}.")
    text = f"with {replaced(results)}, {what} is {percent(no_delta.value)} %"
    if agree(no_delta, raw):
        return Answer("No", "there is nothing that a delta could bring back", f"{text}; {whole}.")
    text += f"; with the delta added, {percent(full.value)} %; {whole}."
    lost, left = abs(no_delta.value - raw.value), abs(full.value - raw.value)
    if left >= lost or agree(full, no_delta):
        return Answer("No", f"{features} do not bring back what finetuning changed", text)
    if not agree(full, raw):
        return Answer("Partly", f"{features} bring back some of what finetuning changed", text)
    if apart := _furthest_apart(results):
        return Answer(
            "Partly", f"{features} bring back {what}, but not everything", f"{text} {apart}."
        )
    if base and lost < abs(base.value - raw.value) / 2:
        text += " Most of it was never lost."
        return Answer(
            "Partly", f"{features} bring back what was lost, which is the lesser part", text
        )
    return Answer("Yes", f"{features} bring back what finetuning changed", text)


def _furthest_apart(results: StudyResults) -> str:
    """The subset and measure on which full is furthest from a finetuned model that it does not agree with."""
    apart = {}
    for subset in results.subsets:
        for measure in results.rates:
            raw, full = (results.level(name, subset, measure) for name in (RAW, FULL))
            if raw and full and not agree(raw, full):
                apart[abs(raw.value - full.value)] = (
                    f"But {of(results, subset, measure)} is {percent(full.value)} % with it, "
                    f"{percent(raw.value)} % in the finetuned model"
                )
    return apart[max(apart)] if apart else ""


def delta_size(results: StudyResults) -> str:
    """As "4 × 32 "; empty where layers differ, or where there is no delta."""
    sizes = {config.get("d_new") for config in results.deltas} - {None}
    return f"{len(results.deltas)} × {sizes.pop()} " if len(sizes) == 1 else ""
