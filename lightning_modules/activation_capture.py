"""A model's MLP inputs and outputs at the hook site, for `evaluate.py` (Lightning's predict loop)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from jsonargparse.typing import NonNegativeInt
from lightning import LightningModule
from torch import Tensor

from delta_transcoders.activations.capture import Captured, boot_bridge, capture
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HOOK_SITES, SiteName
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.language_models import check_model_source, load_model, load_tokenizer


class ActivationCapture(LightningModule):
    """Captures all requested layers in one forward pass; `ActivationWriter` stores them.

    Args:
        model: folder or hub id of the model, adapters merged.
        layers: block numbers; all where None.
        hook_site: where the public dictionaries of the model's family read and write if None; others read
            before the norm's gain (`gemma_scope`), after it (`after_gain`) or the residual stream
            (`residual`). `original` is to reproduce that study's numbers.
        leading: how many of a text's first tokens are left out, for dictionaries that were not trained on
            them; as many as the family's policy says if None.
        dtype: of the weights.
    """

    def __init__(
        self,
        model: str,
        layers: list[NonNegativeInt] | None = None,
        hook_site: SiteName | None = None,
        leading: NonNegativeInt | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        check_model_source(model)
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            raise ValueError(f"layers are {layers}, expected different ones, or null for all")
        self.save_hyperparameters()
        self.model = None

    def configure_model(self) -> None:
        if self.model is None:
            h = self.hparams
            self.model = load_model(h.model, h.dtype)
            self.fingerprint = model_fingerprint(self.model)
            self.family = family_of(self.model.config)
            self.site = HOOK_SITES[h.hook_site] if h.hook_site else self.family.site
            self.tokens = self.family.tokens
            if h.leading is not None:
                self.tokens = replace(self.tokens, leading=h.leading)
            n_layers = self.family.n_layers
            self.layers = list(range(n_layers)) if h.layers is None else sorted(h.layers)
            for layer in self.layers:
                if not 0 <= layer < n_layers:
                    raise ValueError(f"there is no layer {layer}: {h.model} has {n_layers}, from 0")

    def on_predict_start(self) -> None:
        # Here, not earlier: the bridge must find the weights on the device where Lightning put them.
        self.bridge = boot_bridge(self.model, load_tokenizer(self.hparams.model))

    def predict_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> Captured | None:
        if batch.get("is_written"):  # by an earlier run, see `ActivationWriter`
            return None
        return capture(
            self.bridge,
            batch["input_ids"],
            batch["attention_mask"],
            self.layers,
            self.site,
            self.hparams.leading,
        )
