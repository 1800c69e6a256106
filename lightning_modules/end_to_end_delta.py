"""Deltas trained through the running model: few features, chosen over all layers together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_transcoders.end_to_end.budget import attribution_sums, choose
from delta_transcoders.end_to_end.losses import nmse
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
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.processes import rank_and_world_size
from delta_transcoders.tasks.task import subsets_of
from lightning_modules.loggers import log_scalars
from lightning_modules.optimizers import fused
from lightning_modules.outputs import check_trained, stage_output
from lightning_modules.schedule import total_steps, warm_up_and_decay


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
            raise ValueError(
                f"budgets begin with {h.budgets[0]} features, there are {sum(sizes)} ({len(sizes)} layers "
                f"of {max(sizes)}): give smaller budgets or a larger d_new"
            )
        self.phases = [sum(sizes), *(n for n in h.budgets if n < sum(sizes))]
        if self.trainer.fast_dev_run:
            self.phases = self.phases[:1]
        self.val_kl = GroupedMean(len(data.subsets))
        self.val_nmse = GroupedMean(self.family.n_layers)
        self.density = GroupedMean(sum(sizes))

    @property
    def transcoders(self) -> dict[int, TrainedTranscoder]:
        return {int(layer): source.transcoder for layer, source in self.deltas.items()}

    def on_fit_start(self) -> None:
        device, h = self.device, self.hparams
        finetuned, base = self._finetuned[0].to(device), self._base[0]
        self.student = Student(
            h.student,
            finetuned,
            None if base is None else base.to(device),
            self.tokenizer,
            {int(layer): source for layer, source in self.deltas.items()},
            {layer: source.to(device) for layer, source in self.start.bases.items()},
            self.start.site,
            h.gradient_checkpointing,
        )

    def _steps_of_a_phase(self) -> int:
        trainer, n = self.trainer, len(self.phases)
        steps, rest = divmod(total_steps(trainer), n)
        if rest:
            raise ValueError(
                f"--trainer.max_steps is {total_steps(trainer)}, and there are {n} phases (all features, "
                f"then {', '.join(map(str, self.phases[1:]))}) of equally many steps: give a multiple of {n}"
            )
        every, batches = trainer.val_check_interval, steps * trainer.accumulate_grad_batches
        counts = isinstance(every, int) and trainer.check_val_every_n_epoch is None
        if not trainer.fast_dev_run and not (counts and batches % every == 0):
            raise ValueError(
                f"--trainer.val_check_interval is {every}: a phase has {batches} batches and must end with a "
                "validation; give a whole number that divides them, and check_val_every_n_epoch: null"
            )
        return steps

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
        self.phase_steps = total = self._steps_of_a_phase()

        def factor(step: int) -> float:
            return warm_up_and_decay(step % total, total, h.warmup_steps, h.decay_fraction)

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_validation_epoch_start(self) -> None:
        for metric in (self.val_kl, self.val_nmse, self.density):
            metric.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        reference = self.student.reference(batch, with_streams=self.student.base is not None)
        with self.student.applied(len(batch["input_ids"])), self._counted():
            losses = self.student.losses(batch, reference)
        row_N = (batch["labels"][:, 1:] != IGNORE).nonzero()[:, 0]
        self.val_kl.update(batch["subset"][row_N], losses.kl_N)
        if losses.error_L is not None:
            layer_L = torch.arange(self.family.n_layers, device=self.device)
            self.val_nmse.update(layer_L, losses.error_L, reference.change_L)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Inside, it is counted where each feature is active."""
        handles, first = [], 0
        for source in self.deltas.values():

            def count(module: nn.Module, args: tuple, written: tuple, first: int = first) -> None:
                fired_F = (written[1] > 0).sum(0).double()
                feature_F = torch.arange(len(fired_F), device=fired_F.device) + first
                n_F = torch.full_like(fired_F, len(written[1]))
                self.density.update(feature_F, fired_F, n_F)

            handles.append(source.register_forward_hook(count))
            first += source.n_features
        yield
        for handle in handles:
            handle.remove()

    def on_validation_epoch_end(self) -> None:
        kl_S, nmse_L = self.val_kl.compute().reshape(-1), self.val_nmse.compute().reshape(-1)
        density_F = self.density.compute().reshape(-1)
        if self.trainer.sanity_checking:
            return
        data = self.trainer.datamodule
        here = subsets_of(data.examples["validation"])
        by_subset = {f"kl_{s}": float(kl_S[data.subsets.index(s)]) for s in here}
        is_finite = all(map(math.isfinite, by_subset.values()))
        worst = max(by_subset.values()) if is_finite else math.inf
        sizes = [source.n_features for source in self.deltas.values()]
        measured = {"worst_kl": worst, **by_subset}
        layers = [
            {"l0_delta": float(part_F.sum()), "dead_fraction": self._dead(layer, part_F)}
            for layer, part_F in zip(self.transcoders, density_F.split(sizes), strict=True)
        ]
        if self.student.base is not None:
            for of_layer, layer in zip(layers, self.transcoders, strict=True):
                of_layer["nmse"] = float(nmse_L[layer])
        self.log("val/worst_kl", worst, prog_bar=True, rank_zero_only=True)
        scalars = {f"val/{name}": value for name, value in measured.items()}
        scalars |= {f"val/nmse/layer_{i}": v for i, v in enumerate(nmse_L.tolist()) if v == v}
        scalars |= {
            "val/budget": self.phases[self.phase],
            "val/live_features": int((density_F > 0).sum()),
        }
        log_scalars(self.trainer, scalars)
        if worst < self._worst_so_far():
            weights = {n: t.detach().cpu().clone() for n, t in self.deltas.state_dict().items()}
            entry = {"worst_kl": worst, "weights": weights}
            entry["measured"] = [measured | of_layer for of_layer in layers]
            self.best[self.phase :] = [entry]

    def _worst_so_far(self) -> float:
        return self.best[self.phase]["worst_kl"] if self.phase < len(self.best) else math.inf

    def _dead(self, layer: int, density_F: Tensor) -> float:
        """Share of the features left that are never active."""
        alive_F = self.transcoders[layer].alive
        return float((density_F[alive_F] == 0).double().mean()) if alive_F.any() else 0.0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["phases"] = {"phase": self.phase, "best": self.best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        budgets = list(checkpoint["hyper_parameters"]["budgets"])
        if budgets != list(self.hparams.budgets):
            raise ValueError(
                f"--model.budgets is {list(self.hparams.budgets)}, the checkpoint was trained with "
                f"{budgets}: go on with those, or train anew"
            )
        self.phase, self.best = checkpoint["phases"]["phase"], checkpoint["phases"]["best"]

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            check_trained(self.trainer, self.deltas)
            with stage_output(self) as folder:
                for phase, n_features in enumerate(self.phases):
                    best = self._best_of(phase)
                    write_deltas(
                        folder / f"n{n_features}",
                        self.hparams.student,
                        self.start,
                        best["weights"],
                        dict(zip(self.start.deltas, best["measured"], strict=True)),
                        n_features=n_features,
                        nmse_weight=self.hparams.nmse_weight,
                        model_fingerprint=self.fingerprint,
                        seed=self.hparams.seed,
                    )
        self.trainer.strategy.barrier()
