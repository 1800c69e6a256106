"""Experiments: what happens to the model's behaviour when MLPs are swapped for dictionaries."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.interventions.engine import InterventionEngine, TeacherForced
from delta_transcoders.interventions.intervention import (
    RAW,
    Intervention,
    from_spec,
    layer_groups,
)
from delta_transcoders.interventions.loading import DeltaSet, load_delta_set, relabel
from delta_transcoders.interventions.sources import mlp_sources
from delta_transcoders.language_models import (
    check_context,
    check_model_source,
    load_model,
    load_tokenizer,
    target_batch,
)
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.metrics.intervals import paired_bootstrap_ratio
from delta_transcoders.metrics.reconstruction import GroupedReconstruction
from delta_transcoders.metrics.tool_metrics import Answer, ToolMetrics, table_cells
from delta_transcoders.report.figures import experiment_figures
from delta_transcoders.report.tables import write_generations, write_metrics
from lightning_modules.gathering import gather_records

SCORES = (
    "mean_kl",
    "call_logprob",
    "mean_abs_base_acts",
    "mean_abs_delta_acts",
    "l0_base",
    "l0_delta",
)


@dataclass(frozen=True)
class Column:
    """One intervention of the experiment and the set of deltas it uses (none for raw)."""

    intervention: Intervention
    deltas: DeltaSet | None

    @property
    def labels(self) -> dict[str, Any]:
        known = self.deltas is not None
        return {
            "condition": self.intervention.condition,
            "alpha": self.intervention.alpha,
            "d_new": self.deltas.d_new if known else None,
            "percentile": self.deltas.percentile if known else None,
        }


class InterventionEvaluation(LightningModule):
    """A list of interventions crossed with the prompts of `EvaluationPrompts`; raw is run once.

    Writes `metrics.csv`, `metrics.json` and, where text is generated, `generations.jsonl` to `output`.

    Args:
        experiment: name in the result table.
        model: folder or hub id of the finetuned model, adapters merged.
        base_model: folder or hub id of the un-finetuned model, for the source `base_mlp`.
        base_transcoders: folder or hub id of the base dictionaries.
        deltas: folders of trained deltas, one per configuration of d_new and percentile.
        output: folder of the results.
        layers: each a number, several joined by `+`, or `all`.
        conditions: names or mappings, see `interventions.intervention.from_spec`; raw is always there.
        generate: also generate text; without it there are cross-entropies only.
        reconstruction: also measure how well single layers' outputs are reconstructed.
        max_new_tokens: longest answer.
        rows_per_pass: rows of one forward pass.
        dtype: of the models' weights.
    """

    def __init__(
        self,
        experiment: str,
        model: str,
        base_model: str,
        base_transcoders: str,
        deltas: list[str],
        output: str,
        layers: list[int | str],
        conditions: list[str | dict],
        generate: bool = True,
        reconstruction: bool = False,
        max_new_tokens: int = 64,
        rows_per_pass: int = 256,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (model, base_model):
            check_model_source(source)
        self.save_hyperparameters()
        self.records: list[dict] = []

    def setup(self, stage: str) -> None:
        h, data = self.hparams, self.trainer.datamodule
        self.tokenizer = load_tokenizer(h.model)
        self.model = load_model(h.model, h.dtype)
        context = self.model.config.max_position_embeddings
        check_context(self.tokenizer, data.examples, context, h.max_new_tokens)
        sets = [load_delta_set(folder, h.base_transcoders, self.model) for folder in h.deltas]
        if len({s.site for s in sets}) > 1:
            raise ValueError("deltas of different hook sites cannot share an experiment")
        n_layers = self.model.config.num_hidden_layers
        base_mlps = mlp_sources(load_model(h.base_model, h.dtype), range(n_layers))
        bank = {"base_mlp": base_mlps}
        self.columns = [Column(RAW, None)]
        self.layer_labels = [""]
        for deltas in sets:
            bank |= {f"{name}@{deltas.label}": by for name, by in deltas.sources.items()}
            for group in layer_groups(h.layers, n_layers, deltas.configs):
                for spec in h.conditions:
                    intervention = from_spec(spec, group)
                    if intervention.writes:
                        relabelled = relabel(intervention, deltas.label, set(deltas.sources))
                        self.columns.append(Column(relabelled, deltas))
                        self.layer_labels.append(intervention.layer_label(n_layers))
        self.sets, self.bank = sets, bank
        # Registered, so that Lightning moves them to the device.
        self.sources = nn.ModuleList(s for by_layer in bank.values() for s in by_layer.values())
        self.subsets = list(data.hparams.subsets)
        n_groups = len(self.columns) * len(self.subsets)
        self.tool_metrics = ToolMetrics(n_groups)
        self.scores = nn.ModuleDict({name: GroupedMean(n_groups) for name in SCORES})
        self.reconstruction = GroupedReconstruction(n_groups, self.model.config.hidden_size)

    def on_test_start(self) -> None:
        # The bridge must find the weights on the device where Lightning has put them.
        self.engine = InterventionEngine(
            boot_bridge(self.model, self.tokenizer),
            self.tokenizer,
            self.bank,
            self.sets[0].site,
            self.hparams.rows_per_pass,
        )
        self.engine.check([column.intervention for column in self.columns])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        indices = batch["rows"].tolist()
        examples = [self.trainer.datamodule.examples[i] for i in indices]
        rows = [(c, i) for c in range(len(self.columns)) for i in range(len(indices))]
        row_examples = [examples[i] for _, i in rows]
        interventions = [self.columns[c].intervention for c, _ in rows]
        scores = self.engine.teacher_forced(row_examples, interventions)
        texts = [None] * len(rows)
        if self.hparams.generate:
            prompts = [e.prompt for e in row_examples]
            texts = self.engine.generate(prompts, interventions, self.hparams.max_new_tokens)
        by_group = defaultdict(list)
        for (c, i), example, score, text in zip(rows, row_examples, scores, texts, strict=True):
            record = Answer(indices[i], text, score.nll, score.n_tokens).record(example)
            record |= {"kl": score.kl, "call_logprob": score.call_logprob}
            self.records.append({"column": c, **record})
            by_group[c, example.subset].append((record, score))
        for (c, subset), pairs in by_group.items():
            group = c * len(self.subsets) + self.subsets.index(subset)
            self.tool_metrics.update(group, [record for record, _ in pairs])
            self._update_scores(group, self.columns[c].deltas, [score for _, score in pairs])
        if self.hparams.reconstruction:
            self._update_reconstruction(examples)

    def _update_scores(
        self, group: int, deltas: DeltaSet | None, scores: list[TeacherForced]
    ) -> None:
        def add(name: str, pairs: list[tuple[float, float]]) -> None:
            values = torch.tensor(pairs, dtype=torch.float64, device=self.device)
            groups = torch.full((len(pairs),), group, dtype=torch.long, device=self.device)
            self.scores[name].update(groups, values[:, 0], values[:, 1])

        add("mean_kl", [(s.kl, s.n_tokens) for s in scores])
        add("call_logprob", [(s.call_logprob, 1) for s in scores])
        for kind in ("base", "delta") if deltas else ():
            source = f"{kind}@{deltas.label}"
            used = [s for s in scores if source in s.activation_sums]
            if used:
                sums = [(s.activation_sums[source], s.n_replaced) for s in used]
                add(f"mean_abs_{kind}_acts", sums)
                add(f"l0_{kind}", [(s.active_sums[source], s.n_replaced) for s in used])

    @torch.inference_mode()
    def _update_reconstruction(self, examples: list) -> None:
        """What `no_delta` and `full` would write at single layers, against the MLP's own output."""
        for subset in dict.fromkeys(e.subset for e in examples):
            tokens = target_batch(self.tokenizer, [e for e in examples if e.subset == subset])
            layers = sorted(
                {c.intervention.layers[0] for c in self.columns if len(c.intervention.layers) == 1}
            )
            captured = capture(
                self.engine.bridge,
                tokens["input_ids"],
                tokens["attention_mask"],
                layers,
                self.engine.site,
            )
            for c, column in enumerate(self.columns):
                condition, at = column.intervention.condition, column.intervention.layers
                if len(at) != 1 or condition not in ("no_delta", "full"):
                    continue
                x_ND, y_ND = captured.activations[at[0]]
                ours_ND = column.deltas.sources["base"][at[0]](x_ND, None)[0]
                if condition == "full":
                    ours_ND = ours_ND + column.deltas.sources["delta"][at[0]](x_ND, None)[0]
                group = c * len(self.subsets) + self.subsets.index(subset)
                self.reconstruction.update(group, y_ND, ours_ND)

    def on_test_epoch_end(self) -> None:
        sums = self.tool_metrics.sums()
        scores = {name: metric.compute().reshape(-1) for name, metric in self.scores.items()}
        reconstruction = self.reconstruction.compute()
        records = gather_records(self.records)
        table = []
        for c, column in enumerate(self.columns):
            for s, subset in enumerate(self.subsets):
                group = c * len(self.subsets) + s
                row = {
                    "experiment": self.hparams.experiment,
                    "layer": self.layer_labels[c],
                    "subset": subset,
                    **column.labels,
                    **table_cells(sums, group),
                    **{name: float(values[group]) for name, values in scores.items()},
                    **{name: float(values[group]) for name, values in reconstruction.items()},
                    **self._paired_difference(records, c, subset),
                }
                if not self.hparams.generate:
                    row = {k: v for k, v in row.items() if "_rate" not in k}
                table.append(row)
                self._log_row(row)
        if self.trainer.is_global_zero:
            self._write(table, records)
        self.trainer.strategy.barrier()

    def _paired_difference(self, records: list[dict], c: int, subset: str) -> dict[str, float]:
        """ΔCE against raw with a paired bootstrap over examples."""
        sides = []
        for column in (c, 0):
            chosen = [r for r in records if r["column"] == column and r["subset"] == subset]
            chosen.sort(key=lambda r: r["example"])
            sides += [[r["nll"] for r in chosen], [r["n_tokens"] for r in chosen]]
        dce, low, high = paired_bootstrap_ratio(*sides)
        return {"dce": dce, "dce_ci_low": low, "dce_ci_high": high}

    def _log_row(self, row: dict[str, Any]) -> None:
        for name in (
            "mean_ce",
            "dce",
            "mean_kl",
            "tool_call_rate",
            "math_correct_rate",
            "exact_copy_rate",
            "fvu",
        ):
            value = row.get(name)
            if value is not None and value == value:
                parts = ["test", row["subset"], row["condition"]]
                parts += [f"layer_{row['layer']}"] if row["layer"] else []
                if len(self.sets) > 1 and row["d_new"]:
                    parts.append(f"d{row['d_new']}_p{row['percentile']:g}")
                self.log("/".join([*parts, name]), value, rank_zero_only=True)

    def _write(self, table: list[dict], records: list[dict]) -> None:
        write_metrics(self.hparams.output, table)
        plots = Path(self.hparams.output) / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        for name, figure in experiment_figures(table).items():
            figure.savefig(plots / f"{name}.png", dpi=120)
            if self.logger is not None:
                self.logger.experiment.add_figure(f"test/{name}", figure)
        if self.hparams.generate:
            records.sort(key=lambda r: (r["column"], r["example"]))
            lines = []
            for record in records:
                c = record.pop("column")
                lines.append({"layer": self.layer_labels[c], **self.columns[c].labels, **record})
            write_generations(self.hparams.output, lines)
