"""What finetuning's MLP weights add on the finetuned model's inputs, as training batches."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from jsonargparse.typing import NonNegativeInt, PositiveInt

from datamodules.activations import ActivationData
from delta_transcoders.activations.targets import add_target
from delta_transcoders.families.sites import HookSite
from delta_transcoders.interventions.loading import load_mlps
from delta_transcoders.language_models import check_model_source, load_tokenizer
from delta_transcoders.metrics.reconstruction import ReconstructionFit
from delta_transcoders.weights import StoredWeights, changed_mlps

TARGET = "mlp_difference"


@dataclass(frozen=True)
class BaseMLPId:
    """The base model whose MLPs were subtracted."""

    path: str
    hash: str
    average_l0: None = None
    file: None = None


class MLPDifferenceData(ActivationData):
    """A cache of the finetuned model with y − baseMLP(x), added to it where it is missing.

    baseMLP(x) is what the base model's norms and MLP write on the finetuned model's own input: no
    dictionary is involved, so what a delta learns here is finetuning and nothing else. A layer whose MLP
    the finetune left alone is refused: its target is zero.

    Args:
        cache: folder that `ActivationWriter` wrote, of a hook site where the model's MLPs can be put back.
        model: folder or hub id of the finetuned model.
        base_model: folder or hub id of the un-finetuned model.
        model_dtype, layers, batch_tokens, buffer_tokens, passes, seed: see `ActivationData`.
    """

    target_kind = TARGET
    base_keys = (TARGET,)
    targets = (TARGET,)

    def __init__(
        self,
        cache: str,
        model: str,
        base_model: str,
        model_dtype: str = "float32",
        layers: list[NonNegativeInt] | None = None,
        batch_tokens: PositiveInt = 2048,
        buffer_tokens: PositiveInt = 65536,
        passes: PositiveInt = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(
            cache, model, model_dtype, layers, batch_tokens, buffer_tokens, passes, seed
        )
        check_model_source(base_model)
        self.save_hyperparameters()

    def percentile(self, key: str) -> None:
        return None

    def prepare_data(self) -> None:
        super().prepare_data()
        h, cache, layers = self.hparams, self.cache, self.layers
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        load_tokenizer(h.model, h.base_model)  # refuses two that differ
        site = cache.meta.hook_site
        mlps = load_mlps(h.base_model, h.model_dtype, site, layers)
        identity = {"path": h.base_model, "hash": mlps.fingerprint}
        self._check_changed(site)
        for layer in layers:
            mlp = mlps.sources[layer].to(device)
            fits = add_target(
                cache,
                layer,
                TARGET,
                identity,
                lambda x, mlp=mlp: (mlp(x, None)[0].float(), 0),
                device,
            )
            logging.getLogger("delta_transcoders").info(
                f"  layer {layer}: the base model's MLP leaves FVU {fits['validation'].fvu:.3g} of the "
                "finetuned one's output"
            )

    def _check_changed(self, site: HookSite) -> None:
        h = self.hparams
        models = (StoredWeights(source, h.model_dtype) for source in (h.base_model, h.model))
        changed = changed_mlps(*models, self.layers, site)
        for layer in self.layers:
            if layer not in changed:
                raise ValueError(
                    f"finetuning left the MLP of layer {layer} as it was: there is no difference to learn; "
                    "leave the layer out (--data.layers)"
                )

    def base_id(self, layer: int, key: str) -> BaseMLPId:
        return BaseMLPId(**self.cache.target(TARGET, layer)["identity"])

    def base_fit(self, layer: int, key: str) -> ReconstructionFit:
        """The base model's MLP on the finetuned model's validation tokens."""
        return ReconstructionFit(**self.cache.target(TARGET, layer)["fit"]["validation"])

    def base_model_fit(self, layer: int, key: str) -> ReconstructionFit:
        """The base model's MLP in the base model: exact."""
        return ReconstructionFit(1, 0.0, 1.0, 1.0, 0.0)
