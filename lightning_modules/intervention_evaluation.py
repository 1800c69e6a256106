"""Experiments: what happens to the model's behaviour when MLPs are swapped for dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.activations.capture import capture
from delta_transcoders.console import StudyWarning
from delta_transcoders.foreign_text import parse_json, text_lines
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
from delta_transcoders.report import markdown
from delta_transcoders.report.columns import whole_model
from delta_transcoders.report.figures import experiment_figures
from lightning_modules.curve_places import Place, places_of
from lightning_modules.interventions import Column, InterventionModule
from lightning_modules.loggers import log_result


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
            Without these and `base_transcoders` there are other models' MLPs and controls alone.
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
        if deltas and percentile is not None:
            raise ValueError(
                f"deltas say themselves what they correct: give no percentile with them, got {percentile:g}"
            )
        if not deltas:
            _check_without_deltas(conditions, controls, base_transcoders, percentile)
        if "transplant" in conditions and finetuned_model is None:
            raise ValueError(
                "conditions: 'transplant' adds the deltas to the base model's MLPs: give the base model as "
                "model, and as finetuned_model the one whose deltas these are"
            )
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
        if h.base_transcoders is None:
            return [DictionarySet("", self.family.site, {}, layers)]
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
        return sources

    def teacher_forced(
        self, batch: list[PromptRow], pairs: list[tuple[int, int]]
    ) -> list[TeacherForced]:
        if self.hparams.bare_text:
            examples = [row.example for row in batch]
            bare = tokenize(self.tokenizer, self.task, examples, bare=True)
            batch = [row._replace(tokens=t) for row, t in zip(batch, bare, strict=True)]
        return super().teacher_forced(batch, pairs)

    def _single_layers(self) -> dict[int, int]:
        """The columns whose reconstruction is measured, each with its layer: all of the MLP is replaced."""
        at = {}
        for c, column in enumerate(self.columns):
            for layer in column.intervention.layers if len(column.intervention.layers) == 1 else ():
                write = column.intervention.writes[layer]
                is_part = any(t.keep_features is not None or t.drop_features for t in write.terms)
                if write.keep == 0 and not is_part:
                    at[c] = layer
        return at

    @torch.inference_mode()
    def measure_more(self, batch: list[PromptRow]) -> None:
        """What would be written at single layers, against the MLP's own output."""
        at = self._single_layers() if self.hparams.reconstruction else {}
        for s, subset in enumerate(self.subsets):
            rows = [row for row in batch if row.example.subset == subset]
            if not rows or not at:
                continue
            tokens = target_batch([row.tokens for row in rows], self.tokenizer.pad_token_id)
            captured = capture(
                self.engine.bridge,
                tokens["input_ids"],
                tokens["attention_mask"],
                sorted(set(at.values())),
                self.engine.site,
            )
            written: dict[tuple[int, str], Tensor] = {}
            for c, layer in at.items():
                x_ND, y_ND = captured.activations[layer]
                terms = self.columns[c].intervention.writes[layer].terms
                for term in terms:
                    if (layer, term.source) not in written:
                        source = self.bank[term.source][layer]
                        written[layer, term.source] = source(x_ND, None)[0].float()
                ours_ND = sum(term.coefficient * written[layer, term.source] for term in terms)
                self.reconstruction.update(c * len(self.subsets) + s, y_ND, ours_ND)

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

    def places(self, column: int, subset: str) -> list[Place]:
        return places_of(self.hparams.experiment, self.columns, subset)[column]

    def show(self, table: list[dict], records: list[Record]) -> None:
        super().show(table, records)
        n_subsets = len(self.subsets)
        for c in self._whole():
            column, rows = self.columns[c], table[c * n_subsets : (c + 1) * n_subsets]
            if column.intervention.condition == "full" or column.intervention.alpha == 1:
                results = {}
                for row in reversed(rows):  # of the first subset that has it
                    results |= {f"{name}_full": row[name] for name in markdown.measured(row)}
                results |= {"l0": rows[0]["l0_delta"]}
                settings = {name: column.labels[name] for name in ("d_new", "percentile", "target")}
                settings |= {"experiment": self.hparams.experiment}
                label = column.dictionaries.label if len(self.sets) > 1 else ""
                log_result(self.trainer, settings, results, label)

    def _whole(self) -> list[int]:
        """The columns that replace most layers."""
        whole = whole_model(column.layer for column in self.columns)
        return [c for c, column in enumerate(self.columns) if whole and column.layer == whole]

    def shown_columns(self) -> dict[int, str]:
        several = len(self.sets) > 1
        names = {c: column.intervention.condition for c, column in enumerate(self.columns)}
        return {0: names[0]} | {
            c: f"{names[c]} {self.columns[c].dictionaries.label}" if several else names[c]
            for c in self._whole()
        }

    def side_by_side(self, records: Iterable[Record]) -> dict[str, dict[int, str]]:
        """Also the base model's answers, where the study's `behaviour` has the same ones of raw."""
        answers = super().side_by_side(records)
        path = Path(self.hparams.output).with_name("behaviour") / "generations.jsonl"
        theirs = _texts(path) if answers and path.is_file() else {}
        base = {}
        for i, example in enumerate(self.trainer.datamodule.examples if theirs else ()):
            key = json.dumps(example.prompt_record), example.target
            raw, text = (theirs.get((condition, *key)) for condition in ("raw", "base_model"))
            if raw == answers["raw"].get(i) and isinstance(text, str):
                base[i] = text
        return {"base_model": base} | answers if base else answers


def _check_without_deltas(
    conditions: Iterable[str | dict],
    controls: Mapping[str, object],
    base_transcoders: str | None,
    percentile: float | None,
) -> None:
    """Refuse conditions that need deltas, and base dictionaries of which not all is said."""
    given = f"got {base_transcoders} and {percentile}"
    has_bases = base_transcoders is not None and percentile is not None
    absent = {"delta", "random_delta", *([] if has_bases else ["base"])} - set(controls)
    for spec in conditions:
        intervention = from_spec(spec, [0])
        used = {term.source for write in intervention.writes.values() for term in write.terms}
        if used & absent == {"base"}:
            raise ValueError(
                f"condition {intervention.condition!r} needs base dictionaries: give model.deltas with what "
                f"they correct, or model.base_transcoders and model.percentile; {given}"
            )
        if used & absent:
            raise ValueError(
                f"condition {intervention.condition!r} needs deltas: give model.deltas, folders or hub ids; "
                "it is empty"
            )
    if (base_transcoders is None) != (percentile is None):
        raise ValueError(
            "model.deltas is empty, and model.base_transcoders and model.percentile go together: give both, "
            f"or, as no condition needs them, neither (--model.base_transcoders null); {given}"
        )


def _texts(path: Path) -> dict[tuple[str, str, str | None], str]:
    """Answers of a `generations.jsonl` by condition, prompt (as JSON) and target.

    Nothing of a file that cannot be read as one: all is measured when it is looked for, and what it would add
    is not worth failing for.
    """
    try:
        lines = [parse_json(line, f"{path}, line {n}") for n, line in text_lines(path)]
        return {(r["condition"], json.dumps(r["prompt"]), r["target"]): r["text"] for r in lines}
    except (KeyError, OSError, TypeError, ValueError) as error:
        problem = f"{path} is not one of `behaviour`'s, or damaged: {error!r:.200}"
        rank_zero_warn(f"{problem}; the base model's answers are not shown", category=StudyWarning)
        return {}
