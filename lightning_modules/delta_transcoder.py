"""Delta transcoders: small sparse dictionaries of what finetuning added to a frozen base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from delta_transcoders.dictionaries.delta import DeltaConfig, save_delta
from delta_transcoders.dictionaries.stack import Variant
from delta_transcoders.dictionaries.transcoder import Transcoder
from lightning_modules.dictionary_training import DictionaryTraining
from lightning_modules.loggers import log_result


class DeltaTranscoderTraining(DictionaryTraining):
    """Every (layer, d_new, base) of `DeltaData` or `MLPDifferenceData` in one run.

    Writes `output/layer_L/` where there is one d_new and one percentile, else
    `output/d{d_new}_p{percentile}/layer_L/`, each with `delta.safetensors` and `config.json`.

    Args:
        d_new: features of a delta; several for a sweep.
        l0: active delta features per token aimed at (not used by `l1`).
    """

    def __init__(self, d_new: list[int] = (32,), l0: float = 4.0, **kwargs) -> None:
        super().__init__(**kwargs)
        if not d_new or min(d_new) < 1 or len(set(d_new)) < len(d_new):
            raise ValueError(f"d_new is {list(d_new)}, expected different positive numbers")

    def variants_by_width(self) -> dict[int, list[Variant]]:
        data = self.trainer.datamodule
        n_bases = len(data.base_keys)
        return {
            width: [
                Variant(f"layer_{layer}/d{width}/{key}", i, i * n_bases + j, self.hparams.l0)
                for i, layer in enumerate(data.layers)
                for j, key in enumerate(data.base_keys)
            ]
            for width in self.hparams.d_new
        }

    def layout(self) -> dict[str, dict]:
        by_layer = {
            f"layer {n}": ["Multiline", [f"fvu_base/layer_{n}$", f"fvu/layer_{n}$"]]
            for n in self.trainer.datamodule.layers
        }
        return {"FVU by layer: base, full": by_layer} | super().layout()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        for stack in self.stacks.values():
            fits = [self.trainer.datamodule.base_fit(*self._base_of(v)) for v in stack.variants]
            columns = {"fvu_base": [fit.fvu for fit in fits], "l0_base": [fit.l0 for fit in fits]}
            self.log_by_layer(stack, columns)

    def on_fit_end(self) -> None:
        super().on_fit_end()
        if not self.trainer.is_global_zero:
            return
        h, data = self.hparams, self.trainer.datamodule
        best_of: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
        for width, stack in self.stacks.items():
            for v, variant in enumerate(stack.variants):
                best_of[int(width), self._base_of(variant)[1]].append(self.trackers[width].best(v))
        for (d_new, key), best in best_of.items():
            settings = {"d_new": d_new, "percentile": data.percentile(key)}
            settings |= {"target": data.target_kind, "sparsity": self.sparsity.mode}
            settings |= {"l0_aim": h.l0, "lr": h.lr, "seed": h.seed}
            # Of what is written, means over layers.
            results = {k: sum(b[k] for b in best) / len(best) for k in ("fvu", "l0")}
            label = f"d{d_new}_{key}" if len(best_of) > 1 else ""
            log_result(self.trainer, settings, results, label)

    def _base_of(self, variant: Variant) -> tuple[int, str]:
        """Layer and key of the base whose residual the variant learns."""
        data = self.trainer.datamodule
        return data.layers[variant.layer], data.base_keys[variant.target % len(data.base_keys)]

    def export(
        self,
        folder: Path,
        variant: Variant,
        transcoder: Transcoder,
        best: Mapping[str, float],
    ) -> str:
        h, data = self.hparams, self.trainer.datamodule
        layer, key = self._base_of(variant)
        meta, base_fit, base_id = (
            data.cache.meta,
            data.base_fit(layer, key),
            data.base_id(layer, key),
        )
        hook_in, hook_out = meta.hook_site.names(layer)
        config = DeltaConfig(
            layer=layer,
            d_in=meta.d_in,
            d_out=meta.d_out,
            d_new=transcoder.n_features,
            base_id=base_id.path,
            base_file=base_id.file,
            base_hash=base_id.hash,
            model_fingerprint=meta.model_fingerprint,
            hook_site=meta.hook_site.name,
            hook_in=hook_in,
            hook_out=hook_out,
            sparsity=asdict(self.sparsity) | {"l0": h.l0},
            target=data.target_kind,
            percentile=data.percentile(key),
            average_l0_base=base_id.average_l0,
            seed=h.seed,
            measured={
                "fvu_base_on_base_model": data.base_model_fit(layer, key).fvu,
                "fvu_base": base_fit.fvu,
                "fvu_full": best["fvu"],
                "cosine_base": base_fit.cosine,
                "cosine_full": best["cosine"],
                "l0_base": base_fit.l0,
                "l0_delta": best["l0"],
                "dead_fraction": best["dead_fraction"],
            },
        )
        name = f"layer_{layer}"
        if len(h.d_new) * len(data.base_keys) > 1:
            name = f"d{transcoder.n_features}_{key}/{name}"
        save_delta(folder / name, transcoder, config)
        return name
