"""Deltas trained through the running model: few features, chosen over all layers together."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_transcoders.end_to_end.budget import attribution_sums, choose
from delta_transcoders.end_to_end.losses import nmse
from delta_transcoders.end_to_end.measures import StudentMeasures
from delta_transcoders.end_to_end.starting import Corrected, start_of
from delta_transcoders.end_to_end.student import Kind, Student
from delta_transcoders.end_to_end.trained import TrainedTranscoder
from delta_transcoders.end_to_end.writing import write_deltas
from delta_transcoders.families import family_of
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.interventions.sources import DictionarySource
from delta_transcoders.language_models import (
    IGNORE,
    check_context,
    check_model_source,
    check_same_architecture,
    load_model,
    load_tokenizer,
)
from delta_transcoders.processes import rank_and_world_size
from lightning_modules.loggers import log_scalars
from lightning_modules.optimizers import fused
from lightning_modules.outputs import check_trained, stage_output
from lightning_modules.schedule import steps_of_phases, warm_up_and_decay


class EndToEndDelta(LightningModule):
    """All layers' deltas at once, so that the student predicts what the finetuned model does.

    The loss is KL(finetuned ‖ student) per target token + `nmse_weight` · the mean over layers of
    ‖h_student − h_finetuned‖² / ‖h_base − h_finetuned‖² of the residual stream. Training has one phase for
    all features and one for each budget, of equally many steps: a phase begins with the best weights of the
    one before, of which the features with the largest integrated gradients stay, jointly over layers. The
    best of a phase is that with the lowest KL on its *worst* validation subset. Fed by `EndToEndData`.

    Writes `output/n{N}/layer_L/` for every phase, N its number of features over all layers.

    Args:
        model: folder or hub id of the finetuned model, adapters merged.
        base_model: folder or hub id of the un-finetuned model.
        output: folder of the result.
        student: `transplant`, the base model + delta; or `dictionary`, the finetuned model with every MLP
            replaced by base dictionary + delta, in the layers that have one.
        budgets: features over all layers, descending.
        warm_start: folder or hub id of local deltas to start from; from scratch where None.
        d_new: features of each layer, from scratch.
        base_transcoders: folder or hub id of the base dictionaries.
        percentile, base_files: which of them, from scratch: see `dictionaries.bases.load_base`, there
            `files`.
        nmse_weight: λ; 0 needs no streams and one pass less.
        bridging: half of the rows are the student up to a random layer only, or from there on.
        lr: peak learning rate of Adam, of each phase.
        betas: Adam's.
        warmup_steps: of each phase, over which the rate rises.
        decay_fraction: last share of each phase over which it falls to zero.
        attribution_examples: training examples that features are chosen on.
        attribution_steps: of the integrated gradients' path.
        gradient_checkpointing: compute layers anew in the backward pass, for memory.
        dtype: of the frozen models; deltas and KL are float32.
        seed: of the first weights, from scratch.
    """

    def __init__(
        self,
        model: str,
        base_model: str,
        output: str,
        student: Kind = "transplant",
        budgets: list[PositiveInt] = (),
        warm_start: str | None = None,
        d_new: PositiveInt = 32,
        base_transcoders: str | None = None,
        percentile: float = 0.5,
        base_files: str | None = None,
        nmse_weight: NonNegativeFloat = 0.0,
        bridging: bool = False,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        warmup_steps: int = 20,
        decay_fraction: float = 0.4,
        attribution_examples: PositiveInt = 128,
        attribution_steps: PositiveInt = 8,
        gradient_checkpointing: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for source in (model, base_model):
            check_model_source(source)
        if list(budgets) != sorted(set(budgets), reverse=True):
            raise ValueError(f"budgets are {list(budgets)}, expected descending numbers")
        if student == "dictionary" and base_transcoders is None:
            raise ValueError(
                "student: dictionary needs base_transcoders, a folder or hub id of the dictionaries that "
                "the deltas correct; student: transplant needs none"
            )
        if bridging and student == "transplant":
            raise ValueError(
                "bridging needs student: dictionary, which runs the finetuned model: the layers after a "
                "transplant's cutoff would be the base model's"
            )
        self.save_hyperparameters()
        self.deltas = nn.ModuleDict()
        self.phase = 0
        self.phase_steps: int | None = None
        self.best: list[dict[str, Any]] = []
        """Of each phase so far: `worst_kl`, what was `measured` then, and the deltas' `weights`."""
        self._step = ExitStack()

    def setup(self, stage: str) -> None:
        if self.deltas:
            return
        h, data = self.hparams, self.trainer.datamodule
        check_same_architecture(h.base_model, h.model)
        self.tokenizer = load_tokenizer(h.model, h.base_model)  # refuses two that differ
        # Not submodules: checkpoints, DDP and the optimizer have nothing to do with frozen models.
        self._finetuned = (load_model(h.model, h.dtype),)
        self.family = family_of(self._finetuned[0].config)
        for name, examples in data.examples.items():
            check_context(examples, data.tokens[name], self.family.context)
        needs_base = h.student == "transplant" or h.nmse_weight > 0
        self._base = (load_model(h.base_model, h.dtype) if needs_base else None,)
        self.fingerprint = model_fingerprint(self._finetuned[0])
        base_model = None
        if h.student == "transplant":
            base_model = Corrected(h.base_model, model_fingerprint(self._base[0]))
        self.start = start_of(
            base_model,
            self.family,
            self.fingerprint,
            warm_start=h.warm_start,
            base_transcoders=h.base_transcoders,
            percentile=h.percentile,
            base_files=h.base_files,
            d_new=h.d_new,
            seed=h.seed,
        )
        for layer, delta in self.start.deltas.items():
            self.deltas[str(layer)] = DictionarySource(TrainedTranscoder(delta))
        sizes = [source.n_features for source in self.deltas.values()]
        if h.budgets and h.budgets[0] > sum(sizes):
            more = "a larger d_new" if h.warm_start is None else "a larger delta to start from"
            raise ValueError(
                f"budgets begin with {h.budgets[0]} features, there are {sum(sizes)} ({len(sizes)} layers "
                f"of {max(sizes)}): give smaller budgets or {more}"
            )
        self.phases = [sum(sizes), *(n for n in h.budgets if n < sum(sizes))]
        if self.trainer.fast_dev_run:
            self.phases = self.phases[:1]
        self.measures = StudentMeasures(data.subsets, self.family.n_layers, self.sources)

    @property
    def sources(self) -> dict[int, DictionarySource]:
        return {int(layer): source for layer, source in self.deltas.items()}

    @property
    def transcoders(self) -> dict[int, TrainedTranscoder]:
        return {layer: source.transcoder for layer, source in self.sources.items()}

    def on_fit_start(self) -> None:
        device, h = self.device, self.hparams
        finetuned, base = self._finetuned[0].to(device), self._base[0]
        self.student = Student(
            h.student,
            finetuned,
            None if base is None else base.to(device),
            self.tokenizer,
            self.sources,
            {layer: source.to(device) for layer, source in self.start.bases.items()},
            self.start.site,
            h.gradient_checkpointing,
        )

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        phase = min(self.global_step // self.phase_steps, len(self.phases) - 1)
        if phase != self.phase:
            self._start_phase(phase)

    def _start_phase(self, phase: int) -> None:
        """Go on with the best features of the phase that has ended."""
        h, data = self.hparams, self.trainer.datamodule
        self.deltas.load_state_dict(self._best_of(phase - 1)["weights"])
        rows, subset_E = data.for_attribution(h.attribution_examples)
        rank, world = rank_and_world_size()
        n_subsets = len(data.subsets)
        sums_SF = attribution_sums(
            self.student, rows[rank::world], subset_E[rank::world], n_subsets, h.attribution_steps
        )
        sums_SF = self.trainer.strategy.reduce(sums_SF.to(self.device), reduce_op="sum").cpu()
        count_S = torch.bincount(torch.tensor(subset_E), minlength=n_subsets).clamp_min(1)
        scores_F = (sums_SF / count_S[:, None]).sum(0)  # every subset counts alike
        for layer, kept in choose(scores_F, self.transcoders, self.phases[phase]).items():
            self.transcoders[layer].keep(kept)
        self.optimizers().optimizer.state.clear()
        self.phase = phase

    def _best_of(self, phase: int) -> dict[str, Any]:
        if phase > self.phase:
            raise ValueError(
                f"the training ended while there were {self.phases[self.phase]} features, before those of "
                f"{self.phases[phase]}, and so nothing is written: go on from its checkpoint, if it has one "
                "(--ckpt_path)"
            )
        if phase >= len(self.best):
            raise ValueError(
                f"no validation with a finite KL while there were {self.phases[phase]} features: lower lr, "
                "or validate within the steps there are"
            )
        return self.best[phase]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        h = self.hparams
        reference = self.student.reference(batch, with_streams=h.nmse_weight > 0)
        # Until the backward pass is done, which may compute layers anew.
        self._step.enter_context(self.student.applied(len(batch["input_ids"]), h.bridging))
        losses = self.student.losses(batch, reference)
        kl = losses.kl_N.mean()
        values, loss = {"train/kl": kl.detach()}, kl
        if losses.error_L is not None:
            nmse_L = nmse(losses.error_L, reference.change_L)
            loss = kl + h.nmse_weight * nmse_L.mean()
            values |= {f"train/nmse/layer_{i}": v for i, v in enumerate(nmse_L.detach())}
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            log_scalars(self.trainer, {name: float(value) for name, value in values.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def on_after_backward(self) -> None:
        self._step.close()

    def configure_optimizers(self) -> dict:
        h = self.hparams
        parameters = [p for p in self.deltas.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=h.lr, betas=h.betas, fused=fused(self.trainer))
        total = steps_of_phases(self.trainer, len(self.phases))
        if self.phase_steps not in (None, total):
            raise ValueError(
                f"--trainer.max_steps makes phases of {total} steps, the checkpoint's have "
                f"{self.phase_steps}: give {self.phase_steps * len(self.phases)}, or train anew"
            )
        self.phase_steps = total

        def factor(step: int) -> float:
            return warm_up_and_decay(step % total, total, h.warmup_steps, h.decay_fraction)

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_validation_epoch_start(self) -> None:
        self.measures.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        reference = self.student.reference(batch, with_streams=self.student.base is not None)
        with self.student.applied(len(batch["input_ids"])), self.measures.counting():
            losses = self.student.losses(batch, reference)
        row_N = (batch["labels"][:, 1:] != IGNORE).nonzero()[:, 0]
        self.measures.update(batch["subset"][row_N], losses, reference)

    def on_validation_epoch_end(self) -> None:
        kl, layers, n_active = self.measures.compute()
        if self.trainer.sanity_checking:
            return
        self.log("val/worst_kl", kl["worst_kl"], prog_bar=True, rank_zero_only=True)
        scalars = {f"val/{name}": value for name, value in kl.items() if name != "worst_kl"}
        for layer, measured in layers.items():
            scalars |= {f"val/{name}/layer_{layer}": value for name, value in measured.items()}
        scalars |= {"val/budget": self.phases[self.phase], "val/active_features": n_active}
        log_scalars(self.trainer, scalars)
        best = self.best[self.phase]["worst_kl"] if self.phase < len(self.best) else math.inf
        if kl["worst_kl"] < best:
            weights = {n: t.detach().cpu().clone() for n, t in self.deltas.state_dict().items()}
            measured = {layer: kl | of_layer for layer, of_layer in layers.items()}
            self.best[self.phase :] = [
                {"worst_kl": kl["worst_kl"], "measured": measured, "weights": weights}
            ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["phases"] = {"features": self.phases, "steps": self.phase_steps}
        checkpoint["phases"] |= {"phase": self.phase, "best": self.best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved, student = checkpoint["phases"], checkpoint["hyper_parameters"]["student"]
        if student != self.hparams.student:
            raise ValueError(
                f"--model.student is {self.hparams.student}, the checkpoint was trained with {student}: go "
                "on with that, or train anew"
            )
        if self.phases != saved["features"]:
            raise ValueError(
                f"--model.budgets gives phases of {self.phases} features, the checkpoint was trained with "
                f"{saved['features']}: go on with those, or train anew"
            )
        self.phase, self.best = saved["phase"], saved["best"]
        self.phase_steps = saved["steps"]  # those of this run are known later

    def on_fit_end(self) -> None:
        check_trained(self.trainer, self.deltas)
        phases = {n: self._best_of(phase) for phase, n in enumerate(self.phases)}
        if self.trainer.is_global_zero:
            with stage_output(self) as folder:
                for n_features, best in phases.items():
                    write_deltas(
                        folder / f"n{n_features}",
                        self.hparams.student,
                        self.start,
                        best["weights"],
                        best["measured"],
                        n_features=n_features,
                        nmse_weight=self.hparams.nmse_weight,
                        model_fingerprint=self.fingerprint,
                        seed=self.hparams.seed,
                    )
        self.trainer.strategy.barrier()
