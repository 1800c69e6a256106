"""How few features of a delta carry the finetune, and whether they still are the finetune."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.activations.capture import capture
from delta_transcoders.dictionaries.delta import ON_DICTIONARIES
from delta_transcoders.files import write_json
from delta_transcoders.interventions.attribution import at_random, largest, minus_kl_from
from delta_transcoders.interventions.engine import TeacherForced
from delta_transcoders.interventions.intervention import RAW
from delta_transcoders.interventions.loading import DictionarySet
from delta_transcoders.interventions.sources import Source
from delta_transcoders.language_models import check_model_source, load_model, target_batch
from delta_transcoders.metrics.fidelity import Fidelity
from delta_transcoders.metrics.pooling import Record
from delta_transcoders.metrics.sufficiency import sufficiency_cells
from delta_transcoders.report.feature_curve import n90_rows, write_curve
from delta_transcoders.report.figures import feature_curve
from lightning_modules.attribution import in_half, mean_attributions
from lightning_modules.curve_places import BY_N_FEATURES, Place
from lightning_modules.curve_students import (
    CurveColumn,
    Features,
    Student,
    features_of,
    refits_of,
    student_with,
)
from lightning_modules.interventions import Column, InterventionModule
from lightning_modules.sufficiency import check_half, check_measures


class FeatureCurve(InterventionModule):
    """Correct answers and fidelity against the number of features, and the N90 of each delta.

    Features of all layers compete. From all of them on, the largest N of the grid are kept by their
    attribution (`interventions.attribution`; the measure is −KL(finetuned ‖ student), the mean over subsets
    counts), attributed anew, cut to the next N, and so on. They are chosen on the wordings of half A
    (`wordings.half_of`) and scored on those of half B, beside as many features drawn at random. A delta's
    bias has no feature and always stays: N = 0 shows what it does. Where `refits` are given nothing is
    chosen: they are one curve, N's features are all those of the delta trained with N, and random ones are
    drawn from the largest delta's.

    N90 is the smallest N, of the grid or all features, with at least `enough` of the finetuned model's
    correct answers in each subset of `correct`, and each subset of `side` intact: the lower end of the
    interval of the change of its rate is not below −`margin`.

    Writes to `output`, beside what an experiment writes (mean_kl is KL(finetuned ‖ condition)): `curve.csv`,
    a row for every delta, N, set of features and subset; `fidelity.csv`, for every delta, N and layer, on
    half B: how like the change of the MLP on the finetuned model's own inputs the delta is
    (`metrics.fidelity`); `n90.csv`; and `features.json`, those that were chosen.

    Args:
        model: folder or hub id of the finetuned model.
        base_model: folder or hub id of the un-finetuned model.
        deltas: folders or hub ids of trained deltas, a curve each.
        refits: in place of `deltas`, the folder of an `EndToEndDelta` with `n{N}` for each N of the grid.
        student: what the features are added to: `transplant`, the base model; `base_mlp`, the base model's
            MLPs in the finetuned model; `dictionary`, the base dictionaries there.
        output: folder of the results.
        grid: numbers of features.
        correct: by subset that the finetune is about, the measure of a correct answer.
        side: by subset that should stay as it is, the measure that says so.
        enough: share of the finetuned model's correct answers.
        margin: see above.
        n_random: sets of features drawn for each N.
        steps: of the attributions' path.
        base_transcoders: folder or hub id of the base dictionaries, for the student `dictionary`.
        experiment, max_new_tokens, rows_per_pass, dtype: see `InterventionEvaluation`.

    Raises:
        ValueError: a grid with more features than a delta has, or numbers without a refit; a delta that the
            student does not go with.
        FileNotFoundError: no refits in the folder.
    """

    def __init__(
        self,
        experiment: str,
        model: str,
        base_model: str,
        student: Student,
        output: str,
        grid: list[PositiveInt],
        correct: dict[str, str],
        side: dict[str, str],
        deltas: list[str] = (),
        refits: str | None = None,
        enough: NonNegativeFloat = 0.9,
        margin: NonNegativeFloat = 0.05,
        n_random: PositiveInt = 20,
        steps: PositiveInt = 8,
        base_transcoders: str | None = None,
        max_new_tokens: PositiveInt = 64,
        rows_per_pass: PositiveInt = 256,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (model, base_model):
            check_model_source(source)
        for name, value in (("grid", grid), ("correct", correct)):
            if not value:
                raise ValueError(f"{name} is empty, expected at least one")
        if bool(deltas) == (refits is not None):
            raise ValueError(
                f"deltas are {list(deltas)} and refits {refits!r}: give deltas whose features are to be "
                "chosen, or the folder of an end-to-end run with one for each number of features"
            )
        if len(set(grid)) < len(grid):
            raise ValueError(f"grid names a number twice: {grid}")
        if (student == "dictionary") != (base_transcoders is not None):
            raise ValueError(
                f"student is {student!r} and base_transcoders {base_transcoders!r}: the student 'dictionary' "
                "needs them, the others use none"
            )
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h = self.hparams
        self.trainer.datamodule.warn_of_impossible_answers(h.max_new_tokens)
        check_measures(self.trainer.datamodule, h.correct, h.side)
        for half, does in (("A", "choose features on"), ("B", "score them on")):
            check_half(self.trainer.datamodule, half, does, h.correct)
        self.curves = self._curves()
        self.base = load_model(h.base_model, h.dtype) if h.student == "transplant" else None

    def _curves(self) -> dict[str, dict[int, DictionarySet]]:
        """By label, each curve's deltas by number of features: refits, or the one that is chosen from."""
        if self.hparams.refits is not None:
            refits = {s.d_new: s for s in self.sets}
            return {refits[max(refits)].label: refits}
        curves, most = {}, max(self.hparams.grid)
        for dictionaries in self.sets:
            total = sum(map(len, features_of(dictionaries).values()))
            if most > total:
                raise ValueError(
                    f"grid asks for {most} features, the delta {dictionaries.label} has {total} in all layers"
                )
            curves[dictionaries.label] = {total: dictionaries}
        return curves

    def load_sets(self) -> list[DictionarySet]:
        h = self.hparams
        folders = h.deltas if h.refits is None else refits_of(h.refits, h.grid)
        if h.student != "dictionary":
            return self.load_transplants(folders, h.model, h.base_model)
        sets = self.load_deltas(folders)
        for folder, dictionaries in zip(folders, sets, strict=True):
            if dictionaries.target not in ON_DICTIONARIES:
                raise ValueError(
                    f"{folder} has the target {dictionaries.target!r}, which no dictionary has a part in: "
                    "its students are 'transplant' and 'base_mlp'"
                )
        return sets

    def more_sources(self) -> Mapping[str, Mapping[int, Source]]:
        return {"base_mlp": self.mlps("base_model", self.sets[0].site).sources}

    def columns_of(self, dictionaries: DictionarySet) -> list[Column]:
        return []  # not known before features have been chosen

    def on_test_start(self) -> None:
        super().on_test_start()
        self.finetuned = self.engine
        if self.base is not None:
            self.engine = self.engine_of(self.base)
        self.chosen = {label: self._choose(deltas) for label, deltas in self.curves.items()}
        for label, deltas in self.curves.items():
            self.columns += self._columns(label, deltas[max(deltas)])
        self.label_columns()
        self.engine.check([column.intervention for column in self.columns])
        # Label of the curve, number of features and layer: what fidelity is measured for.
        self.groups = [
            (label, n, layer)
            for label, by_n in self.chosen.items()
            for n in sorted(by_n)
            for layer in by_n[n][1]
        ]
        self.fidelity = Fidelity(len(self.groups)).to(self.device)

    def _choose(
        self, deltas: Mapping[int, DictionarySet]
    ) -> dict[int, tuple[DictionarySet, Features]]:
        """The delta and its features of each number, 0 and the largest too."""
        chosen = {
            n: (dictionaries, features_of(dictionaries)) for n, dictionaries in deltas.items()
        }
        total = max(deltas)
        dictionaries, kept = chosen[total]
        for n in sorted({*self.hparams.grid} - deltas.keys(), reverse=True):
            means = mean_attributions(
                self.trainer,
                self.engine,
                in_half(self.task, self.trainer.datamodule.rows, "A"),
                self.subsets,
                student_with(dictionaries, self.hparams.student, "attributed", kept),
                f"delta@{dictionaries.label}",
                lambda tokens: minus_kl_from(self.finetuned.logprobs(tokens)),
                self.hparams.steps,
            )
            scores = {}
            for layer, means_SF in means.items():
                scores_F = means_SF.nanmean(0)
                gone = [f for f in range(len(scores_F)) if f not in kept[layer]]
                scores_F[gone] = -torch.inf
                scores[layer] = scores_F
            kept = largest(scores, n)
            chosen[n] = dictionaries, kept
        return chosen | {0: (dictionaries, dict.fromkeys(kept, ()))}

    def _columns(self, curve: str, whole: DictionarySet) -> list[Column]:
        """Those of a curve.

        Args:
            whole: the delta with the most features, of which some are drawn at random.
        """
        sizes = {layer: len(f) for layer, f in features_of(whole).items()}
        columns: list[Column] = []

        def add(
            name: str, dictionaries: DictionarySet, features: Features, n: int, draw: int | None
        ) -> None:
            intervention = student_with(dictionaries, self.hparams.student, name, features)
            label = intervention.layer_label(self.family.n_layers)
            columns.append(CurveColumn(label, intervention, dictionaries, curve, n, draw))

        for n, (dictionaries, features) in sorted(self.chosen[curve].items()):
            add(f"n{n}", dictionaries, features, n, None)
            for draw in range(self.hparams.n_random if 0 < n < max(self.curves[curve]) else 0):
                drawn = at_random(sizes, n, f"{n} {draw}")
                add(f"n{n}_random_{draw:02d}", whole, drawn, n, draw)
        return columns

    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        if batch := in_half(self.task, batch, "B"):
            super().test_step(batch, batch_idx)
            self._measure_fidelity(batch)

    def teacher_forced(
        self, batch: list[PromptRow], pairs: list[tuple[int, int]]
    ) -> list[TeacherForced]:
        """The first column is the finetuned model, whose distribution KL is measured from."""
        tokens = [row.tokens for row in batch]
        raw = self.finetuned.teacher_forced(tokens, [RAW] * len(batch))
        others = pairs[len(batch) :]
        return raw + self.engine.teacher_forced(
            [batch[i].tokens for _, i in others],
            [self.columns[c].intervention for c, _ in others],
            self.finetuned.logprobs(tokens),
        )

    def answers(self, batch: list[PromptRow], pairs: list[tuple[int, int]]) -> list[str]:
        parts = ((self.finetuned, pairs[: len(batch)]), (self.engine, pairs[len(batch) :]))
        return [
            text
            for engine, part in parts
            for text in engine.generate(
                [batch[i].tokens.prompt_ids for _, i in part],
                [self.columns[c].intervention for c, _ in part],
                self.hparams.max_new_tokens,
                self.reader,
            )
        ]

    @torch.inference_mode()
    def _measure_fidelity(self, batch: list[PromptRow]) -> None:
        tokens = target_batch([row.tokens for row in batch], self.tokenizer.pad_token_id)
        layers = sorted({layer for _, _, layer in self.groups})
        captured = capture(
            self.finetuned.bridge,
            tokens["input_ids"],
            tokens["attention_mask"],
            layers,
            self.finetuned.site,
            self.finetuned.tokens.leading,
        )
        for group, (label, n, layer) in enumerate(self.groups):
            x_ND, y_ND = captured.activations[layer]
            change_ND = y_ND - self.bank["base_mlp"][layer](x_ND, None)[0]
            dictionaries, features = self.chosen[label][n]
            source = self.bank[f"delta@{dictionaries.label}"][layer]
            mask_F = torch.zeros(source.n_features, dtype=torch.bool, device=x_ND.device)
            mask_F[list(features[layer])] = True
            delta_ND, _ = source(x_ND, mask_F.expand(len(x_ND), -1))
            self.fidelity.update(group, delta_ND, change_ND)

    def on_test_epoch_end(self) -> None:
        measured = self.fidelity.compute()  # on every rank: the sums are gathered
        self._fidelity = [
            {"delta": label, "n": n, "layer": layer}
            | {name: float(values[group]) for name, values in measured.items()}
            for group, (label, n, layer) in enumerate(self.groups)
        ]
        super().on_test_epoch_end()

    def is_logged(self, column: int) -> bool:
        return getattr(self.columns[column], "draw", None) is None

    def places(self, column: int, subset: str) -> list[Place]:
        """Against the number of features, a run per delta; what has none of them at every number."""
        of_column = self.columns[column]
        run, steps = of_column.intervention.condition, {c.n for c in self._curve_columns()}
        if isinstance(of_column, CurveColumn):
            run, steps = of_column.curve, {of_column.n} if of_column.draw is None else set()
        group = f"{self.hparams.experiment}_{subset}_{BY_N_FEATURES}"
        return [Place(run, group, "", tuple(sorted(steps)))]

    def _curve_columns(self) -> list[CurveColumn]:
        return [column for column in self.columns if isinstance(column, CurveColumn)]

    def write(self, folder: Path, table: list[dict], records: list[Record]) -> None:
        super().write(folder, table, records)
        h, by_group = self.hparams, self.by_group(records)
        places = itertools.product(range(len(self.columns)), self.subsets)
        cells = dict(zip(places, table, strict=True))
        rows = []
        for c, column in enumerate(self.columns):
            for subset in self.subsets if isinstance(column, CurveColumn) else ():
                ours, theirs = by_group[c, subset], by_group[0, subset]
                wordings = [record["wording"] for record in theirs]
                where = {"delta": column.curve, "student": h.student}
                where |= {"n": column.n, "draw": column.draw}
                measures = h.correct.get(subset), h.side.get(subset)
                sufficiency = sufficiency_cells(ours, theirs, wordings, *measures, h.margin)
                rows.append(where | cells[c, subset] | sufficiency)
        write_curve(folder, rows, self._fidelity, n90_rows(rows, self._fidelity, h.enough))
        if h.refits is None:
            chosen = {
                label: {n: features for n, (_, features) in by_n.items()}
                for label, by_n in self.chosen.items()
            }
            write_json(folder / "features.json", chosen)
        self.write_figures(folder, {"feature_curve": feature_curve(rows, self._fidelity)})
