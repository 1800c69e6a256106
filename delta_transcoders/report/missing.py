"""What a study does not show: what was not run, and what is damaged."""

from __future__ import annotations

from delta_transcoders.report.columns import rates, title
from delta_transcoders.report.sentences import control
from delta_transcoders.report.study_results import (
    BASE_MODEL,
    FULL,
    RAW,
    StudyResults,
    is_broken,
)


def not_shown(results: StudyResults) -> list[str]:
    """What a reader might take for shown and is not, by what is missing from the folder."""
    study, missing = results.study, []
    if not results.exp2a:
        missing.append("behaviour with MLPs replaced (exp2a)")
    if not any(r["condition"] == BASE_MODEL for r in results.behaviour):
        missing.append("the base model's own behaviour (behaviour)")
    if not results.exp2b:
        missing.append("partial strengths of the delta (exp2b)")
    if results.has_dictionaries and results.deltas and not results.split:
        missing.append("how much is the dictionary's own error (comparisons)")
    if control(results) is None:
        missing.append("controls")
    missing.append("other seeds")
    if not any((study / name / "ranking.csv").is_file() for name in ("effects", "ranking")):
        missing.append("single features' effects (effects)")
    return missing


def unmeasured(results: StudyResults) -> list[str]:
    """Subsets on which the finetuned model was run and the delta was not."""
    return [
        subset
        for subset in results.subsets
        if results.was_measured(RAW, subset) and not results.was_measured(FULL, subset)
    ]


def not_a_number(results: StudyResults) -> list[str]:
    """Tables with a rate or a cross-entropy that should be a number and is none."""
    found = []
    for name in ("behaviour", "exp1", "exp2a", "exp2b"):
        rows = getattr(results, name)
        broken = {
            title("mean_ce"): [
                r for r in rows if r.get("mean_ce") == "nan" and r.get("n_tokens") not in ("", "0")
            ],
            **{
                rate: [r for r in rows if is_broken(r, rate)]
                for rate in rates(rows[0] if rows else {})
            },
        }
        found += [
            f"{name}/metrics.csv: {what} of {len(bad)} rows is no number"
            for what, bad in broken.items()
            if bad
        ]
    return found
