"""The tiny base model: a small Gemma 2 trained from scratch on generated text."""

from __future__ import annotations

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt

from delta_transcoders.tiny_gemma import build_tiny_gemma
from lightning_modules.language_model import LanguageModelTraining
from lightning_modules.outputs import check_trained, stage_output


class BaseModelTraining(LanguageModelTraining):
    """Train a tiny Gemma 2 on `BaseTextData`, whose tokenizer it takes, and write a Hugging Face folder.

    Args:
        output: folder for the trained model and its tokenizer.
        d_model: width of the residual stream.
        n_layers: transformer blocks, alternating sliding and full attention.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        d_mlp: hidden width of an MLP.
        context: longest sequence in tokens.
        lr: peak learning rate.
        warmup_fraction: share of the steps over which the rate rises linearly.
        final_lr_fraction: last rate as a share of the peak.
        weight_decay: AdamW's.
        betas: AdamW's.
    """

    def __init__(
        self,
        output: str,
        d_model: PositiveInt = 96,
        n_layers: PositiveInt = 4,
        n_heads: PositiveInt = 4,
        n_kv_heads: PositiveInt = 2,
        d_mlp: PositiveInt = 384,
        context: PositiveInt = 256,
        lr: NonNegativeFloat = 4e-3,
        warmup_fraction: ClosedUnitInterval = 0.05,
        final_lr_fraction: ClosedUnitInterval = 0.05,
        weight_decay: NonNegativeFloat = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        super().__init__(lr, warmup_fraction, final_lr_fraction, weight_decay, betas)
        self.save_hyperparameters()
        self.model = None

    def configure_model(self) -> None:
        if self.model is None:
            h = self.hparams
            self.model = build_tiny_gemma(
                self.trainer.datamodule.tokenizer,
                h.d_model,
                h.n_layers,
                h.n_heads,
                h.n_kv_heads,
                h.d_mlp,
                h.context,
            )

    def causal_model(self):
        return self.model

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            check_trained(self.trainer, self.model)
            with stage_output(self) as folder:
                self.model.save_pretrained(folder)
                self.trainer.datamodule.tokenizer.save_pretrained(folder)
        self.trainer.strategy.barrier()
