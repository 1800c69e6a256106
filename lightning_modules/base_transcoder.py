"""Base dictionaries for models that have none: transcoders of the un-finetuned model's MLPs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from delta_transcoders.dictionaries.files.gemma_scope import params_path, save_base
from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder
from delta_transcoders.dictionaries.sparsity import SparsityConfig
from delta_transcoders.dictionaries.stack import Variant
from lightning_modules.dictionary_training import Best, DictionaryTraining


class BaseTranscoderTraining(DictionaryTraining):
    """All layers and L0 targets in one run, written in the Gemma Scope layout.

    The folder `average_l0_K` holds the L0 measured on the validation tokens.

    Args:
        output: root of the `layer_L/width_W/average_l0_K/params.npz` files.
        width: features of each dictionary.
        l0: active features per token aimed at, one dictionary per layer for each.
        sparsity, lr, betas, warmup_steps, decay_fraction, clip_norm, patience, decoder_init,
            decoder_bias, aux_k, dead_after_tokens, calibrate, seed: see `DictionaryTraining`.
    """

    def __init__(
        self,
        output: str,
        width: int = 1024,
        l0: list[float] = (16,),
        sparsity: SparsityConfig = SparsityConfig(mode="batch_topk"),  # noqa: B008
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        warmup_steps: int = 20,
        decay_fraction: float = 0.3,
        clip_norm: float | None = 1.0,
        patience: int = 3,
        decoder_init: Literal["tied", "kaiming"] = "tied",
        decoder_bias: bool = True,
        aux_k: int = 32,
        dead_after_tokens: int = 100_000,
        calibrate: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(sparsity)
        self.save_hyperparameters()

    def variants_by_width(self) -> dict[int, list[Variant]]:
        layers = self.trainer.datamodule.layers
        return {
            self.hparams.width: [
                Variant(f"layer_{layer}/l0_{l0:g}", i, i, l0)
                for i, layer in enumerate(layers)
                for l0 in self.hparams.l0
            ]
        }

    def export(
        self, folder: Path, variant: Variant, transcoder: JumpReLUTranscoder, best: Best
    ) -> str:
        layer = self.trainer.datamodule.layers[variant.layer]
        l0: float = round(best.fit.l0)
        if (folder / params_path(layer, transcoder.n_features, l0)).exists():
            l0 = round(best.fit.l0, 2)  # another variant's rounds to the same number
        path = save_base(folder, layer, transcoder, l0)
        # The whole width: names hold measured numbers, and an earlier run's would stay beside these.
        return path.parent.parent.relative_to(folder).as_posix()
