"""One model under interventions on its MLPs, crossed with evaluation prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.interventions.engine import InterventionEngine, TeacherForced
from delta_transcoders.interventions.intervention import RAW, Intervention
from delta_transcoders.interventions.loading import (
    DictionarySet,
    ModelMLPs,
    load_delta_sets,
    load_mlps,
    load_transplants,
)
from delta_transcoders.interventions.sources import Source
from delta_transcoders.language_models import (
    check_same_architecture,
    load_model,
    load_tokenizer,
)
from delta_transcoders.metrics.pooling import Record, intervention_cells
from delta_transcoders.weights import StoredWeights
from lightning_modules.evaluation import Evaluation
from lightning_modules.loggers import tensorboards

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel


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


class InterventionModule(Evaluation):
    """What experiments and rankings share: dictionaries, engine, records.

    A subclass says which dictionaries there are (`load_sets`) and what is done with them (`columns_of`). Its
    options are `experiment`, `model`, `base_transcoders`, `base_model`, `output`, `dtype` and, where it uses
    them, `generate`, `max_new_tokens` and `rows_per_pass`, see `InterventionEvaluation`.

    Attributes:
        whole_models: columns without dictionaries, which come first.
        columns: the interventions in the order of the table.
        bank: all sources, by name and layer.
    """

    prompt_only = False
    whole_models: ClassVar[tuple[Intervention, ...]] = (RAW,)

    def __init__(self) -> None:
        super().__init__()
        self._loaded_mlps: dict[tuple[str, HookSite], ModelMLPs] = {}

    def load_sets(self) -> list[DictionarySet]:
        """The dictionaries, all of one hook site."""
        raise NotImplementedError

    def columns_of(self, dictionaries: DictionarySet) -> list[Column]:
        """The interventions with one set, raw apart."""
        raise NotImplementedError

    def layers(self) -> list[int] | None:
        """The layers that any column may replace: what is loaded for others would be of no use. None: all."""
        return None

    def more_sources(self) -> Mapping[str, Mapping[int, Source]]:
        """Sources that are of no set."""
        return {}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h, data = self.hparams, self.trainer.datamodule
        self.tokenizer = load_tokenizer(h.model, data.hparams.model)
        self.model = load_model(h.model, h.dtype)
        self.family = family_of(self.model.config)
        data.check_context(self.family.context, h.get("max_new_tokens", 0))
        if h.get("generate"):
            data.warn_of_impossible_answers(h.max_new_tokens)
        self.sets = self.load_sets()
        if len({s.site for s in self.sets}) > 1:
            raise ValueError("deltas of different hook sites cannot share an experiment")
        self.columns = [Column("", whole, None) for whole in self.whole_models]
        for dictionaries in self.sets:
            self.columns += self.columns_of(dictionaries)
        self.label_columns()
        self.bank = {
            f"{name}@{dictionaries.label}": by_layer
            for dictionaries in self.sets
            for name, by_layer in dictionaries.sources.items()
        }
        self.bank |= self.more_sources()
        used = {name for column in self.columns for name in column.intervention.sources}
        for name, of in (("base_mlp", "base_model"), ("finetuned_mlp", "finetuned_model")):
            if name in used:
                self.bank[name] = self.mlps(of, self.sets[0].site).sources
        # Registered, so that Lightning moves them to the device.
        self.sources = nn.ModuleList(
            s for by_layer in self.bank.values() for s in by_layer.values()
        )

    def label_columns(self) -> None:
        """Fill `labels`; refuses columns that a table could not tell apart."""
        experiment = self.hparams.experiment
        self.labels = [{"experiment": experiment, **column.labels} for column in self.columns]
        keys = [tuple(labels.values()) for labels in self.labels]
        for key, labels in zip(keys, self.labels, strict=True):
            if keys.count(key) > 1:
                raise ValueError(
                    f"layer {labels['layer']!r}, condition {labels['condition']!r} is asked for twice"
                )

    def load_deltas(self, folders: Collection[str]) -> list[DictionarySet]:
        """Trained deltas and what they correct."""
        h = self.hparams
        base_mlps = (lambda site: self.mlps("base_model", site)) if h.base_model else None
        return load_delta_sets(folders, h.base_transcoders, self.model, base_mlps, self.layers())

    def load_transplants(
        self, folders: Sequence[str], finetuned: str, base: str
    ) -> list[DictionarySet]:
        """Trained deltas that stand beside the base model's MLPs, without anything of their own model."""
        check_same_architecture(base, finetuned)
        load_tokenizer(base, finetuned)  # refuses two that differ
        fingerprints = [
            StoredWeights(m, self.hparams.dtype).fingerprint() for m in (finetuned, base)
        ]
        return load_transplants(folders, *fingerprints, self.layers())

    def mlps(self, of: str, site: HookSite) -> ModelMLPs:
        """The MLPs of `base_model` or `finetuned_model` at a site, loaded once."""
        if (of, site) not in self._loaded_mlps:
            if self.hparams[of] is None:
                raise ValueError(
                    f"{of.removesuffix('_model')} MLPs are needed: give model.{of}, a folder or hub id; it "
                    "is null"
                )
            load_tokenizer(self.hparams.model, self.hparams[of])  # refuses another than the model's
            mlps = load_mlps(self.hparams[of], self.hparams.dtype, site, self.layers())
            self._loaded_mlps[of, site] = mlps
        return self._loaded_mlps[of, site]

    def on_test_start(self) -> None:
        self.engine = self.engine_of(self.model)
        self.engine.check([column.intervention for column in self.columns])

    def engine_of(self, model: PreTrainedModel) -> InterventionEngine:
        """To be called after Lightning has put the weights on their device, where the bridge finds them."""
        with torch.inference_mode(False):  # what it copies may be differentiated through
            bridge = boot_bridge(model, self.tokenizer)
        return InterventionEngine(
            bridge,
            self.tokenizer,
            self.bank,
            self.sets[0].site,
            self.hparams.get("rows_per_pass", 1),
            self.prompt_only,
        )

    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        pairs = [(c, i) for c in range(len(self.columns)) for i in range(len(batch))]
        scores = self.teacher_forced(batch, pairs)
        texts = self.answers(batch, pairs)
        self.measure_more(batch)
        rows = zip(pairs, texts, scores, strict=True)
        self.records.update(
            [self._scored(c, batch[i], text, score) for (c, i), text, score in rows]
        )

    def teacher_forced(
        self, batch: list[PromptRow], pairs: list[tuple[int, int]]
    ) -> list[TeacherForced]:
        """Scores of pairs of a column and a row of the batch."""
        return self.engine.teacher_forced(
            [batch[i].tokens for _, i in pairs], [self.columns[c].intervention for c, _ in pairs]
        )

    def answers(
        self, batch: list[PromptRow], pairs: list[tuple[int, int]]
    ) -> list[str] | list[None]:
        """Generated texts of pairs of a column and a row of the batch; None where none are to be made."""
        if not self.hparams.generate:
            return [None] * len(pairs)
        return self.engine.generate(
            [batch[i].tokens.prompt_ids for _, i in pairs],
            [self.columns[c].intervention for c, _ in pairs],
            self.hparams.max_new_tokens,
            self.reader,
        )

    def measure_more(self, batch: list[PromptRow]) -> None:
        """What a subclass measures beside the records."""

    def _scored(
        self, column: int, row: PromptRow, text: str | None, score: TeacherForced
    ) -> Record:
        dictionaries = self.columns[column].dictionaries
        active = {}
        for kind in ("base", "delta") if dictionaries else ():
            source = f"{kind}@{dictionaries.label}"
            if source in score.activation_sums:
                active[kind] = (score.activation_sums[source], score.active_sums[source])
        scores: dict[str, Any] = {"kl": score.kl}
        if self.opening:
            scores[self.opening] = score.opening_logprob
        scores |= {"active": active, "n_replaced": score.n_replaced}
        return self.record(column, row, text, score.nll, **scores)

    def cells(
        self, column: int, subset: str, records: list[Record], raw: list[Record]
    ) -> dict[str, Any]:
        cells = super().cells(column, subset, records, raw)
        return cells | intervention_cells(records, raw, self.opening)

    def tags(self, column: int) -> list[str]:
        label, dictionaries = self.columns[column].layer, self.columns[column].dictionaries
        tags = [*super().tags(column), *([f"layer_{label}"] if label else [])]
        return [*tags, dictionaries.label] if dictionaries and len(self.sets) > 1 else tags

    def write_figures(self, folder: Path, figures: dict[str, Figure]) -> None:
        plots = folder / "plots"
        plots.mkdir()
        for name, figure in figures.items():
            figure.savefig(plots / f"{name}.png", dpi=120)
            for tensorboard in tensorboards(self.trainer):
                tensorboard.add_figure(f"figures/{name}", figure)
