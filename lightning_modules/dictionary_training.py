"""Training sparse dictionaries on cached activations: what base dictionaries and deltas share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_transcoders import files
from delta_transcoders.activations.cache import Batch
from delta_transcoders.activations.hook_sites import FitAccumulator, ReconstructionFit
from delta_transcoders.dictionaries.convergence import ConvergenceTracker
from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder
from delta_transcoders.dictionaries.sparsity import SparsityConfig
from delta_transcoders.dictionaries.stack import DictionaryStack, Variant
from lightning_modules.loggers import log_scalars, tensorboards
from lightning_modules.optimizers import fused
from lightning_modules.outputs import finish_output, kind_of
from lightning_modules.schedule import total_steps


@dataclass(frozen=True)
class Measured:
    """One variant on the validation tokens, sums divided once."""

    fvu: float
    cosine: float
    relative_l2: float
    l0: float
    dead_fraction: float
    density_F: Tensor
    """Share of the tokens on which each feature is active."""


class Best(NamedTuple):
    """What an exported dictionary does on the validation tokens."""

    fit: ReconstructionFit
    dead_fraction: float


class DictionaryTraining(LightningModule):
    """Trains stacks of dictionaries, one stack per width, all variants of a width in one product.

    Fed by an `ActivationData`. A variant's best weights are kept at its best validation FVU; one that has
    not improved for `patience` validations is final, and when all are, training stops. Variants never
    influence each other, so a sweep gives what training each alone would give.

    Subclasses say which variants there are (`variants_by_width`), write the result (`export`), and save
    these hyperparameters:
        sparsity: how activations are kept sparse, and its constants.
        lr: peak learning rate of Adam.
        betas: Adam's.
        warmup_steps: steps over which the rate rises linearly from a tenth.
        decay_fraction: last share of the steps over which the rate falls linearly to zero.
        clip_norm: largest gradient norm of a variant; none where None.
        patience: validations without improvement after which a variant is final.
        decoder_init: `zero` starts at no correction, `tied` at the encoder's rows, `kaiming` at random.
        decoder_bias: train an output bias.
        aux_k: dead features per token that also learn to reconstruct what is left.
        dead_after_tokens: training tokens without activity after which a feature is dead.
        calibrate: take target scales and starting thresholds from a first batch.
        seed: of the first weights, together with each variant's key.
    """

    def __init__(self, sparsity: SparsityConfig) -> None:
        super().__init__()
        self.sparsity = sparsity  # in hparams the command line leaves a plain dictionary
        self.stacks = nn.ModuleDict()
        self.trackers = nn.ModuleDict()

    def variants_by_width(self) -> dict[int, list[Variant]]:
        raise NotImplementedError

    def export(
        self, folder: Path, variant: Variant, transcoder: JumpReLUTranscoder, best: Best
    ) -> str:
        """Write one variant's best weights below a folder; returns the part of it that is now new."""
        raise NotImplementedError

    def configure_model(self) -> None:
        if len(self.stacks):
            return
        h, meta = self.hparams, self.trainer.datamodule.cache.meta
        for width, variants in self.variants_by_width().items():
            stack = DictionaryStack(
                variants,
                d_in=meta.d_in,
                d_out=meta.d_out,
                n_features=width,
                sparsity=self.sparsity,
                seed=h.seed,
                decoder_init=h.decoder_init,
                decoder_bias=h.decoder_bias,
                aux_k=h.aux_k,
                dead_after_tokens=h.dead_after_tokens,
            )
            self.stacks[str(width)] = stack
            self.trackers[str(width)] = ConvergenceTracker(stack, h.patience)

    def on_train_start(self) -> None:
        if self.global_step == 0 and self.hparams.calibrate:
            # One rank's batch for all: thresholds are parameters, and DDP has shared them out before.
            first = self.trainer.strategy.broadcast(self.trainer.datamodule.first_batch())
            batch = self._floats(first)
            for stack in self.stacks.values():
                stack.calibrate(*batch)

    def _floats(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.x_LBI.to(self.device).float(), batch.targets_TBD.to(self.device).float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x_LBI, targets_TBD = self._floats(batch)
        total = x_LBI.new_zeros(())
        for _width, stack in self.stacks.items():
            loss = stack.training_loss(x_LBI, targets_TBD)
            total = total + loss.total
            if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
                columns_CV = torch.stack([loss.reconstruction_V, loss.penalty_V, loss.l0_V])
                names = ("loss", "penalty", "l0")
                for name, values in zip(names, columns_CV.tolist(), strict=True):
                    tags = (f"train/{variant.key}/{name}" for variant in stack.variants)
                    log_scalars(self.trainer, dict(zip(tags, values, strict=True)))
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for stack in self.stacks.values():
            stack.prepare_gradients(self.hparams.clip_norm)

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        for stack in self.stacks.values():
            stack.finish_step()

    def configure_optimizers(self) -> dict:
        h = self.hparams
        optimizer = torch.optim.Adam(
            self.stacks.parameters(), lr=h.lr, betas=h.betas, fused=fused(self.trainer)
        )
        total = total_steps(self.trainer)
        decay = round(h.decay_fraction * total)

        def factor(step: int) -> float:
            warm = min(1.0, 0.1 + 0.9 * step / h.warmup_steps) if h.warmup_steps else 1.0
            return warm * min(1.0, (total - step) / decay) if decay else warm

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_validation_epoch_start(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sums over the validation tokens; the stream's last target of a layer is y itself."""
        x_LBI, targets_TBD = self._floats(batch)
        n_per_layer = len(targets_TBD) // len(x_LBI)
        y_LBD = targets_TBD[n_per_layer - 1 :: n_per_layer]
        learned = [t for t in range(len(targets_TBD)) if t % n_per_layer != n_per_layer - 1]
        for width, stack in self.stacks.items():
            sums = stack.reconstruction_sums(x_LBI, targets_TBD[learned], y_LBD)
            kept = self._sums.setdefault(width, [torch.zeros_like(s) for s in sums])
            for total, part in zip(kept, sums, strict=True):
                total += part

    def measure(self, width: str) -> list[Measured]:
        """The validation sums of all ranks, divided; on the CPU."""
        error, l0, cosine, relative, fired, n_tokens = (
            self.trainer.strategy.reduce(total, reduce_op="sum").cpu()
            for total in self._sums[width]
        )
        squares = self.trainer.datamodule.squares()
        rows = []
        for v, variant in enumerate(self.stacks[width].variants):
            density_F = fired[v] / n_tokens
            rows.append(
                Measured(
                    fvu=float(error[v]) / squares[variant.layer],
                    cosine=float(cosine[v] / n_tokens),
                    relative_l2=float(relative[v] / n_tokens),
                    l0=float(l0[v] / n_tokens),
                    dead_fraction=float((density_F == 0).double().mean()),
                    density_F=density_F,
                )
            )
        return rows

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        fvus = []
        for width, stack in self.stacks.items():
            rows = self.measure(width)
            fvus += [row.fvu for row in rows]
            fvu_V = torch.tensor([row.fvu for row in rows], device=self.device).double()
            self.trackers[width].update(fvu_V, stack)
            for variant, row in zip(stack.variants, rows, strict=True):
                names = ("fvu", "cosine", "relative_l2", "l0", "dead_fraction")
                scalars = {f"val/{variant.key}/{name}": getattr(row, name) for name in names}
                log_scalars(self.trainer, scalars)
                for tensorboard in tensorboards(self.trainer):
                    log_density = row.density_F.clamp_min(1e-7).log10()
                    tag = f"val/{variant.key}/log10_density"
                    tensorboard.add_histogram(tag, log_density, self.trainer.global_step)
        self.log("val/fvu", sum(fvus) / len(fvus), prog_bar=True, rank_zero_only=True)
        if all(bool(tracker.converged_V.all()) for tracker in self.trackers.values()):
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Write the best weights of every variant, measured once more as they are written.

        Raises:
            ValueError: some variant never had a finite FVU; names it. An earlier output stays, and the
                others are written beside it.
        """
        problem = self._write() if self.trainer.is_global_zero else None
        problem = self.trainer.strategy.broadcast(problem)  # so that no process waits for another
        if problem:
            raise ValueError(problem)

    def _write(self) -> str | None:
        """Returns what is wrong, if anything."""
        output = self.hparams.output
        folder = files.start_output(output, kind_of(self))
        written, without = [], []
        try:
            for width, stack in self.stacks.items():
                tracker = self.trackers[width]
                for v, variant in enumerate(stack.variants):
                    if tracker.best_fvu_V[v].isfinite():
                        transcoder = tracker.export(v)
                        best = self._measure_best(variant, transcoder)
                        written.append(self.export(folder, variant, transcoder, best))
                    else:
                        without.append(variant.key)
        except BaseException:
            files.discard_output(output)
            raise
        if without:
            others = ""
            if written:
                others = f"; the other variants are in {files.set_aside_output(output)}"
            else:
                files.discard_output(output)
            return (
                f"no validation with a finite FVU for {', '.join(without)}: lower lr, or validate within the "
                f"steps there are. {output} is left as it was{others}"
            )
        finish_output(self.trainer, output, replaces=written)
        return None

    @torch.inference_mode()
    def _measure_best(self, variant: Variant, transcoder: JumpReLUTranscoder) -> Best:
        """Fit of y by what the target's base leaves plus the dictionary, on all validation tokens."""
        accumulator = FitAccumulator()
        fired_F = torch.zeros(transcoder.n_features, dtype=torch.bool)
        for x_BI, target_BD, y_BD in self.trainer.datamodule.held_out(variant):
            a_BF = transcoder.encode(x_BI)
            accumulator.update(y_BD, y_BD - target_BD + transcoder.decode(a_BF), (a_BF > 0).sum())
            fired_F |= (a_BF > 0).any(0)
        return Best(accumulator.compute(), 1 - float(fired_F.double().mean()))
