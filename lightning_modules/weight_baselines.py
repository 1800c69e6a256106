"""Weight baselines of a delta: the base model with parts of the finetune's change of its weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.families import family_of
from delta_transcoders.fingerprints import check_hash, model_fingerprint
from delta_transcoders.generation import greedy_texts
from delta_transcoders.interventions.sources import mlp_sources
from delta_transcoders.language_models import (
    check_model_source,
    check_same_architecture,
    load_model,
    load_tokenizer,
    supervised_logits,
    target_batch,
    tokenize,
)
from delta_transcoders.metrics.fidelity import Fidelity
from delta_transcoders.metrics.pooling import Record, ratio
from delta_transcoders.metrics.sufficiency import sufficiency_cells
from delta_transcoders.report.columns import rates
from delta_transcoders.report.feature_curve import n90_rows, write_curve
from delta_transcoders.report.formatting import cell_text
from delta_transcoders.report.tables import format_table, write_table
from delta_transcoders.tasks.wordings import half_of
from delta_transcoders.weight_patches.attribution import attribute_components
from delta_transcoders.weight_patches.baselines import (
    best_neurons,
    delta_parameters,
    differences,
    neuron_differences,
    scaled_difference,
    truncated,
)
from delta_transcoders.weight_patches.patch import WeightPatch, load_patch, patched
from lightning_modules.attribution import in_half
from lightning_modules.evaluation import Evaluation
from lightning_modules.outputs import say
from lightning_modules.sufficiency import check_half, check_measures

COLUMNS = ("condition", "d_new", "n_parameters", "subset", "n_examples", "mean_ce", "mean_kl")


class WeightBaselines(Evaluation):
    """Answers of the base model with weight patches, beside the finetuned model (`raw`) and the base model.

    Conditions: `alpha_A`, A·ΔW; for each size N `svd_nN`, the leading singular components of ΔW,
    `refit_svd_nN`, the same trained on, and `neurons_nN`, the differences of the MLP neurons that help the
    targets of `examples` most; and `refit_bias`. No patch of a size N has more numbers than N features of a
    delta. `mean_kl` is KL(finetuned model ‖ condition) per target token, in nats.

    Writes `metrics.csv`, `metrics.json`, `generations.jsonl`, and `baselines.csv`: numbers of parameters
    beside what each does; and, as `FeatureCurve` does, on half B of the wordings: `curve.csv`, `fidelity.csv`
    (of the patched MLPs alone) and `n90.csv`, with the bias as N = 0.

    Args:
        base_model: folder or hub id of the un-finetuned model.
        finetuned_model: folder or hub id of the finetuned model, adapters merged.
        refits: folder that `WeightRefit` wrote; all of its patches are conditions.
        examples: file whose examples neurons are chosen on, other ones than the prompts.
        output: folder of the results.
        n_features: sizes N.
        alphas: factors A.
        correct, side, enough, margin: see `FeatureCurve`.
        max_new_tokens: longest answer.
        dtype: of both models' weights.
    """

    def __init__(
        self,
        base_model: str,
        finetuned_model: str,
        refits: str,
        examples: str,
        output: str,
        n_features: list[PositiveInt],
        alphas: list[float],
        correct: dict[str, str],
        side: dict[str, str],
        enough: NonNegativeFloat = 0.9,
        margin: NonNegativeFloat = 0.05,
        max_new_tokens: PositiveInt = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (base_model, finetuned_model):
            check_model_source(source)
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        h, data = self.hparams, self.trainer.datamodule
        check_same_architecture(h.base_model, h.finetuned_model)
        self.tokenizer = load_tokenizer(data.hparams.model, h.base_model, h.finetuned_model)
        data.warn_of_impossible_answers(h.max_new_tokens)
        check_measures(data, h.correct, h.side)
        check_half(data, "B", "score patches on", h.correct)
        self.base, self.finetuned = (
            load_model(source, h.dtype).requires_grad_(False)
            for source in (h.base_model, h.finetuned_model)
        )
        self.family = family_of(self.base.config)
        data.check_context(self.family.context, h.max_new_tokens)
        self.conditions = self._untrained() | self._trained()
        self.patches = nn.ModuleList(self.conditions.values())  # so that Lightning moves them
        self.labels = [
            {"experiment": "weight_baselines", "layer": "", "condition": name, "d_new": n}
            for name, n in self._sizes().items()
        ]

    def _sizes(self) -> dict[str, int | None]:
        """By condition, the size N that is in its name."""
        names = ("raw", "base_model", *self.conditions)
        found = {name: name.rpartition("_n")[2] for name in names}
        return {name: int(n) if n.isdecimal() else None for name, n in found.items()}

    def _untrained(self) -> dict[str, WeightPatch]:
        h = self.hparams
        changes = differences(self.base, self.finetuned)
        d_model = family_of(self.base.config).d_model
        examples = list(self.task.read(h.examples).values())
        rows = tokenize(self.tokenizer, self.task, examples)
        device = self.trainer.strategy.root_device
        self.base.to(device)  # before Lightning does
        neurons = neuron_differences(changes).to(device)
        scores = attribute_components(self.base, neurons, rows, self.tokenizer.pad_token_id)
        scores = {path: scores_EC.mean(0) for path, scores_EC in scores.items()}
        found = {f"alpha_{a:g}": scaled_difference(changes, a) for a in h.alphas}
        for n in h.n_features:
            n_parameters = delta_parameters(n, d_model)
            found[f"svd_n{n}"] = truncated(changes, n_parameters)
            found[f"neurons_n{n}"] = best_neurons(changes, scores, n_parameters)
        return found

    def _trained(self) -> dict[str, WeightPatch]:
        folder = Path(self.hparams.refits)
        paths = sorted(path.parent for path in folder.glob("*/config.json"))
        if not paths:
            raise FileNotFoundError(
                f"no patches in {folder}; `python train.py --config …/weight_refit.yaml` trains them"
            )
        here = model_fingerprint(self.base), model_fingerprint(self.finetuned)
        found = {}
        for path in paths:
            found[f"refit_{path.name}"], config = load_patch(path)
            for recorded, fingerprint in zip(
                (config.base_fingerprint, config.finetuned_fingerprint), here, strict=True
            ):
                check_hash(f"{path} is for another model", recorded, "this one", fingerprint)
        return found

    def on_test_start(self) -> None:
        with torch.inference_mode(False):
            self.bridge = boot_bridge(self.finetuned, self.tokenizer)
        self.mlps = mlp_sources(self.base, range(self.family.n_layers))
        self.fidelity = Fidelity(len(self.conditions) * self.family.n_layers).to(self.device)

    @torch.inference_mode()
    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        prompts = [row.tokens.prompt_ids for row in batch]
        tokens = target_batch([row.tokens for row in batch], self.tokenizer.pad_token_id)
        tokens = {f"{name}_BT": tensor.to(self.device) for name, tensor in tokens.items()}
        n_tokens = [len(row.tokens.target_ids) for row in batch]
        raw_NV = supervised_logits(self.finetuned, **tokens)[0].log_softmax(-1)
        for column, patch in enumerate((None, None, *self.patches)):
            model = self.base if column else self.finetuned
            with nullcontext() if patch is None else patched(model, patch):
                logits_NV, labels_N = supervised_logits(model, **tokens)
                texts = greedy_texts(model, prompts, self.hparams.max_new_tokens, self.reader)
            logprobs_NV = logits_NV.log_softmax(-1)
            nll_N = -logprobs_NV.gather(1, labels_N[:, None])[:, 0]
            kl_N = (raw_NV.exp() * (raw_NV - logprobs_NV)).sum(-1)
            nlls, kls = ([p.double().sum() for p in of_N.split(n_tokens)] for of_N in (nll_N, kl_N))
            rows = zip(batch, texts, *map(_numbers, (nlls, kls)), strict=True)
            self.records.update(
                [self.record(column, row, text, nll, kl=kl) for row, text, nll, kl in rows]
            )

        if batch := in_half(self.task, batch, "B"):
            self._measure_fidelity(batch)

    def _measure_fidelity(self, batch: list[PromptRow]) -> None:
        tokens = target_batch([row.tokens for row in batch], self.tokenizer.pad_token_id)
        captured = capture(
            self.bridge,
            tokens["input_ids"],
            tokens["attention_mask"],
            list(self.mlps),
            self.family.site,
        )
        places = itertools.product(self.patches, self.mlps)
        for group, (patch, layer) in enumerate(places):
            x_ND, y_ND = captured.activations[layer]
            base_ND, _ = self.mlps[layer](x_ND, None)
            with patched(self.base, patch):
                written_ND = self.mlps[layer](x_ND, None)[0] - base_ND
            self.fidelity.update(group, written_ND, y_ND - base_ND)

    def on_test_epoch_end(self) -> None:
        self.measured = self.fidelity.compute()  # on every rank: the sums are gathered
        super().on_test_epoch_end()

    def cells(
        self, column: int, subset: str, records: list[Record], raw: list[Record]
    ) -> dict[str, Any]:
        cells = super().cells(column, subset, records, raw)
        return cells | {"mean_kl": ratio((r["kl"], r["n_tokens"]) for r in records)}

    def write(self, folder: Path, table: list[dict], records: list[Record]) -> None:
        super().write(folder, table, records)
        sizes = {name: patch.n_parameters for name, patch in self.conditions.items()}
        rows = [row | {"n_parameters": sizes.get(row["condition"])} for row in table]
        columns = [*COLUMNS, *rates(table[0])]
        write_table(folder / "baselines.csv", columns, rows)
        self._write_curve(folder, records)
        say(format_table([_texts(row) for row in rows], columns))

    def _write_curve(self, folder: Path, records: list[Record]) -> None:
        """What is enough of the patches that have a size, and of the bias."""
        h, sizes = self.hparams, self._sizes()
        by_group = self.by_group(r for r in records if half_of(r["wording"]) == "B")
        curves = {
            name: {"delta": name.removesuffix(f"_n{n}"), "n": n or 0}
            for name, n in sizes.items()
            if n is not None or name == "refit_bias"
        }
        rows = []
        for (c, name), subset in itertools.product(enumerate(sizes), self.subsets):
            if name in curves:
                ours, theirs = by_group[c, subset], by_group[0, subset]
                row = curves[name] | {"student": "transplant", "draw": None, "subset": subset}
                row |= self.cells(c, subset, ours, theirs)
                wordings = [record["wording"] for record in theirs]
                measures = h.correct.get(subset), h.side.get(subset)
                rows.append(row | sufficiency_cells(ours, theirs, wordings, *measures, h.margin))
        fidelity = [
            curves[name]
            | {"layer": layer}
            | {measure: float(values[group]) for measure, values in self.measured.items()}
            for group, (name, layer) in enumerate(itertools.product(self.conditions, self.mlps))
            if name in curves
        ]
        write_curve(folder, rows, fidelity, n90_rows(rows, fidelity, h.enough))


def _numbers(sums: list[Tensor]) -> list[float]:
    return torch.stack(sums).tolist()


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: cell_text(value) for name, value in row.items()}
