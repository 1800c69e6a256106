"""Planted rules: the units that carry one rule are deleted, and every rule is tested."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.interventions.attribution import common_prefix
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
MATRIX = ("deleted", "n_deleted", "subset", "n_examples", "rate", "loss")


class Deletion(NamedTuple):
    """One condition: `units` are deleted for a rule, at random (`random_0` …), or none at all."""

    name: str
    units: list[int]

    @property
    def condition(self) -> str:
        return f"{self.name}_n{len(self.units)}" if self.units else self.name


class DeletionMatrix(Evaluation):
    """For each rule the units that make the model choose it are deleted, and every rule is tested.

    What all rules write alike is not a rule's own. So a unit's score for a rule is its attribution, on the
    rule's examples in half of the wordings, of

        log p(what the rule's answers begin with) − mean over the other rules of log p(what theirs begin with)

    in which everything before the first token that tells the rules apart cancels. Those with the largest
    scores are deleted, and the test is on the other half of the wordings, beside random deletions of as many
    units. A subclass (`deletion_units`) says what a unit is, and has `n_units` from `setup` on.

    Writes what an evaluation writes, and `matrix.csv`, each deletion's rate and loss by subset; `units.csv`,
    what was deleted, with its score in nats of an example; `selectivity.csv` (`metrics.selectivity`), a row
    for each number of deleted units.

    Args:
        output: folder of the results.
        rules: subsets that are one rule each; others are tested too, and nothing is deleted for them.
        measure: the judge's verdict whose rate counts.
        n_deleted: numbers of units to delete, ascending.
        n_random: random deletions of each number.
        max_new_tokens: longest answer.
        seed: of the random deletions.
    """

    n_units: int

    def __init__(
        self,
        output: str,
        rules: list[str],
        measure: str,
        n_deleted: list[PositiveInt],
        n_random: PositiveInt = 20,
        max_new_tokens: PositiveInt = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(set(rules)) < 2:
            raise ValueError(f"rules are {rules}, expected at least two different ones")
        if not n_deleted or n_deleted != sorted(set(n_deleted)):
            raise ValueError(f"n_deleted is {n_deleted}, expected ascending numbers, at least one")
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
        h, most = self.hparams, self.hparams.n_deleted[-1]
        if most > self.n_units:
            raise ValueError(f"n_deleted is up to {most}, there are {self.n_units} units in all")
        orders: dict[str, list[int]] = {}
        self.units: list[dict[str, Any]] = []
        for rule, scores_U in self.scores().items():
            orders[rule] = scores_U.argsort(descending=True, stable=True)[:most].tolist()
            self.units += [
                {
                    "deleted": rule,
                    "rank": rank,
                    "unit": self.unit_name(u),
                    "attribution": float(scores_U[u]),
                }
                for rank, u in enumerate(orders[rule], start=1)
            ]
        rng = random.Random(f"random deletions {h.seed}")
        orders |= {f"random_{i}": rng.sample(range(self.n_units), most) for i in range(h.n_random)}
        self.deletions = [Deletion(KEPT, [])]
        self.deletions += [
            Deletion(name, order[:n]) for n in h.n_deleted for name, order in orders.items()
        ]
        self.labels = [
            {"experiment": "deletion_matrix", "layer": "", "condition": deletion.condition}
            for deletion in self.deletions
        ]

    def scores(self) -> dict[str, Tensor]:
        """By rule, each unit's mean attribution of the choice of that rule and no other, [U]."""
        rows = in_half(self.task, self.trainer.datamodule.rows, "A")
        by_rule = {
            rule: [r for r in rows if r.example.subset == rule] for rule in self.hparams.rules
        }
        beginnings = {
            rule: common_prefix(row.tokens.target_ids[:-1] for row in mine)  # without EOS
            for rule, mine in by_rule.items()
        }
        for one, other in itertools.combinations(beginnings, 2):
            if all(a == b for a, b in zip(beginnings[one], beginnings[other], strict=False)):
                raise ValueError(
                    f"rules {one!r} and {other!r}: no token that all answers of each begin with tells them "
                    "apart; give model.rules whose answers begin differently"
                )
        found = {}
        for rule, mine in by_rule.items():
            attributed = {
                name: self.attributed(
                    [row._replace(tokens=replace(row.tokens, target_ids=beginning)) for row in mine]
                ).mean(0)
                for name, beginning in beginnings.items()
            }
            own_U = attributed.pop(rule)
            found[rule] = own_U - torch.stack(list(attributed.values())).mean(0)
        return found

    @torch.inference_mode()
    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        rows = in_half(self.task, batch, "B")
        for column, deletion in enumerate(self.deletions if rows else ()):
            found = zip(rows, *self.answers(rows, deletion.units), strict=True)
            self.records.update([self.record(column, *row) for row in found])

    def write(self, folder: Path, table: list[dict], records: list[Record]) -> None:
        super().write(folder, table, records)
        h, rate = self.hparams, f"{self.hparams.measure}_rate"
        kept = {row["subset"]: row[rate] for row in table if row["condition"] == KEPT}
        deletions = {deletion.condition: deletion for deletion in self.deletions}
        rows = [
            {
                "deleted": deletions[row["condition"]].name,
                "n_deleted": len(deletions[row["condition"]].units),
                "subset": row["subset"],
                "n_examples": row["n_examples"],
                "rate": row[rate],
                "loss": kept[row["subset"]] - row[rate],
            }
            for row in table
        ]
        write_table(folder / "matrix.csv", MATRIX, rows)
        write_table(folder / "units.csv", list(self.units[0]), self.units)
        summary = [self._summary(n, rows, records) for n in h.n_deleted]
        write_table(folder / "selectivity.csv", list(summary[0]), summary)
        shown = [*h.rules, *(s for s in self.subsets if s not in h.rules)]
        for n in h.n_deleted:
            mine = [row for row in rows if row["n_deleted"] == n]
            matrix = [
                {"deleted": name}
                | {r["subset"]: f"{r['loss']:.3f}" for r in mine if r["deleted"] == name}
                for name in h.rules
            ]
            title = f"Loss of {rate} without {n} of {self.n_units} units:"
            say(f"\n{title}\n{format_table(matrix, ['deleted', *shown])}\n")
        texts = [{name: cell_text(value) for name, value in row.items()} for row in summary]
        say(format_table(texts, list(summary[0])))

    def _summary(self, n: int, rows: list[dict], records: list[Record]) -> dict[str, Any]:
        h, by_group = self.hparams, self.by_group(records)
        columns = {d.name: c for c, d in enumerate(self.deletions) if len(d.units) in (0, n)}

        def verdicts(name: str, rule: str) -> Tensor:
            found = by_group[columns[name], rule]
            return torch.tensor([float(record["measures"][h.measure]) for record in found])

        losses, wordings = {}, {}
        for rule in h.rules:
            before = verdicts(KEPT, rule)
            losses[rule] = [(before - verdicts(k, rule)).tolist() for k in h.rules]
            wordings[rule] = [r["wording"] for r in by_group[0, rule]]
        found = selectivity(losses, wordings, h.seed)
        loss = {(r["deleted"], r["subset"]): r["loss"] for r in rows if r["n_deleted"] == n}
        of_random = [[loss[f"random_{i}", rule] for rule in h.rules] for i in range(h.n_random)]
        mean, low, high = random_selectivity(of_random, h.seed)
        return {
            "n_units": self.n_units,
            "n_deleted": n,
            "selectivity": found.estimate,
            "selectivity_ci_low": found.low,
            "selectivity_ci_high": found.high,
            "own_loss": found.diagonal,
            "other_loss": found.off_diagonal,
            "random_selectivity": mean,
            "random_low": low,
            "random_high": high,
        }
