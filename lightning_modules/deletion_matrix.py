"""Planted rules: the units that carry one rule are deleted, and every rule is tested."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.metrics.pooling import Record
from delta_transcoders.metrics.selectivity import random_selectivity, selectivity
from delta_transcoders.report.formatting import cell_text
from delta_transcoders.report.tables import format_table, write_table
from delta_transcoders.tasks.wordings import half_of
from lightning_modules.attribution import in_half
from lightning_modules.evaluation import Evaluation
from lightning_modules.outputs import say

KEPT = "kept"
"""The condition with nothing deleted."""
MATRIX = ("deleted", "subset", "n_examples", "rate", "loss")


class DeletionMatrix(Evaluation):
    """For each rule the units with the largest attribution on half of the wordings are deleted.

    On the other half every rule is tested, beside random deletions of as many units. A subclass
    (`deletion_units`) says what a unit is, and has `n_units` from `setup` on.

    Writes what an evaluation writes, and `matrix.csv`, each deletion's rate and loss by subset; `units.csv`,
    what was deleted, with its attribution in nats of an example; `selectivity.csv` (`metrics.selectivity`).

    Args:
        output: folder of the results.
        rules: subsets that are one rule each; others are tested too, and nothing is deleted for them.
        measure: the judge's verdict whose rate counts.
        n_deleted: units of each deletion.
        n_random: random deletions.
        max_new_tokens: longest answer.
        seed: of the random deletions.
    """

    n_units: int

    def __init__(
        self,
        output: str,
        rules: list[str],
        measure: str,
        n_deleted: PositiveInt,
        n_random: PositiveInt = 20,
        max_new_tokens: PositiveInt = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(set(rules)) < 2:
            raise ValueError(f"rules are {rules}, expected at least two different ones")
        if n_random < len(rules):
            raise ValueError(f"n_random is {n_random}, expected one for each of {len(rules)} rules")
        self.save_hyperparameters()

    def unit_name(self, unit: int) -> str:
        raise NotImplementedError

    def attributed(self, rows: Sequence[PromptRow]) -> Tensor:
        """Each unit's attribution in each row, [E, U]."""
        raise NotImplementedError

    def answers(
        self, rows: Sequence[PromptRow], deleted: Sequence[int]
    ) -> tuple[list[str], list[float]]:
        """Text and summed cross-entropy of each row without these units."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h, data = self.hparams, self.trainer.datamodule
        halves = {
            subset: [
                half_of(self.task.wording(row.example))
                for row in data.rows
                if row.example.subset == subset
            ]
            for subset in self.subsets
        }
        for rule in h.rules:
            if rule not in halves:
                raise ValueError(f"rules: no subset {rule!r}; there are {', '.join(self.subsets)}")
        for subset, found in halves.items():
            if len(set(found)) < 2:
                raise ValueError(
                    f"subset {subset!r} has {len(found)} examples, all in one half of the wordings: give "
                    "more wordings"
                )
        for rule in h.rules:
            example = next(e for e in data.examples if e.subset == rule)
            verdicts = self.task.verdicts(example.target or "", example)
            if verdicts.get(h.measure) is None:
                known = ", ".join(name for name, verdict in verdicts.items() if verdict is not None)
                raise ValueError(f"measure is {h.measure!r}; of {rule} the judge gives {known}")
        data.warn_of_impossible_answers(h.max_new_tokens)

    def on_test_start(self) -> None:
        h = self.hparams
        if h.n_deleted > self.n_units:
            raise ValueError(f"n_deleted is {h.n_deleted}, there are {self.n_units} units in all")
        self.deletions: dict[str, list[int]] = {KEPT: []}
        self.units: list[dict[str, Any]] = []
        chosen_on = in_half(self.task, self.trainer.datamodule.rows, "A")
        for rule in h.rules:
            rows = [row for row in chosen_on if row.example.subset == rule]
            scores_U = self.attributed(rows).mean(0)
            order = scores_U.argsort(descending=True, stable=True)[: h.n_deleted].tolist()
            self.deletions[rule] = order
            self.units += [
                {
                    "deleted": rule,
                    "rank": rank,
                    "unit": self.unit_name(u),
                    "attribution": float(scores_U[u]),
                }
                for rank, u in enumerate(order, start=1)
            ]
        rng = random.Random(f"random deletions {h.seed}")
        for i in range(h.n_random):
            self.deletions[f"random_{i}"] = rng.sample(range(self.n_units), h.n_deleted)
        self.labels = [
            {"experiment": "deletion_matrix", "layer": "", "condition": name}
            for name in self.deletions
        ]

    @torch.inference_mode()
    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        rows = in_half(self.task, batch, "B")
        for column, deleted in enumerate(self.deletions.values() if rows else ()):
            found = zip(rows, *self.answers(rows, deleted), strict=True)
            self.records.update([self.record(column, *row) for row in found])

    def write(self, folder: Path, table: list[dict], records: list[Record]) -> None:
        super().write(folder, table, records)
        h, rate = self.hparams, f"{self.hparams.measure}_rate"
        kept = {row["subset"]: row[rate] for row in table if row["condition"] == KEPT}
        rows = [
            {
                "deleted": row["condition"],
                "subset": row["subset"],
                "n_examples": row["n_examples"],
                "rate": row[rate],
                "loss": kept[row["subset"]] - row[rate],
            }
            for row in table
        ]
        write_table(folder / "matrix.csv", MATRIX, rows)
        write_table(folder / "units.csv", list(self.units[0]), self.units)
        summary = self._summary(rows, records)
        write_table(folder / "selectivity.csv", list(summary), [summary])
        shown = [*h.rules, *(s for s in self.subsets if s not in h.rules)]
        matrix = [
            {"deleted": name}
            | {r["subset"]: f"{r['loss']:.3f}" for r in rows if r["deleted"] == name}
            for name in h.rules
        ]
        say(f"\nLoss of {rate} by deletion:\n{format_table(matrix, ['deleted', *shown])}\n")
        texts = {name: cell_text(value) for name, value in summary.items()}
        say(format_table([texts], list(summary)))

    def _summary(self, rows: list[dict], records: list[Record]) -> dict[str, Any]:
        h = self.hparams
        by_group, names = self.by_group(records), list(self.deletions)

        def verdicts(name: str, rule: str) -> list[float]:
            found = by_group[names.index(name), rule]
            return [float(record["measures"][h.measure]) for record in found]

        losses, wordings = {}, {}
        for rule in h.rules:
            before = torch.tensor(verdicts(KEPT, rule))
            losses[rule] = [(before - torch.tensor(verdicts(k, rule))).tolist() for k in h.rules]
            wordings[rule] = [r["wording"] for r in by_group[0, rule]]
        found = selectivity(losses, wordings, h.seed)
        loss = {(row["deleted"], row["subset"]): row["loss"] for row in rows}
        of_random = [
            [loss[name, rule] for rule in h.rules] for name in names if name.startswith("random_")
        ]
        mean, low, high = random_selectivity(of_random, h.seed)
        return {
            "n_units": self.n_units,
            "n_deleted": h.n_deleted,
            "selectivity": found.estimate,
            "selectivity_ci_low": found.low,
            "selectivity_ci_high": found.high,
            "own_loss": found.diagonal,
            "other_loss": found.off_diagonal,
            "random_selectivity": mean,
            "random_low": low,
            "random_high": high,
        }
