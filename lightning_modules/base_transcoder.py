"""Base dictionaries for models that have none: transcoders of the un-finetuned model's MLPs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.files.gemma_scope import params_path, save_base
from delta_transcoders.dictionaries.stack import Variant
from delta_transcoders.dictionaries.transcoder import Transcoder
from lightning_modules.dictionary_training import DictionaryTraining


class BaseTranscoderTraining(DictionaryTraining):
    """All layers and L0 targets in one run, written in the Gemma Scope layout.

    `output` is the root of the `layer_L/width_W/average_l0_K/params.npz` files, where K is the L0
    measured on the validation tokens.

    Args:
        width: features of each dictionary.
        l0: active features per token aimed at, one dictionary per layer for each.
    """

    def __init__(
        self,
        width: int = 1024,
        l0: list[float] = (16,),
        decoder_init: Literal["tied", "kaiming"] = "tied",
        decoder_bias: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(decoder_init=decoder_init, decoder_bias=decoder_bias, **kwargs)

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
        self,
        folder: Path,
        variant: Variant,
        transcoder: Transcoder,
        best: Mapping[str, float],
    ) -> str:
        layer, width = self.trainer.datamodule.layers[variant.layer], transcoder.n_features
        l0 = best["l0"]
        for decimals in range(5):  # as few as tell it from the layer's others
            path = folder / params_path(layer, width, round(l0, decimals))
            if not path.exists():
                save_base(folder, layer, transcoder, round(l0, decimals))
                break
        else:
            warnings.warn(
                f"{variant.key} is not written: another dictionary of its layer has the L0 {l0:.4f} too",
                StudyWarning,
                stacklevel=2,
            )
        # The whole width: names hold measured numbers, and an earlier run's would stay beside these.
        return path.parent.parent.relative_to(folder).as_posix()
