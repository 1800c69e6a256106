"""Experiments: what happens to the model's behaviour when MLPs are swapped for dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.activations.capture import capture
from delta_transcoders.interventions.engine import TeacherForced
from delta_transcoders.interventions.intervention import from_spec, layer_groups
from delta_transcoders.interventions.loading import (
    DictionarySet,
    load_base_set,
    load_control,
    relabel,
)
from delta_transcoders.interventions.sources import LayerSources, Source
from delta_transcoders.language_models import check_model_source, target_batch, tokenize
from delta_transcoders.metrics.pooling import Record
from delta_transcoders.metrics.reconstruction import GroupedReconstruction
from delta_transcoders.report.figures import experiment_figures
from lightning_modules.interventions import Column, InterventionModule


class InterventionEvaluation(InterventionModule):
    """A list of interventions crossed with the prompts of `EvaluationPrompts`; raw is run once.

    Writes `metrics.csv`, `metrics.json` and, where text is generated, `generations.jsonl` to `output`.

    Args:
        experiment: name in the result table.
        model: folder or hub id of the model to intervene on, adapters merged: the finetuned one, or (without
            deltas, or with `finetuned_model` to transplant them from) the base model.
        base_transcoders: folder or hub id of the base dictionaries; None where deltas need none, those of the
            target `mlp_difference`.
        output: folder of the results.
        layers: each a number, several joined by `+`, or `all`.
        conditions: names or mappings, see `interventions.intervention.from_spec`; raw is always there.
        generate: also generate text; without it there are cross-entropies only.
        reconstruction: also measure how well single layers' outputs are reconstructed.
        max_new_tokens: longest answer.
        rows_per_pass: rows of one forward pass.
        deltas: folders or hub ids of trained deltas, one per configuration of d_new, percentile and target.
        percentile, base_files: which base dictionaries, where there are no deltas to say it: see
            `dictionaries.bases.load_base`, there `files`.
        base_model: folder or hub id of the un-finetuned model, for the source `base_mlp`.
        finetuned_model: folder or hub id of the finetuned model, for the source `finetuned_mlp`, and whose
            deltas these are where they are transplanted into the base model (condition `transplant`).
        controls: more sources for conditions to name. Each is a folder (deltas of any model, or their hub id,
            or corrections without features) or the `class_path` of a `LayerSources`.
        prompt_only: replace nothing in decoding steps, as the original study did by mistake.
        bare_text: cross-entropy without BOS and the newline at a prompt's end, likewise.
        dtype: of the models' weights.
    """

    def __init__(
        self,
        experiment: str,
        model: str,
        output: str,
        layers: list[int | str],
        conditions: list[str | dict],
        deltas: list[str] = (),
        percentile: float | None = None,
        base_transcoders: str | None = None,
        base_files: str | None = None,
        base_model: str | None = None,
        finetuned_model: str | None = None,
        controls: dict[str, str | LayerSources] = {},  # noqa: B006
        generate: bool = True,
        reconstruction: bool = False,
        max_new_tokens: PositiveInt = 64,
        rows_per_pass: PositiveInt = 256,
        prompt_only: bool = False,
        bare_text: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (model, base_model, finetuned_model):
            if source is not None:
                check_model_source(source)
        if bool(deltas) == (percentile is not None):
            raise ValueError(
                "give either deltas, folders of trained deltas, or a percentile, for base "
                f"dictionaries alone; got {list(deltas)} and {percentile}"
            )
        if not deltas and base_transcoders is None:
            raise ValueError("base dictionaries alone need base_transcoders, a folder or hub id")
        self.save_hyperparameters(ignore=["controls"])
        self.controls = controls
        self.prompt_only = prompt_only

    def setup(self, stage: str) -> None:
        super().setup(stage)
        n_groups = len(self.columns) * len(self.subsets)
        self.reconstruction = GroupedReconstruction(n_groups, self.family.d_model)

    def layers(self) -> list[int]:
        groups = layer_groups(
            self.hparams.layers, self.family.n_layers, range(self.family.n_layers)
        )
        return sorted(set().union(*groups))

    def load_sets(self) -> list[DictionarySet]:
        h = self.hparams
        if h.deltas and h.finetuned_model:
            return self.load_transplants(h.deltas, h.finetuned_model, h.model)
        if h.deltas:
            return self.load_deltas(h.deltas)
        layers = self.layers()
        return [load_base_set(h.base_transcoders, layers, h.percentile, self.family, h.base_files)]

    def columns_of(self, dictionaries: DictionarySet) -> list[Column]:
        """Every group of layers with every condition."""
        for name in ("layers", "conditions"):
            if not self.hparams[name]:
                raise ValueError(f"{name} is empty, expected at least one")
        columns = []
        for group in layer_groups(self.hparams.layers, self.family.n_layers, dictionaries.layers):
            for spec in self.hparams.conditions:
                intervention = from_spec(spec, group)
                if intervention.writes:
                    ours = relabel(intervention, dictionaries.label, set(dictionaries.sources))
                    label = intervention.layer_label(self.family.n_layers)
                    columns.append(Column(label, ours, dictionaries))
        return columns

    def more_sources(self) -> Mapping[str, Mapping[int, Source]]:
        first, width = self.sets[0], self.family.d_model
        sources = {}
        for name, control in self.controls.items():
            if name in (*first.sources, "base_mlp", "finetuned_mlp"):
                raise ValueError(f"controls: {name!r} is the name of another source")
            if isinstance(control, LayerSources):
                sources[name] = loaded = control.load(self.layers(), first.site, width)
                if not (
                    isinstance(loaded, dict)
                    and all(isinstance(source, Source) for source in loaded.values())
                ):
                    raise ValueError(
                        f"controls: {type(control).__name__}.load returns {loaded!r:.80}, expected "
                        "{layer: Source}"
                    )
            else:
                sources[name] = load_control(control, first.site, width)
        if self._splits_error:
            sources["base_mlp"] = self.mlps("base_model", first.site).sources
        return sources

    @property
    def _splits_error(self) -> bool:
        """Whether what a delta repairs can be told apart: see `_split`."""
        h = self.hparams
        mlps_fit = self.sets[0].site in self.family.mlps
        return bool(h.reconstruction and h.base_model and h.deltas and mlps_fit)

    def teacher_forced(
        self, batch: list[PromptRow], pairs: list[tuple[int, int]]
    ) -> list[TeacherForced]:
        if self.hparams.bare_text:
            examples = [row.example for row in batch]
            bare = tokenize(self.tokenizer, self.task, examples, bare=True)
            batch = [row._replace(tokens=t) for row, t in zip(batch, bare, strict=True)]
        return super().teacher_forced(batch, pairs)

    def _single_layers(self) -> dict[int, int]:
        """The columns whose reconstruction is measured, each with its layer."""
        return {
            c: column.intervention.layers[0]
            for c, column in enumerate(self.columns)
            if len(column.intervention.layers) == 1
            and column.intervention.condition in ("no_delta", "full")
        }

    @torch.inference_mode()
    def measure_more(self, batch: list[PromptRow]) -> dict[tuple[int, int], Record]:
        """What `no_delta` and `full` would write at single layers, against the MLP's own output.

        Returns:
            By column and row of the batch, what goes into the record: see `_split`.
        """
        at = self._single_layers() if self.hparams.reconstruction else {}
        repairs: dict[tuple[int, int], Record] = {}
        for s, subset in enumerate(self.subsets):
            rows = [i for i, row in enumerate(batch) if row.example.subset == subset]
            if not rows or not at:
                continue
            tokens = target_batch([batch[i].tokens for i in rows], self.tokenizer.pad_token_id)
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
                        residual_ND, change_ND = y_ND - ours_ND, y_ND - base_mlp_ND
                        split = self._split(captured.rows, residual_ND, change_ND, delta_ND)
                        repairs |= {(c, rows[i]): {"repair": sums} for i, sums in split.items()}
                    ours_ND = ours_ND + delta_ND
                self.reconstruction.update(c * len(self.subsets) + s, y_ND, ours_ND)
        return repairs

    @staticmethod
    def _split(
        row_N: Tensor, residual_ND: Tensor, change_ND: Tensor, delta_ND: Tensor
    ) -> dict[int, list[float]]:
        """By row, how much of what a delta writes lies along finetuning's change, and along the residual.

        The residual is the sum of that change of the MLP, y − baseMLP(x), and of the base dictionary's own
        error on the same input, baseMLP(x) − base(x); so is its inner product with what the delta writes,
        which is what the delta repairs to first order.
        """
        both_NK = torch.stack([(part * delta_ND).sum(1) for part in (change_ND, residual_ND)], 1)
        rows, index_N = row_N.unique(return_inverse=True)
        sums = torch.zeros(len(rows), 2, dtype=torch.float64)
        sums.index_add_(0, index_N.cpu(), both_NK.double().cpu())
        return dict(zip(rows.tolist(), sums.tolist(), strict=True))

    def on_test_epoch_end(self) -> None:
        # On every rank: the sums are gathered.
        measured = self.reconstruction.compute() if self.hparams.reconstruction else {}
        self._reconstructed = {
            name: values.reshape(-1).tolist() for name, values in measured.items()
        }
        super().on_test_epoch_end()

    def cells(
        self, column: int, subset: str, records: list[Record], raw: list[Record]
    ) -> dict[str, Any]:
        group = column * len(self.subsets) + self.subsets.index(subset)
        reconstructed = dict.fromkeys(("mean_cos", "mean_l2", "fvu"), float("nan"))
        reconstructed |= {name: values[group] for name, values in self._reconstructed.items()}
        return reconstructed | super().cells(column, subset, records, raw)

    def write(self, folder: Path, table: list[dict], records: list[Record]) -> None:
        super().write(folder, table, records)
        self.write_figures(folder, experiment_figures(table))
