"""How few features are enough, from the records of single answers.

The unit that is resampled is the wording, then what was asked in it goes along: examples of one wording are
answered alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from delta_transcoders.metrics.intervals import bootstrap_sums
from delta_transcoders.metrics.pooling import Record, interval

Estimate = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


def by_wording(columns_KE: ArrayLike, wordings: Sequence[Hashable]) -> np.ndarray:
    """Sums over each wording's examples, [K, W]: what `bootstrap_sums` draws are wordings then.

    >>> by_wording([[1, 2, 4], [1, 1, 1]], ["a", "b", "a"]).tolist()
    [[5.0, 2.0], [2.0, 1.0]]
    """
    columns_KE = np.asarray(columns_KE, dtype=np.float64)
    names = list(dict.fromkeys(wordings))
    index_E = [names.index(wording) for wording in wordings]
    sums_KW = np.zeros((len(columns_KE), len(names)))
    np.add.at(sums_KW, (slice(None), index_E), columns_KE)
    return sums_KW


def paired_by_wording(
    ours: Sequence[Record], theirs: Sequence[Record], measure: str, wordings: Sequence[Hashable]
) -> np.ndarray:
    """For each wording, the sums of two conditions' verdicts and their number: [3, W].

    Args:
        ours, theirs: records of the same examples in the same order.
        measure: of the task's judge; examples to which it does not apply are left out.
        wordings: each example's.
    """
    verdicts = [
        (a["measures"][measure], b["measures"][measure], 1, wording)
        for a, b, wording in zip(ours, theirs, wordings, strict=True)
        if a["measures"][measure] is not None
    ]
    if not verdicts:
        return np.zeros((3, 0))
    *columns, of_wording = zip(*verdicts, strict=True)
    return by_wording(columns, of_wording)


def share(sums_3W: np.ndarray) -> Estimate:
    """Our successes as a share of theirs; nan where they have none.

    >>> share(np.array([[1.0, 1.0], [2.0, 2.0], [2.0, 3.0]]))
    (0.5, 0.5, 0.5)
    """
    return bootstrap_sums(sums_3W[:2], lambda s: np.where(s[1] > 0, s[0] / s[1], np.nan))


def difference(sums_3W: np.ndarray) -> Estimate:
    """Our rate minus theirs.

    >>> difference(np.array([[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]))
    (-0.5, -0.5, -0.5)
    """
    return bootstrap_sums(sums_3W, lambda s: (s[0] - s[1]) / s[2])


def sufficiency_cells(
    ours: Sequence[Record],
    theirs: Sequence[Record],
    wordings: Sequence[Hashable],
    correct: str | None,
    side: str | None,
    margin: float,
) -> dict[str, float | bool]:
    """What a student with some features leaves of the finetuned model's answers to one subset.

    Args:
        ours, theirs: the student's records and the finetuned model's, of the same examples.
        wordings: of the examples.
        correct: measure of a correct answer, for a subset that the finetune is about.
        side: measure that should stay as it is, for another.
        margin: the most that its rate may fall, by the interval's lower end.

    Returns:
        `share_of_finetuned` or `side_change` with their intervals, and `intact`.
    """
    cells: dict[str, float | bool] = {}
    if correct is not None:
        sums_3W = paired_by_wording(ours, theirs, correct, wordings)
        cells |= interval("share_of_finetuned", share(sums_3W))
    if side is not None:
        change = difference(paired_by_wording(ours, theirs, side, wordings))
        cells |= interval("side_change", change) | {"intact": change[1] >= -margin}
    return cells
