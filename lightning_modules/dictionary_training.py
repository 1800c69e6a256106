"""Training sparse dictionaries on cached activations: what base dictionaries and deltas share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_transcoders import files
from delta_transcoders.activations.cache import Batch
from delta_transcoders.dictionaries.convergence import MEASURES, ConvergenceTracker
from delta_transcoders.dictionaries.sparsity import SparsityConfig
from delta_transcoders.dictionaries.stack import DictionaryStack, Variant
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.metrics.reconstruction import GroupedReconstruction
from lightning_modules.loggers import Runs, tensorboards
from lightning_modules.optimizers import fused
from lightning_modules.outputs import finish_output, kind_of
from lightning_modules.schedule import total_steps, warm_up_and_decay


class DictionaryTraining(LightningModule):
    """Trains stacks of dictionaries, one stack per width, all variants of a width in one product.

    Fed by an `ActivationData`. A variant's best weights are kept at its best validation FVU; one that has
    not improved for `patience` validations is final, and when all are, training stops. Variants never
    influence each other, so a sweep gives what training each alone would give. Curves are logged as
    `MEASURE/layer_L`; of several configurations each has a run of its own (`loggers.Runs`).

    Subclasses say which variants there are (`variants_by_width`) and write the result (`export`).

    Args:
        output: folder of the result.
        sparsity: how activations are kept sparse, and its constants.
        lr: peak learning rate of Adam.
        betas: Adam's.
        warmup_steps: steps over which the rate rises linearly from a tenth.
        decay_fraction: last share of the steps over which the rate falls linearly to zero.
        clip_norm: largest gradient norm of a variant; none where None.
        patience: validations without improvement after which a variant is final.
        decoder_init: `zero` starts at no correction, `tied` at the encoder's rows, `kaiming` at random.
        decoder_bias: train an output bias.
        aux_k: dead features per token that also learn to reconstruct what is left; none where 0.
        calibrate: take target scales and starting thresholds from a first batch.
        seed: of the first weights, together with each variant's key.
    """

    def __init__(
        self,
        output: str,
        sparsity: SparsityConfig = SparsityConfig(mode="batch_topk"),  # noqa: B008
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        warmup_steps: int = 20,
        decay_fraction: float = 0.3,
        clip_norm: float | None = 1.0,
        patience: int = 3,
        decoder_init: Literal["zero", "tied", "kaiming"] = "zero",
        decoder_bias: bool = False,
        aux_k: int = 0,
        calibrate: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # the subclass's too
        self.sparsity = sparsity  # in hparams the command line leaves a plain dictionary
        self.stacks = nn.ModuleDict()
        self.trackers = nn.ModuleDict()
        self.reconstructions = nn.ModuleDict()
        self.densities = nn.ModuleDict()
        self.runs = Runs()
        self.charts: dict[str, dict] = {}
        """More custom scalars for TensorBoard, by category; callbacks add theirs before training starts."""

    def variants_by_width(self) -> dict[int, list[Variant]]:
        raise NotImplementedError

    def export(
        self,
        folder: Path,
        variant: Variant,
        transcoder: Transcoder,
        best: Mapping[str, float],
    ) -> str:
        """Write one variant's best weights below a folder; returns the part of it that is now new.

        Args:
            best: what they do on the validation tokens, see `MEASURES`.
        """
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
            )
            self.stacks[str(width)] = stack
            self.trackers[str(width)] = ConvergenceTracker(stack, h.patience)
            self.reconstructions[str(width)] = GroupedReconstruction(len(variants), meta.d_out)
            self.densities[str(width)] = GroupedMean(len(variants) * width)

    @cached_property
    def is_sweep(self) -> bool:
        """Whether there are several configurations of a layer."""
        variants = [v for stack in self.stacks.values() for v in stack.variants]
        return len({configuration(variant) for variant in variants}) > 1

    def run_of(self, variant: Variant) -> str:
        """The run of its curves, like `d32_p0.5`; empty, the logger's own, but in a sweep."""
        return configuration(variant) if self.is_sweep else ""

    def log_by_layer(self, stack: DictionaryStack, columns: Mapping[str, Sequence[float]]) -> None:
        """Log columns of values of a stack's variants."""
        by_run: dict[str, dict[str, float]] = defaultdict(dict)
        for name, values in columns.items():
            for variant, value in zip(stack.variants, values, strict=True):
                by_run[self.run_of(variant)][f"{name}/{layer_of(variant)}"] = value
        for run, scalars in by_run.items():
            self.runs.log(self.trainer, run, scalars)

    def layout(self) -> dict[str, dict]:
        """TensorBoard's custom scalars: charts by category, as regular expressions of their tags."""
        titles = {"fvu": "FVU", "l0": "L0", "dead_fraction": "dead features, share"}
        charts = {title: ["Multiline", [f"{name}/layer_"]] for name, title in titles.items()}
        return {"all layers": charts}

    def on_train_start(self) -> None:
        for tensorboard in tensorboards(self.trainer):
            tensorboard.add_custom_scalars(self.layout() | self.charts)
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
                names = ("train/loss", "train/penalty", "train/l0")
                self.log_by_layer(stack, dict(zip(names, columns_CV.tolist(), strict=True)))
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

        def factor(step: int) -> float:
            return warm_up_and_decay(step, total, h.warmup_steps, h.decay_fraction)

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_validation_epoch_start(self) -> None:
        for metric in (*self.reconstructions.values(), *self.densities.values()):
            metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """What would be exported, on the validation tokens; the last target of a layer is y itself."""
        x_LBI, targets_TBD = self._floats(batch)
        targets_LKBD = targets_TBD.unflatten(0, (len(x_LBI), -1))
        y_LBD, learned_TBD = targets_LKBD[:, -1], targets_LKBD[:, :-1].flatten(0, 1)
        for width, stack in self.stacks.items():
            a_VFB = stack.encode(x_LBI)
            for v, variant in enumerate(stack.variants):
                y_BD = y_LBD[variant.layer]
                ours_BD = y_BD - learned_TBD[variant.target] + stack.decode(v, a_VFB[v])
                self.reconstructions[width].update(v, y_BD, ours_BD)
            fired_N = (a_VFB > 0).sum(2).flatten()
            features_N = torch.arange(len(fired_N), device=self.device)
            n_tokens_N = torch.full_like(fired_N, a_VFB.shape[2])
            self.densities[width].update(features_N, fired_N, n_tokens_N)

    def measure(self, width: str) -> tuple[dict[str, Tensor], Tensor]:
        """`MEASURES` of the validation tokens of all ranks, float64 [V] each, and densities [V, F].

        A density is the share of the tokens on which a feature is active.
        """
        n_variants = len(self.stacks[width].variants)
        fit = {k: v.reshape(-1) for k, v in self.reconstructions[width].compute().items()}
        density_VF = self.densities[width].compute().view(n_variants, -1)
        measured = (
            fit["fvu"],
            fit["mean_cos"],
            fit["mean_l2"],
            density_VF.sum(1),
            (density_VF == 0).double().mean(1),
        )
        return dict(zip(MEASURES, measured, strict=True)), density_VF

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        fvus = []
        for width, stack in self.stacks.items():
            measured, density_VF = self.measure(width)
            self.trackers[width].update(measured, stack)
            columns = {name: values.tolist() for name, values in measured.items()}
            fvus += columns["fvu"]
            self.log_by_layer(stack, columns)
            for variant, density_F in zip(stack.variants, density_VF, strict=True):
                for tensorboard in self.runs.writers(self.trainer, self.run_of(variant)):
                    log_density_F = density_F.clamp_min(1e-7).log10()
                    tag = f"log10_density/{layer_of(variant)}"
                    tensorboard.add_histogram(tag, log_density_F, self.trainer.global_step)
        self.log("val/fvu", sum(fvus) / len(fvus), prog_bar=True, rank_zero_only=True)
        if all(bool(tracker.converged_V.all()) for tracker in self.trackers.values()):
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Write the best weights of every variant.

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
                        of_variant = tracker.export(v), tracker.best(v)
                        written.append(self.export(folder, variant, *of_variant))
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

    def teardown(self, stage: str) -> None:
        self.runs.close()


def layer_of(variant: Variant) -> str:
    return variant.key.split("/")[0]


def configuration(variant: Variant) -> str:
    """All that is chosen but the layer."""
    return variant.key.partition("/")[2].replace("/", "_")
