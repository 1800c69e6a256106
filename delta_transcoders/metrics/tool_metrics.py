"""Behaviour per group: the rates of the result table with their counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta_transcoders.metrics import RATES
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.metrics.intervals import wilson
from delta_transcoders.tasks.calculator.grammar import find_tool_call, judge
from delta_transcoders.tasks.examples import Example


@dataclass(frozen=True)
class Answer:
    """What a model did with one example under one condition.

    Attributes:
        example: index of the example in its file.
        text: the generated continuation; None where nothing was generated.
        nll: summed negative log-likelihood of the target and EOS, in nats.
        n_tokens: tokens of the target, EOS included.
    """

    example: int
    text: str | None
    nll: float
    n_tokens: int

    def record(self, example: Example) -> dict:
        """This answer with its prompt and verdicts, as a line of `generations.jsonl`."""
        record = {
            "example": self.example,
            "subset": example.subset,
            "prompt": example.input,
            "target": example.target,
            "nll": self.nll,
            "n_tokens": self.n_tokens,
        }
        if self.text is None:
            return record
        verdict = judge(self.text, example.target)
        call = find_tool_call(self.text)
        copied = self.text == example.target if example.subset == "copy" else None
        return record | {
            "text": self.text,
            "parsed_call": call.argument if call else None,
            "tool_call": verdict.called,
            "valid_tool_format": verdict.valid_format,
            "math_correct": verdict.math_correct,
            "exact_copy": copied,
        }


class ToolMetrics(nn.Module):
    """Mean cross-entropy and the behaviour rates of numbered groups, as torchmetrics.

    Args:
        n_groups: groups, for example subsets × conditions.
    """

    def __init__(self, n_groups: int) -> None:
        super().__init__()
        names = ("mean_ce", "examples", *RATES)
        self.metrics = nn.ModuleDict({name: GroupedMean(n_groups) for name in names})

    def update(self, group: int, records: Sequence[dict]) -> None:
        """Add the records (`Answer.record`) of one group."""
        device = self.metrics["mean_ce"].device

        def add(name: str, numerators: list, denominators: list) -> None:
            values = torch.tensor([numerators, denominators], dtype=torch.float64, device=device)
            groups = torch.full((len(numerators),), group, dtype=torch.long, device=device)
            self.metrics[name].update(groups, *values)

        add("mean_ce", [r["nll"] for r in records], [r["n_tokens"] for r in records])
        add("examples", [1] * len(records), [1] * len(records))
        for name in RATES:
            values = [r.get(name.removesuffix("_rate")) for r in records]
            add(name, [bool(v) for v in values], [v is not None for v in values])

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Numerator and denominator [n_groups] of each metric, summed over ranks; on the CPU."""
        totals = {}
        for name, metric in self.metrics.items():
            with metric.sync_context():
                numerator, denominator = metric.numerator.clone(), metric.denominator.clone()
            totals[name] = (numerator.cpu(), denominator.cpu())
        return totals


def table_cells(sums: dict[str, tuple[Tensor, Tensor]], group: int) -> dict[str, float | int]:
    """The columns of one group: counts, mean cross-entropy, and rates with Wilson intervals."""
    nll, n_tokens = (float(t[group]) for t in sums["mean_ce"])
    cells: dict[str, float | int] = {
        "n_examples": int(sums["examples"][1][group]),
        "n_tokens": int(n_tokens),
        "mean_ce": nll / n_tokens if n_tokens else float("nan"),
    }
    for name in RATES:
        successes, total = (int(t[group]) for t in sums[name])
        cells[name] = successes / total if total else float("nan")
        cells[f"{name}_ci_low"], cells[f"{name}_ci_high"] = wilson(successes, total)
    return cells
