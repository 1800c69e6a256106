"""What every evaluation on prompts does with its records: gather, pool, log, write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.metrics.pooling import Record, behaviour_cells, measures_of
from delta_transcoders.metrics.records import Records
from delta_transcoders.report.tables import write_generations, write_metrics
from lightning_modules.outputs import check_measured, stage_output

INTERVAL_ENDS = ("_ci_low", "_ci_high")


class Evaluation(LightningModule):
    """Conditions crossed with the prompts of `EvaluationPrompts`.

    A subclass fills `labels` in `setup` and `records` in `test_step`. Its table has a row for every condition
    and subset; all of the row's estimates are logged as `test/SUBSET/CONDITION/…`.

    Attributes:
        labels: of each condition, in the order of the table; a record's `column` is an index of it.
        records: what was answered, of all processes after `compute`.
    """

    labels: Sequence[Mapping[str, Any]]

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        self.task, self.subsets, self.reader = data.task, data.subsets, data.reader
        self.opening = self.task.opening_column if self.task.opening else None
        self.records = Records(key=("column", "example"))

    def record(
        self, column: int, row: PromptRow, text: str | None, nll: float, **scores: Any
    ) -> Record:
        """What one condition did with one example.

        Args:
            text: the answer; None where none was generated.
            nll: summed over the target and EOS, in nats.
            scores: more of it.
        """
        record = {
            "column": column,
            "example": row.index,
            "subset": row.example.subset,
            "wording": self.task.wording(row.example),
            "nll": nll,
            "n_tokens": len(row.tokens.target_ids),
            **scores,
        }
        if text is not None:
            record |= {"text": text, "measures": self.task.verdicts(text, row.example)}
        return record

    def cells(
        self, column: int, subset: str, records: list[Record], raw: list[Record]
    ) -> dict[str, Any]:
        """The numbers of one row of the table.

        Args:
            raw: the first condition's records of the same examples.
        """
        return behaviour_cells(records, measures_of(records))

    def tags(self, column: int) -> list[str]:
        """The parts of a logged name that tell the condition from others."""
        return [self.labels[column]["condition"]]

    def on_test_epoch_end(self) -> None:
        records = self.records.compute()
        by_group, table = self.by_group(records), []
        for column, labels in enumerate(self.labels):
            for subset in self.subsets:
                groups = (by_group[c, subset] for c in (column, 0))
                cells = self.cells(column, subset, *groups)
                table.append({**labels, "subset": subset, **cells})
                self.log_cells(column, subset, cells)
        if self.trainer.is_global_zero:
            check_measured(table)
            with stage_output(self) as folder:
                self.write(folder, table, records)
        self.trainer.strategy.barrier()

    @staticmethod
    def by_group(records: Iterable[Record]) -> dict[tuple[int, str], list[Record]]:
        """By column and subset."""
        groups = defaultdict(list)
        for record in records:
            groups[record["column"], record["subset"]].append(record)
        return groups

    def log_cells(self, column: int, subset: str, cells: Mapping[str, Any]) -> None:
        """Log a row's estimates, as any logger shows them."""
        where = "/".join(["test", subset, *self.tags(column)])
        for name, value in cells.items():
            if isinstance(value, float) and value == value and not name.endswith(INTERVAL_ENDS):
                self.log(f"{where}/{name}", value, rank_zero_only=True)

    def write(self, folder: Path, table: list[dict], records: list[Record]) -> None:
        """Everything that belongs in the output."""
        write_metrics(folder, table)
        if any("text" in record for record in records):
            write_generations(folder, map(self._line, records))

    def _line(self, record: Record) -> dict[str, Any]:
        """A record as a line of `generations.jsonl`: with its condition, prompt and target, and verdicts."""
        example = self.trainer.datamodule.examples[record["example"]]
        labels = dict(self.labels[record["column"]])
        if "target" in labels:
            labels["fitted_to"] = labels.pop("target")
        scores = {
            key: value
            for key, value in record.items()
            if key not in ("measures", "active", "n_replaced")
        }
        return {
            **labels,
            "prompt": example.prompt_record,
            "target": example.target,
            **scores,
            **self.task.details(record["text"]),
            **record["measures"],
        }
