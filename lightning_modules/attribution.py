"""Attributions of an experiment's prompts, shared out over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning import Trainer
from torch import Tensor

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.interventions.attribution import Measure, attribute
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import Intervention
from delta_transcoders.language_models import TokenizedExample
from delta_transcoders.tasks.task import Task
from delta_transcoders.tasks.wordings import half_of


def in_half(task: Task, rows: Sequence[PromptRow], half: str) -> list[PromptRow]:
    """Those whose wording is in one half of all wordings."""
    return [row for row in rows if half_of(task.wording(row.example)) == half]


def mean_attributions(
    trainer: Trainer,
    engine: InterventionEngine,
    rows: Sequence[PromptRow],
    subsets: Sequence[str],
    intervention: Intervention,
    source: str,
    measure_for: Callable[[list[TokenizedExample]], Measure],
    steps: int,
) -> dict[int, Tensor]:
    """By layer, the mean of `attribute` over each subset's examples, float64 [S, F]; nan for one without any.

    It is the same on every process.

    Args:
        rows: those without a target are left out.
        measure_for: gives the measure for some of the rows.
    """
    rows = [row for row in rows if row.tokens.target_ids]
    mine = rows[trainer.global_rank :: trainer.world_size]
    device = engine.model.device
    sums = {
        layer: torch.zeros(len(subsets), engine.bank[source][layer].n_features, dtype=torch.float64)
        for layer in intervention.layers
    }
    for start in range(0, len(mine), engine.rows_per_pass):
        part = mine[start : start + engine.rows_per_pass]
        tokens = [row.tokens for row in part]
        subset_B = torch.tensor([subsets.index(row.example.subset) for row in part])
        found = attribute(engine, tokens, intervention, source, measure_for(tokens), steps)
        for layer, values_BF in found.items():
            sums[layer].index_add_(0, subset_B, values_BF)
    of_subset = [row.example.subset for row in rows]
    counts_S = torch.tensor([of_subset.count(subset) for subset in subsets], dtype=torch.float64)
    return {
        layer: trainer.strategy.reduce(sums_SF.to(device), reduce_op="sum").cpu()
        / counts_S[:, None]
        for layer, sums_SF in sums.items()
    }
