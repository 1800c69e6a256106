"""What whole models do with evaluation prompts: the finetuned one beside its base."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from delta_transcoders.families import family_of
from delta_transcoders.generation import greedy_texts
from delta_transcoders.language_models import (
    IGNORE,
    check_context,
    check_model_source,
    load_model,
    load_tokenizer,
    target_batch,
    token_nll,
)
from delta_transcoders.metrics.tool_metrics import Answer, ToolMetrics, table_cells
from delta_transcoders.report.tables import write_generations, write_metrics
from lightning_modules.gathering import gather_records
from lightning_modules.outputs import check_measured, stage_output


class BehaviourEvaluation(LightningModule):
    """Greedy answers and teacher-forced cross-entropy of several models on `EvaluationPrompts`.

    Writes `metrics.csv`, `metrics.json` and `generations.jsonl` to `output`.

    Args:
        models: folder or hub id by condition; `raw` is the finetuned model.
        output: folder of the results.
        max_new_tokens: longest answer.
        dtype: of the weights, `float32` or `bfloat16`.
    """

    def __init__(
        self,
        models: dict[str, str],
        output: str,
        max_new_tokens: int = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if not models:
            raise ValueError("models is empty, expected at least one, as in {raw: FOLDER}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        for source in models.values():
            check_model_source(source)
        self.save_hyperparameters()
        self.models = nn.ModuleDict()
        self.records: list[dict] = []

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        # All read the token ids of one tokenizer, which also measures the prompts' lengths.
        self.tokenizer = load_tokenizer(*self.hparams.models.values(), data.hparams.model)
        data.warn_of_impossible_answers(self.tokenizer, self.hparams.max_new_tokens)
        for condition, source in self.hparams.models.items():
            self.models[condition] = load_model(source, self.hparams.dtype)
            context = family_of(self.models[condition].config).context
            check_context(self.tokenizer, data.examples, context, self.hparams.max_new_tokens)
        self.groups = [(c, s) for c in self.hparams.models for s in data.hparams.subsets]
        self.tool_metrics = ToolMetrics(len(self.groups))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        rows = batch["rows"].tolist()
        examples = [self.trainer.datamodule.examples[row] for row in rows]
        tokens = {k: v.to(self.device) for k, v in target_batch(self.tokenizer, examples).items()}
        n_tokens = (tokens["labels"] != IGNORE).sum(1).tolist()
        for condition, model in self.models.items():
            nll_N = token_nll(model, **{f"{k}_BT": v for k, v in tokens.items()})
            texts = greedy_texts(
                model, self.tokenizer, [e.prompt for e in examples], self.hparams.max_new_tokens
            )
            sums = torch.stack([part.double().sum() for part in nll_N.split(n_tokens)]).tolist()
            by_group = defaultdict(list)
            for row, example, text, nll, n in zip(
                rows, examples, texts, sums, n_tokens, strict=True
            ):
                record = Answer(row, text, nll, n).record(example)
                self.records.append({"condition": condition, **record})
                by_group[condition, example.subset].append(record)
            for group, records in by_group.items():
                self.tool_metrics.update(self.groups.index(group), records)

    def on_test_epoch_end(self) -> None:
        sums = self.tool_metrics.sums()
        table = []
        for index, (condition, subset) in enumerate(self.groups):
            cells = table_cells(sums, index)
            row = {"experiment": "behaviour", "layer": "", "subset": subset, "condition": condition}
            table.append(row | cells)
            for name in ("mean_ce", "tool_call_rate", "math_correct_rate", "exact_copy_rate"):
                if not torch.tensor(cells[name]).isnan():
                    self.log(f"test/{subset}/{condition}/{name}", cells[name], rank_zero_only=True)
        records = gather_records(self.records)
        if self.trainer.is_global_zero:
            order = {condition: i for i, condition in enumerate(self.hparams.models)}
            records.sort(key=lambda r: (order[r["condition"]], r["example"]))
            check_measured(table)
            with stage_output(self) as folder:
                write_generations(folder, records)
                write_metrics(folder, table)
        self.trainer.strategy.barrier()
