"""Whether an experiment's prompts can say that something is enough; refused before it runs where not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from datamodules.evaluation_prompts import EvaluationPrompts
from lightning_modules.attribution import in_half


def check_measures(
    data: EvaluationPrompts, correct: Mapping[str, str], side: Mapping[str, str]
) -> None:
    """
    Args:
        correct, side: measures by subset.

    Raises:
        ValueError: a subset that there is not, or a measure that it has not.
    """
    for option, by_subset in (("correct", correct), ("side", side)):
        for subset, measure in by_subset.items():
            example = next((e for e in data.examples if e.subset == subset), None)
            if example is None:
                raise ValueError(f"{option}: there is no subset {subset!r} among {data.subsets}")
            known = data.task.verdicts(example.target or "", example)
            if known.get(measure) is None:
                applies = [name for name, verdict in known.items() if verdict is not None]
                raise ValueError(
                    f"{option}: the subset {subset!r} has no measure {measure!r}, but {', '.join(applies)}"
                )


def check_half(data: EvaluationPrompts, half: str, does: str, subsets: Collection[str]) -> None:
    """
    Args:
        does: what its examples are for, for the message.

    Raises:
        ValueError: a subset without an example in that half of the wordings.
    """
    there = {row.example.subset for row in in_half(data.task, data.rows, half)}
    if missing := set(subsets) - there:
        raise ValueError(
            f"subset {min(missing)!r} has no example in half {half} of the wordings to {does}: give more "
            "wordings"
        )
