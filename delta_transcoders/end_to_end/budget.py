"""One number of features over all layers: which of them stay.

Shapes: E examples, F features of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from delta_transcoders.end_to_end.student import Student
from delta_transcoders.end_to_end.trained import TrainedTranscoder, alive
from delta_transcoders.interventions.attribution import attribute, largest, minus_kl_from
from delta_transcoders.language_models import TokenizedExample

ROWS_AT_ONCE = 16  # whose teacher's log-probabilities are kept: at 256,000 entries 1 MB a token


def attribution_sums(
    student: Student,
    rows: Sequence[TokenizedExample],
    group_E: Sequence[int],
    n_groups: int,
    steps: int,
) -> Tensor:
    """Each group's summed integrated gradients of −KL(finetuned ‖ student), float64 [groups, all F].

    Features are those of all layers, one layer after the other.

    Args:
        group_E: of each example.
        steps: of the path from no features to all.
    """
    deltas = student.engine.bank["delta"]
    sizes = [deltas[layer].n_features for layer in sorted(deltas)]
    sums = torch.zeros(n_groups, sum(sizes), dtype=torch.float64)
    # `attribute` goes backward when the interventions are off again.
    student.checkpoint_layers(False)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        measure = minus_kl_from(student.teacher_logprobs(part))
        found = attribute(student.engine, part, student.intervention, "delta", measure, steps)
        values_EF = torch.cat([found[layer] for layer in sorted(found)], dim=1)
        sums.index_add_(0, torch.tensor(group_E[start : start + len(part)]), values_EF)
    student.checkpoint_layers(student.gradient_checkpointing)
    return sums


def choose(
    scores_F: Tensor, deltas: Mapping[int, TrainedTranscoder], budget: int
) -> dict[int, tuple[int, ...]]:
    """The features with the largest scores of those that are left, by layer.

    Args:
        scores_F: of all layers' features, one layer after the other.
    """
    layers = sorted(deltas)
    parts = scores_F.split([deltas[layer].n_features for layer in layers])
    left = {
        layer: part_F.masked_fill(~alive(deltas[layer]).cpu(), -torch.inf)
        for layer, part_F in zip(layers, parts, strict=True)
    }
    return largest(left, budget)
