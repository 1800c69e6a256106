"""Weight baselines of a delta: the base model with parts of the finetune's change of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.families import family_of
from delta_transcoders.fingerprints import check_hash, model_fingerprint
from delta_transcoders.generation import greedy_texts
from delta_transcoders.language_models import (
    check_model_source,
    check_same_architecture,
    load_model,
    load_tokenizer,
    supervised_logits,
    target_batch,
    tokenize,
)
from delta_transcoders.metrics.pooling import Record, ratio
from delta_transcoders.report.columns import rates
from delta_transcoders.report.formatting import cell_text
from delta_transcoders.report.tables import format_table, write_table
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
from lightning_modules.evaluation import Evaluation
from lightning_modules.outputs import say

COLUMNS = ("condition", "d_new", "n_parameters", "subset", "n_examples", "mean_ce", "mean_kl")


class WeightBaselines(Evaluation):
    """Answers of the base model with weight patches, beside the finetuned model (`raw`) and the base model.

    Conditions: `alpha_A`, A·ΔW; for each size N `svd_nN`, the leading singular components of ΔW,
    `refit_svd_nN`, the same trained on, and `neurons_nN`, the differences of the MLP neurons that help the
    targets of `examples` most; and `refit_bias`. No patch of a size N has more numbers than N features of a
    delta. `mean_kl` is KL(finetuned model ‖ condition) per target token, in nats.

    Writes `metrics.csv`, `metrics.json`, `generations.jsonl`, and `baselines.csv`: numbers of parameters
    beside what each does.

    Args:
        base_model: folder or hub id of the un-finetuned model.
        finetuned_model: folder or hub id of the finetuned model, adapters merged.
        refits: folder that `WeightRefit` wrote; all of its patches are conditions.
        examples: file whose examples neurons are chosen on, other ones than the prompts.
        output: folder of the results.
        n_features: sizes N.
        alphas: factors A.
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
        self.base, self.finetuned = (
            load_model(source, h.dtype).requires_grad_(False)
            for source in (h.base_model, h.finetuned_model)
        )
        data.check_context(family_of(self.base.config).context, h.max_new_tokens)
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
        say(format_table([_texts(row) for row in rows], columns))


def _numbers(sums: list[Tensor]) -> list[float]:
    return torch.stack(sums).tolist()


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: cell_text(value) for name, value in row.items()}
