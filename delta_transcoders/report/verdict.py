"""The answer by rule: does the delta hold what finetuning changed?"""

from __future__ import annotations

from typing import NamedTuple

from delta_transcoders.report.sentences import condition_title, of, percent, replaced, share, spoken
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

    Two conditions agree where the interval of their paired difference holds 0; where there is none, where the
    interval of one holds the estimate of the other. On the subset and measure that the answer is about, with
    as many layers replaced at once as the study has:

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
        broken = [file for name in names if (file := results.no_number(name, results.subset))]
        text = f"not measured on {results.subset or 'any subset'}: {', '.join(missing)}."
        if broken:
            text = f"{results.measure} is no number in {broken[0]}: {', '.join(missing)}."
            return Answer("Not known", f"a rate on {results.subset} is no number", text)
        return Answer("Not known", "what it takes was not measured", text)
    what, features = of(results), f"{delta_size(results)}delta features".strip()
    if base and agree(base, raw):
        text = f"{share(results, raw)} with the finetuned model, on {percent(base.value)} % with the base "
        text += f"model.{_missed(results, RAW, BASE_MODEL)}"
        return Answer("No", f"finetuning did not change {what}", text)
    text = f"{share(results, no_delta)} with {replaced(results)}"
    # Where the base model was asked, `change` has said it.
    whole = "." if base else f", on {percent(raw.value)} % with the finetuned model."
    if results.agree(NO_DELTA, RAW, results.subset):
        text += f", on {percent(raw.value)} % with the finetuned model.{_missed(results, NO_DELTA, RAW)}"
        return Answer("No", "there is nothing that a delta could bring back", text)
    text += f", on {percent(full.value)} % with the delta added{whole}"
    lost, left = abs(no_delta.value - raw.value), abs(full.value - raw.value)
    if left >= lost or results.agree(FULL, NO_DELTA, results.subset):
        return Answer("No", f"{features} do not bring back what finetuning changed", text)
    if not results.agree(FULL, RAW, results.subset):
        return Answer("Partly", f"{features} bring back some of what finetuning changed", text)
    text += _missed(results, FULL, RAW)
    if apart := _furthest_apart(results):
        return Answer(
            "Partly",
            f"{features} bring back {spoken(results.measure)}, but not everything",
            f"{text} {apart}.",
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
            if raw and full and not results.agree(FULL, RAW, subset, measure):
                apart[abs(raw.value - full.value)] = (
                    f"But {share(results, full, subset, measure)} (finetuned model "
                    f"{percent(raw.value)} %)"
                )
    return apart[max(apart)] if apart else ""


def _missed(results: StudyResults, condition: str, reference: str) -> str:
    missed = results.missed(condition, reference, results.subset)
    return f" But {missed}." if missed else ""


def change(results: StudyResults) -> str:
    """What finetuning changed: the task's title and the rate that changed most; empty where not known."""
    title = results.task.get("title")
    title = f"“{title[:60]}”" if isinstance(title, str) and title else ""
    raw, base = (results.level(name, results.subset) for name in (RAW, BASE_MODEL))
    if raw and base and not agree(raw, base):
        ends = f"{percent(base.value)} to {percent(raw.value)} %"
        text = f"{spoken(results.measure)} went from {ends} of the {results.subset} prompts."
        return f"{title}: {text}" if title else f"{text[0].upper()}{text[1:]}"
    return f"{title}." if title else ""


def delta_size(results: StudyResults) -> str:
    """As "4 × 32 "; empty where layers differ, or where there is no delta."""
    sizes = {config.get("d_new") for config in results.deltas} - {None}
    return f"{len(results.deltas)} × {sizes.pop()} " if len(sizes) == 1 else ""
