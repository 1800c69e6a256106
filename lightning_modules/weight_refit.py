"""Weight baselines that are trained: truncated singular components and biases, by the KL of a delta."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_transcoders.end_to_end.losses import kl_of_tokens
from delta_transcoders.families import family_of
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.language_models import (
    IGNORE,
    check_model_source,
    check_same_architecture,
    load_model,
    load_tokenizer,
    supervised_hidden,
)
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.weight_patches.baselines import (
    biases,
    delta_parameters,
    differences,
    truncated,
)
from delta_transcoders.weight_patches.patch import PatchConfig, patched, save_patch
from lightning_modules.optimizers import fused
from lightning_modules.outputs import check_finite, stage_output
from lightning_modules.schedule import total_steps, warm_up_and_decay


class WeightRefit(LightningModule):
    """KL(finetuned ‖ base model with a patch) on targets, for several patches of the base model at once.

    Patches are `bias`, of every layer that the finetune changed, and for each size `svd_nN`: the singular
    components of the finetune's change that take no more numbers than N features of a delta, as the start.
    Each has a loss, gradient, clipping and optimiser state of its own, and takes the path that it would take
    alone. Kept are the weights with the least KL on the *worst* validation subset; those of the start are
    among them with `num_sanity_val_steps: -1`.
    The model's head is not trained: where the finetune changed it, its components stay as they start.

    Fed by `EndToEndData`. Writes `output/{bias,svd_nN}/{patch.safetensors,config.json}`.

    Args:
        base_model: folder or hub id of the un-finetuned model, which is patched.
        finetuned_model: folder or hub id of the finetuned model, adapters merged.
        output: folder of the patches.
        n_features: sizes N.
        lr: Adam's peak learning rate.
        betas: Adam's.
        warmup_steps: over which the rate rises linearly.
        decay_fraction: last share of the steps over which it falls linearly to 0.
        dtype: of both models' weights; patches and KL are float32.
    """

    def __init__(
        self,
        base_model: str,
        finetuned_model: str,
        output: str,
        n_features: list[PositiveInt],
        lr: PositiveFloat = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        warmup_steps: NonNegativeInt = 20,
        decay_fraction: NonNegativeFloat = 0.4,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (base_model, finetuned_model):
            check_model_source(source)
        if len(set(n_features)) < len(n_features):
            raise ValueError(f"n_features is {n_features}, expected different sizes")
        self.save_hyperparameters()
        self.patches = nn.ModuleDict()

    def setup(self, stage: str) -> None:
        h = self.hparams
        check_same_architecture(h.base_model, h.finetuned_model)
        load_tokenizer(h.base_model, h.finetuned_model)  # refuses two that differ
        # In a tuple, where neither the optimizer nor checkpoints find them.
        self.models = tuple(load_model(m, h.dtype) for m in (h.base_model, h.finetuned_model))
        for model in self.models:
            model.requires_grad_(False)
        self.fingerprints = tuple(map(model_fingerprint, self.models))
        changes = differences(*self.models)
        d_model = family_of(self.models[0].config).d_model
        self.patches["bias"] = biases(changes)
        for n in h.n_features:
            self.patches[f"svd_n{n}"] = truncated(changes, delta_parameters(n, d_model))
        self.best = copy.deepcopy(self.patches).requires_grad_(False)
        shape = (len(self.patches), len(self.trainer.datamodule.subsets))
        self.register_buffer("best_kl_PS", torch.full(shape, torch.inf, dtype=torch.float64))
        self.kl = GroupedMean(self.best_kl_PS.numel())

    def on_fit_start(self) -> None:
        for model in self.models:
            model.to(self.device)

    def _kls(self, batch: dict[str, Tensor]) -> Iterator[Tensor]:
        """KL(finetuned ‖ base with the patch) of each target token in nats, [N], patch by patch."""
        tokens = {f"{k}_BT": batch[k] for k in ("input_ids", "attention_mask", "labels")}
        base, finetuned = self.models
        family = family_of(base.config)
        heads = [partial(family.logits, model) for model in (finetuned, base)]
        n_vocabulary = base.get_output_embeddings().out_features
        with torch.no_grad():
            teacher_ND = supervised_hidden(finetuned, **tokens)
        for patch in self.patches.values():
            with patched(base, patch):
                ours_ND = supervised_hidden(base, **tokens)
                yield kl_of_tokens(heads[0], teacher_ND, heads[1], ours_ND, n_vocabulary)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        losses = {n: kl_N.mean() for n, kl_N in zip(self.patches, self._kls(batch), strict=True)}
        self.log_dict({f"train/{name}/kl": loss.detach() for name, loss in losses.items()})
        return torch.stack(list(losses.values())).sum()

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, **kwargs) -> None:
        for patch in self.patches.values() if gradient_clip_val else ():
            nn.utils.clip_grad_norm_(patch.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> dict:
        h = self.hparams
        optimizer = torch.optim.Adam(
            self.patches.parameters(), lr=h.lr, betas=h.betas, fused=fused(self.trainer)
        )
        total = total_steps(self.trainer)

        def factor(step: int) -> float:
            return warm_up_and_decay(step, total, h.warmup_steps, h.decay_fraction)

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        supervised = batch["labels"][:, 1:] != IGNORE
        subset_N = batch["subset"][supervised.nonzero()[:, 0]]
        for p, kl_N in enumerate(self._kls(batch)):
            self.kl.update(p * self.best_kl_PS.shape[1] + subset_N, kl_N)

    def on_validation_epoch_end(self) -> None:
        kl_PS = self.kl.compute().reshape(self.best_kl_PS.shape)
        self.kl.reset()
        subsets = self.trainer.datamodule.subsets
        for p, (name, patch) in enumerate(self.patches.items()):
            for subset, kl in zip(subsets, kl_PS[p].tolist(), strict=True):
                self.log(f"val/{name}/kl/{subset}", kl)
            if kl_PS[p].max() < self.best_kl_PS[p].max():
                self.best_kl_PS[p] = kl_PS[p]
                self.best[name].load_state_dict(patch.state_dict())

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            check_finite(self.patches.named_parameters())
            with stage_output(self) as folder:
                for name, patch, kl_S in zip(
                    self.best, self.best.values(), self.best_kl_PS.tolist(), strict=True
                ):
                    config = PatchConfig(
                        n_parameters=patch.n_parameters,
                        base_fingerprint=self.fingerprints[0],
                        finetuned_fingerprint=self.fingerprints[1],
                        kl=dict(zip(self.trainer.datamodule.subsets, kl_S, strict=True)),
                    )
                    save_patch(folder / name, patch, config)
        self.trainer.strategy.barrier()
