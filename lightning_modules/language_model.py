"""Next-token training shared by the tiny base model and the finetune."""

from __future__ import annotations

import math

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from delta_transcoders.language_models import token_nll
from delta_transcoders.metrics.grouped import GroupedMean
from lightning_modules.optimizers import fused
from lightning_modules.schedule import total_steps


class LanguageModelTraining(LightningModule):
    """AdamW with warm-up and a cosine, on the mean loss over supervised tokens.

    The mean is over all supervised tokens of an optimiser step, whatever ranks and accumulated batches
    they came from. Batches carry `input_ids`, `attention_mask` and `labels` [B, T].

    Subclasses build `self.model` in `configure_model` and return the plain causal model from
    `causal_model`.
    """

    def __init__(
        self,
        lr: float,
        warmup_fraction: float,
        final_lr_fraction: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.val_nll = GroupedMean(1)
        self._step_nll: list[Tensor] = []

    def causal_model(self):
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        nll_N = token_nll(
            self.causal_model(), batch["input_ids"], batch["attention_mask"], batch["labels"]
        )
        self._step_nll.append(
            torch.stack([nll_N.detach().double().sum(), nll_N.new_tensor(nll_N.numel()).double()])
        )
        return nll_N.sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn gradients of summed losses into gradients of the mean over the step's tokens.

        Lightning has divided each batch's sum by the number of accumulated batches, DDP has averaged over
        ranks, and a gradient scaler has undone its scale.
        """
        totals = self.trainer.strategy.reduce(torch.stack(self._step_nll).sum(0), reduce_op="sum")
        self._step_nll.clear()
        # A tensor, never read here: the host would wait for the device at every step.
        nll, n_tokens = totals
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / n_tokens
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self.log("train/loss", (nll / n_tokens).float(), prog_bar=True)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        nll_N = token_nll(
            self.causal_model(), batch["input_ids"], batch["attention_mask"], batch["labels"]
        )
        self.update_loss(nll_N)

    def update_loss(self, nll_N: Tensor) -> None:
        self.val_nll.update(torch.zeros(len(nll_N), dtype=torch.long, device=nll_N.device), nll_N)

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.val_nll.compute().float(), prog_bar=True)
        self.val_nll.reset()

    def configure_optimizers(self) -> dict:
        h = self.hparams
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=h.lr,
            betas=h.betas,
            weight_decay=h.weight_decay,
            fused=fused(self.trainer),
        )
        total = total_steps(self.trainer)
        warmup = max(1, round(h.warmup_fraction * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            return h.final_lr_fraction + (1 - h.final_lr_fraction) * cosine

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
