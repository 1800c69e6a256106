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
from delta_transcoders.report import markdown
from delta_transcoders.report.tables import write_generations, write_metrics
from lightning_modules.curve_places import HOW_TO_READ, Place, layout_of
from lightning_modules.loggers import Point, log_elsewhere, tensorboards, write_points
from lightning_modules.outputs import check_measured, stage_output

INTERVAL_ENDS = ("_ci_low", "_ci_high")


class Evaluation(LightningModule):
    """Conditions crossed with the prompts of `EvaluationPrompts`.

    A subclass fills `labels` in `setup` and `records` in `test_step`. Its table has a row for every condition
    and subset; all of the row's estimates are logged as `test/SUBSET/CONDITION/…`. TensorBoard has those of
    `markdown.measured` as curves (`places`), the table and answers side by side as texts.

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
        if self.trainer.is_global_zero:
            check_measured(table)
            with stage_output(self) as folder:
                self.write(folder, table, records)
            self.log_table(table)
            self.show(table, records)
        self.trainer.strategy.barrier()

    @staticmethod
    def by_group(records: Iterable[Record]) -> dict[tuple[int, str], list[Record]]:
        """By column and subset."""
        groups = defaultdict(list)
        for record in records:
            groups[record["column"], record["subset"]].append(record)
        return groups

    def is_logged(self, column: int) -> bool:
        """Whether a condition is one of a few."""
        return True

    def places(self, column: int, subset: str) -> list[Place]:
        """Where TensorBoard draws a row's numbers."""
        return []

    def log_table(self, table: list[dict]) -> None:
        """All estimates, at once, for loggers that have no runs within a run."""
        keys = ((c, s) for c in range(len(self.labels)) for s in self.subsets)
        scalars = {}
        for (column, subset), row in zip(keys, table, strict=True):
            where = "/".join(["test", subset, *self.tags(column)])
            for name, value in row.items() if self.is_logged(column) else ():
                if (
                    isinstance(value, float)
                    and value == value
                    and not name.endswith(INTERVAL_ENDS)
                    and name not in self.labels[column]
                ):
                    scalars[f"{where}/{name}"] = value
        log_elsewhere(self.trainer, scalars)

    def show(self, table: list[dict], records: list[Record]) -> None:
        """Curves and texts, for TensorBoard."""
        keys = ((c, s) for c in range(len(self.labels)) for s in self.subsets)
        rows = dict(zip(keys, table, strict=True))
        drawn = [
            (place, name, row[name])
            for key, row in rows.items()
            for place in self.places(*key)
            for name in markdown.measured(row)
        ]
        write_points(
            self.trainer,
            [
                Point(p.run, p.tag(name), step, value)
                for p, name, value in drawn
                for step in p.steps
            ],
        )
        texts = {
            "results": markdown.results([r for (c, _), r in rows.items() if self.is_logged(c)])
        }
        groups = " ".join({place.group for place, *_ in drawn})
        if groups:
            texts["how_to_read"] = "\n\n".join(
                t for name, t in HOW_TO_READ.items() if name in groups
            )
        if len(answers := self.side_by_side(records)) > 1:
            examples = self.trainer.datamodule.examples
            texts["samples/side_by_side"] = markdown.samples(examples, answers)
        layout = layout_of((place, name) for place, name, _ in drawn)
        for tensorboard in tensorboards(self.trainer):
            for tag, text in texts.items():
                tensorboard.add_text(tag, text)
            if layout:
                tensorboard.add_custom_scalars(layout)

    def shown_columns(self) -> dict[int, str]:
        """The conditions whose answers are shown side by side, with what they are called there."""
        return {}

    def side_by_side(self, records: Iterable[Record]) -> dict[str, dict[int, str]]:
        """Answers by condition and index of the example."""
        names = self.shown_columns()
        answers: dict[str, dict[int, str]] = {}
        for record in records:
            if record["column"] in names and "text" in record:
                of_column = answers.setdefault(names[record["column"]], {})
                of_column[record["example"]] = record["text"]
        return answers

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
