"""Experiments: what happens to the model's behaviour when MLPs are swapped for dictionaries."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.families import family_of
from delta_transcoders.interventions.engine import InterventionEngine, TeacherForced
from delta_transcoders.interventions.intervention import (
    RAW,
    Intervention,
    from_spec,
    layer_groups,
)
from delta_transcoders.interventions.loading import (
    DictionarySet,
    ModelMLPs,
    load_base_set,
    load_control,
    load_delta_sets,
    load_mlps,
    relabel,
)
from delta_transcoders.language_models import (
    check_context,
    check_model_source,
    load_model,
    load_tokenizer,
    target_batch,
)
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.metrics.intervals import bootstrap_sums, paired_bootstrap_ratio
from delta_transcoders.metrics.reconstruction import GroupedReconstruction
from delta_transcoders.metrics.tool_metrics import Answer, ToolMetrics, table_cells
from delta_transcoders.report.figures import experiment_figures
from delta_transcoders.report.tables import write_generations, write_metrics
from delta_transcoders.tasks.examples import Example
from lightning_modules.gathering import gather_records
from lightning_modules.loggers import tensorboards
from lightning_modules.outputs import check_measured, stage_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = (
    "mean_kl",
    "call_logprob",
    "mean_abs_base_acts",
    "mean_abs_delta_acts",
    "l0_base",
    "l0_delta",
)
RECONSTRUCTION = ("mean_cos", "mean_l2", "fvu")


@dataclass(frozen=True)
class Column:
    """One intervention of the experiment and the dictionaries it uses (none for raw)."""

    layer: str
    intervention: Intervention
    dictionaries: DictionarySet | None

    @property
    def labels(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "condition": self.intervention.condition,
            "alpha": self.intervention.alpha,
            "d_new": self.dictionaries.d_new if self.dictionaries else None,
            "percentile": self.dictionaries.percentile if self.dictionaries else None,
            "target": self.dictionaries.target if self.dictionaries else None,
        }


class InterventionEvaluation(LightningModule):
    """A list of interventions crossed with the prompts of `EvaluationPrompts`; raw is run once.

    Writes `metrics.csv`, `metrics.json` and, where text is generated, `generations.jsonl` to `output`.

    Args:
        experiment: name in the result table.
        model: folder or hub id of the model to intervene on, adapters merged: the finetuned one, or
            (without deltas) the base model.
        base_transcoders: folder or hub id of the base dictionaries.
        output: folder of the results.
        layers: each a number, several joined by `+`, or `all`.
        conditions: names or mappings, see `interventions.intervention.from_spec`; raw is always there.
        generate: also generate text; without it there are cross-entropies only.
        reconstruction: also measure how well single layers' outputs are reconstructed.
        max_new_tokens: longest answer.
        rows_per_pass: rows of one forward pass.
        deltas: folders or hub ids of trained deltas, one per configuration of d_new, percentile and target.
        percentile: which base dictionaries, where there are no deltas to say it.
        base_model: folder or hub id of the un-finetuned model, for the source `base_mlp`.
        finetuned_model: folder or hub id of the finetuned model, for the source `finetuned_mlp`.
        controls: more sources for conditions to name, each with its folder: deltas of any model (or
            their hub id), or corrections without features.
        prompt_only: replace nothing in decoding steps, as the original study did by mistake.
        bare_text: cross-entropy without BOS and newline, likewise.
        dtype: of the models' weights.
    """

    def __init__(
        self,
        experiment: str,
        model: str,
        base_transcoders: str,
        output: str,
        layers: list[int | str],
        conditions: list[str | dict],
        deltas: list[str] = (),
        percentile: float | None = None,
        base_model: str | None = None,
        finetuned_model: str | None = None,
        controls: dict[str, str] = {},  # noqa: B006
        generate: bool = True,
        reconstruction: bool = False,
        max_new_tokens: int = 64,
        rows_per_pass: int = 256,
        prompt_only: bool = False,
        bare_text: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (model, base_model, finetuned_model):
            if source is not None:
                check_model_source(source)
        for name, value in (("max_new_tokens", max_new_tokens), ("rows_per_pass", rows_per_pass)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if bool(deltas) == (percentile is not None):
            raise ValueError(
                "give either deltas, folders of trained deltas, or a percentile, for base "
                f"dictionaries alone; got {list(deltas)} and {percentile}"
            )
        self.save_hyperparameters()
        self._loaded_mlps: dict[str, ModelMLPs] = {}

    def setup(self, stage: str) -> None:
        h, data = self.hparams, self.trainer.datamodule
        self.tokenizer = load_tokenizer(h.model)
        self.model = load_model(h.model, h.dtype)
        self.family = family_of(self.model.config)
        check_context(self.tokenizer, data.examples, self.family.context, h.max_new_tokens)
        if h.generate:
            data.warn_of_impossible_answers(self.tokenizer, h.max_new_tokens)
        if h.deltas:
            base_mlps = (lambda: self._mlps("base_model")) if h.base_model else None
            self.sets = load_delta_sets(
                h.deltas, h.base_transcoders, self.model, base_mlps, self._layers()
            )
        else:
            self.sets = [
                load_base_set(h.base_transcoders, self._layers(), h.percentile, self.family)
            ]
        if len({s.site for s in self.sets}) > 1:
            raise ValueError("deltas of different hook sites cannot share an experiment")
        self.columns = [Column("", RAW, None)]
        for dictionaries in self.sets:
            self.columns += self._columns(dictionaries)
        keys = [tuple(column.labels.values()) for column in self.columns]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"layer {key[0]!r}, condition {key[1]!r} is asked for twice")
        self.bank = {
            f"{name}@{dictionaries.label}": by_layer
            for dictionaries in self.sets
            for name, by_layer in dictionaries.sources.items()
        }
        for name, folder in h.controls.items():
            if name in (*self.sets[0].sources, "base_mlp", "finetuned_mlp"):
                raise ValueError(f"controls: {name!r} is the name of another source")
            control = load_control(folder, self.sets[0].site, self.family.d_model)
            self.bank[name] = control
        used = {name for column in self.columns for name in column.intervention.sources}
        if "base_mlp" in used or self._splits_error:
            self.bank["base_mlp"] = self._mlps("base_model").sources
        if "finetuned_mlp" in used:
            self.bank["finetuned_mlp"] = self._mlps("finetuned_model").sources
        # Registered, so that Lightning moves them to the device.
        self.sources = nn.ModuleList(
            s for by_layer in self.bank.values() for s in by_layer.values()
        )
        self.subsets = list(data.hparams.subsets)
        n_groups = len(self.columns) * len(self.subsets)
        self.tool_metrics = ToolMetrics(n_groups)
        self.scores = nn.ModuleDict({name: GroupedMean(n_groups) for name in SCORES})
        self.reconstruction = GroupedReconstruction(n_groups, self.family.d_model)
        self.records: list[dict] = []
        self.split_records: list[dict] = []

    def _mlps(self, of: str) -> ModelMLPs:
        """The MLPs of `base_model` or `finetuned_model`, loaded once."""
        if of not in self._loaded_mlps:
            if self.hparams[of] is None:
                raise ValueError(f"these conditions need {of}, a folder or hub id")
            load_tokenizer(self.hparams.model, self.hparams[of])  # refuses another than the model's
            self._loaded_mlps[of] = load_mlps(self.hparams[of], self.hparams.dtype, self._layers())
        return self._loaded_mlps[of]

    def _layer_specs(self) -> list[int | str]:
        """All options that name layers."""
        return self.hparams.layers

    def _layers(self) -> list[int]:
        """The layers that any column may replace: what is loaded for others would be of no use."""
        n_layers = self.family.n_layers
        groups = layer_groups(self._layer_specs(), n_layers, range(n_layers))
        return sorted(set().union(*groups))

    @property
    def _splits_error(self) -> bool:
        """Whether what a delta repairs can be told apart: see `_split`."""
        h = self.hparams
        mlps_fit = self.sets[0].site in self.family.mlps
        return bool(h.reconstruction and h.base_model and h.deltas and mlps_fit)

    def _columns(self, dictionaries: DictionarySet) -> list[Column]:
        """Every group of layers with every condition, raw apart."""
        n_layers = self.family.n_layers
        for name in ("layers", "conditions"):
            if not self.hparams[name]:
                raise ValueError(f"{name} is empty, expected at least one")
        columns = []
        for group in layer_groups(self.hparams.layers, n_layers, dictionaries.layers):
            for spec in self.hparams.conditions:
                intervention = from_spec(spec, group)
                if intervention.writes:
                    ours = relabel(intervention, dictionaries.label, set(dictionaries.sources))
                    columns.append(Column(intervention.layer_label(n_layers), ours, dictionaries))
        return columns

    def on_test_start(self) -> None:
        # The bridge must find the weights on the device where Lightning has put them.
        self.engine = InterventionEngine(
            boot_bridge(self.model, self.tokenizer),
            self.tokenizer,
            self.bank,
            self.sets[0].site,
            self.hparams.rows_per_pass,
            self.hparams.prompt_only,
            self.hparams.bare_text,
        )
        self.engine.check([column.intervention for column in self.columns])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        indices = batch["rows"].tolist()
        examples = [self.trainer.datamodule.examples[i] for i in indices]
        rows = [(c, i) for c in range(len(self.columns)) for i in range(len(indices))]
        scores = self._teacher_forced(examples, rows)
        texts = [None] * len(rows)
        if self.hparams.generate:
            prompts = [examples[i].prompt for _, i in rows]
            interventions = [self.columns[c].intervention for c, _ in rows]
            texts = self.engine.generate(prompts, interventions, self.hparams.max_new_tokens)
        by_group = defaultdict(list)
        for (c, i), score, text in zip(rows, scores, texts, strict=True):
            example = examples[i]
            record = Answer(indices[i], text, score.nll, score.n_tokens).record(example)
            record |= {"kl": score.kl, "call_logprob": score.call_logprob}
            self.records.append({"column": c, **record})
            by_group[c, example.subset].append((record, score))
        for (c, subset), pairs in by_group.items():
            group = c * len(self.subsets) + self.subsets.index(subset)
            self.tool_metrics.update(group, [record for record, _ in pairs])
            self._update_scores(group, self.columns[c].dictionaries, [score for _, score in pairs])
        if self.hparams.reconstruction:
            self._update_reconstruction(indices, examples)

    def _teacher_forced(
        self, examples: list[Example], rows: list[tuple[int, int]]
    ) -> list[TeacherForced]:
        """Scores of the rows, each a column and the index of an example."""
        return self.engine.teacher_forced(
            [examples[i] for _, i in rows], [self.columns[c].intervention for c, _ in rows]
        )

    def _update_scores(
        self, group: int, dictionaries: DictionarySet | None, scores: list[TeacherForced]
    ) -> None:
        def add(name: str, pairs: list[tuple[float, float]]) -> None:
            values = torch.tensor(pairs, dtype=torch.float64, device=self.device)
            groups = torch.full((len(pairs),), group, dtype=torch.long, device=self.device)
            self.scores[name].update(groups, values[:, 0], values[:, 1])

        add("mean_kl", [(s.kl, s.n_tokens) for s in scores])
        add("call_logprob", [(s.call_logprob, 1) for s in scores])
        for kind in ("base", "delta") if dictionaries else ():
            source = f"{kind}@{dictionaries.label}"
            used = [s for s in scores if source in s.activation_sums]
            if used:
                sums = [(s.activation_sums[source], s.n_replaced) for s in used]
                add(f"mean_abs_{kind}_acts", sums)
                add(f"l0_{kind}", [(s.active_sums[source], s.n_replaced) for s in used])

    def _single_layers(self) -> dict[int, int]:
        """The columns whose reconstruction is measured, each with its layer."""
        return {
            c: column.intervention.layers[0]
            for c, column in enumerate(self.columns)
            if len(column.intervention.layers) == 1
            and column.intervention.condition in ("no_delta", "full")
        }

    @torch.inference_mode()
    def _update_reconstruction(self, indices: list[int], examples: list) -> None:
        """What `no_delta` and `full` would write at single layers, against the MLP's own output."""
        at = self._single_layers()
        if not at:
            return
        for s, subset in enumerate(self.subsets):
            rows = [i for i, example in enumerate(examples) if example.subset == subset]
            if not rows:
                continue
            tokens = target_batch(self.tokenizer, [examples[i] for i in rows])
            captured = capture(
                self.engine.bridge,
                tokens["input_ids"],
                tokens["attention_mask"],
                sorted(set(at.values())),
                self.engine.site,
            )
            for c, layer in at.items():
                sources = self.columns[c].dictionaries.sources
                x_ND, y_ND = captured.activations[layer]
                ours_ND = sources["base"][layer](x_ND, None)[0]
                if self.columns[c].intervention.condition == "full":
                    delta_ND = sources["delta"][layer](x_ND, None)[0]
                    if self._splits_error:
                        base_mlp_ND = self.bank["base_mlp"][layer](x_ND, None)[0]
                        of_examples = torch.tensor([indices[i] for i in rows])[captured.rows.cpu()]
                        residual_ND, change_ND = y_ND - ours_ND, y_ND - base_mlp_ND
                        self._split(c, subset, of_examples, residual_ND, change_ND, delta_ND)
                    ours_ND = ours_ND + delta_ND
                self.reconstruction.update(c * len(self.subsets) + s, y_ND, ours_ND)

    def _split(
        self,
        column: int,
        subset: str,
        example_N: Tensor,
        residual_ND: Tensor,
        change_ND: Tensor,
        delta_ND: Tensor,
    ) -> None:
        """Per example, how much of what a delta writes lies along finetuning's change of the MLP.

        The residual is the sum of that change, y − baseMLP(x), and of the base dictionary's own error
        on the same input, baseMLP(x) − base(x); so is its inner product with what the delta writes,
        which is what the delta repairs to first order.
        """
        both_NK = torch.stack([(part * delta_ND).sum(1) for part in (change_ND, residual_ND)], 1)
        examples, index_N = example_N.unique(return_inverse=True)
        sums = torch.zeros(len(examples), 2, dtype=torch.float64)
        sums.index_add_(0, index_N, both_NK.double().cpu())
        for example, (change, residual) in zip(examples.tolist(), sums.tolist(), strict=True):
            record = {"column": column, "subset": subset, "example": example}
            self.split_records.append(record | {"change": change, "residual": residual})

    def on_test_epoch_end(self) -> None:
        sums = self.tool_metrics.sums()
        scores = {name: metric.compute().reshape(-1).cpu() for name, metric in self.scores.items()}
        if self.hparams.reconstruction and self._single_layers():
            measured = self.reconstruction.compute()
            scores |= {name: values.reshape(-1).cpu() for name, values in measured.items()}
        records = gather_records(self.records)
        records.sort(key=lambda r: (r["column"], r["example"]))
        by_group = grouped(records)
        splits = grouped(
            sorted(gather_records(self.split_records), key=lambda r: (r["column"], r["example"]))
        )
        table = []
        for c, column in enumerate(self.columns):
            for s, subset in enumerate(self.subsets):
                group = c * len(self.subsets) + s
                row = {
                    "experiment": self.hparams.experiment,
                    **column.labels,
                    "subset": subset,
                    **dict.fromkeys(RECONSTRUCTION, float("nan")),
                    **table_cells(sums, group),
                    **{name: float(values[group]) for name, values in scores.items()},
                    **_dce(by_group[c, subset], by_group[0, subset]),
                    **_finetune_share(splits[c, subset]),
                }
                if not self.hparams.generate:
                    row = {k: v for k, v in row.items() if "_rate" not in k}
                table.append(row)
                self._log_row(row, column)
        if self.trainer.is_global_zero:
            check_measured(table)
            with stage_output(self) as folder:
                self._write(folder, table, records)
        self.trainer.strategy.barrier()

    def _log_row(self, row: dict[str, Any], column: Column) -> None:
        for name in (
            "mean_ce",
            "dce",
            "mean_kl",
            "tool_call_rate",
            "math_correct_rate",
            "exact_copy_rate",
            "fvu",
            "finetune_share",
        ):
            value = row.get(name)
            if value is not None and value == value:
                parts = ["test", row["subset"], row["condition"]]
                parts += [f"layer_{row['layer']}"] if row["layer"] else []
                if column.dictionaries and len(self.sets) > 1:
                    parts.append(column.dictionaries.label)
                self.log("/".join([*parts, name]), value, rank_zero_only=True)

    def _write(self, folder: Path, table: list[dict], records: list[dict]) -> None:
        self._write_tables(folder, table, records)
        self._write_figures(folder, experiment_figures(table))

    def _write_tables(self, folder: Path, table: list[dict], records: list[dict]) -> None:
        write_metrics(folder, table)
        if self.hparams.generate:
            lines = [{**self.columns[r.pop("column")].labels, **r} for r in records]
            write_generations(folder, lines)

    def _write_figures(self, folder: Path, figures: dict[str, Figure]) -> None:
        plots = folder / "plots"
        plots.mkdir()
        for name, figure in figures.items():
            figure.savefig(plots / f"{name}.png", dpi=120)
            for tensorboard in tensorboards(self.trainer):
                tensorboard.add_figure(f"test/{name}", figure)


def grouped(records: list[dict]) -> dict[tuple[int, str], list[dict]]:
    """By column and subset."""
    groups = defaultdict(list)
    for record in records:
        groups[record["column"], record["subset"]].append(record)
    return groups


def _finetune_share(records: list[dict]) -> dict[str, float]:
    """Share of what a delta repairs that is finetuning's, with a bootstrap over examples."""
    if not records:
        return {"finetune_share": float("nan")}
    columns = [[r[key] for r in records] for key in ("change", "residual")]
    share, low, high = bootstrap_sums(columns, lambda sums: sums[0] / sums[1])
    return {"finetune_share": share, "finetune_share_ci_low": low, "finetune_share_ci_high": high}


def _dce(records: list[dict], raw: list[dict]) -> dict[str, float]:
    """ΔCE against raw with a paired bootstrap over examples; both in the examples' order."""
    sides = [[r[key] for r in side] for side in (records, raw) for key in ("nll", "n_tokens")]
    dce, low, high = paired_bootstrap_ratio(*sides)
    return {"dce": dce, "dce_ci_low": low, "dce_ci_high": high}
