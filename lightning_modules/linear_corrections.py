"""Corrections of the base without features, as controls for a delta: fitted in one pass, no gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse.typing import NonNegativeFloat
from lightning import LightningModule
from torch import Tensor

from delta_transcoders.activations.cache import Batch
from delta_transcoders.dictionaries.corrections import (
    AffineCorrection,
    CorrectionConfig,
    Moments,
    matched_rank,
    save_correction,
)
from delta_transcoders.dictionaries.delta import load_delta
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.fingerprints import check_hash
from delta_transcoders.metrics.reconstruction import GroupedReconstruction
from lightning_modules.outputs import check_finite, stage_output

KINDS = ("bias", "low_rank", "ridge", "steering")


class LinearCorrections(LightningModule):
    """Fits the corrections of `dictionaries.corrections` to the residuals that a delta was trained on.

    Fed by `CorrectionData` of one base per layer. Writes `output/{kind}/layer_L/`.

    Args:
        output: folder of the corrections.
        deltas: folder of the deltas that they are controls for: `low_rank` gets as many parameters as
            a delta, `steering` its mean norm.
        towards: subset of the cached examples whose mean output `steering` steers towards.
        away: and the one it steers away from.
        penalty: of the ridge regressions, in units of the inputs' mean square.
    """

    resumable = False  # one pass over the cache, whose sums no checkpoint holds

    def __init__(
        self,
        output: str,
        deltas: str,
        towards: str,
        away: str,
        penalty: NonNegativeFloat = 1e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False

    def configure_optimizers(self) -> None:
        return None

    def on_fit_start(self) -> None:
        data, meta = self.trainer.datamodule, self.trainer.datamodule.cache.meta
        for name in ("towards", "away"):
            if self.hparams[name] not in meta.subsets:
                raise ValueError(
                    f"{name} is {self.hparams[name]!r}, expected one of the cache's subsets: "
                    f"{', '.join(meta.subsets)}"
                )
        if len(data.base_keys) != 1:
            raise ValueError(f"one percentile is expected, not {data.hparams.percentiles}")
        self.deltas = []
        for layer in data.layers:
            path = Path(self.hparams.deltas) / f"layer_{layer}"
            delta, config = load_delta(path)
            base = data.base_id(layer, data.base_keys[0])
            problem = f"{path} was trained on another base dictionary"
            check_hash(problem, config.base_hash, base.path, base.hash)
            self.deltas.append(delta.to(self.device))
        self.moments = [
            Moments(meta.d_in, meta.d_out, len(meta.subsets), self.device) for _ in data.layers
        ]
        self.subset_ids = data.cache.index("train")["subset_ids"].long().to(self.device)

    def _by_layer(self, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """x, residual and y of each layer, float32 on the device."""
        targets_LTBD = batch.targets_TBD.to(self.device).float().unflatten(0, (-1, 2))
        x_LBI = batch.x_LBI.to(self.device).float()
        return [(x, *targets) for x, targets in zip(x_LBI, targets_LTBD, strict=True)]

    @torch.no_grad()
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        subset_B = self.subset_ids[batch.rows_B]
        layers = zip(self._by_layer(batch), self.moments, self.deltas, strict=True)
        for (x_BI, r_BD, y_BD), moments, delta in layers:
            moments.update(x_BI, r_BD, y_BD, subset_B, delta(x_BI))

    def _solve(self, moments: Moments, rank: int) -> dict[str, AffineCorrection]:
        h, subsets = self.hparams, self.trainer.datamodule.cache.meta.subsets
        return {
            "bias": moments.bias(),
            "low_rank": moments.ridge(h.penalty, rank),
            "ridge": moments.ridge(h.penalty),
            "steering": moments.steering(subsets.index(h.towards), subsets.index(h.away)),
        }

    def on_validation_epoch_start(self) -> None:
        for moments in self.moments:
            for total in moments.tensors:
                total.copy_(self.trainer.strategy.reduce(total, reduce_op="sum"))
        self.corrections = [
            self._solve(moments, self._rank(delta))
            for moments, delta in zip(self.moments, self.deltas, strict=True)
        ]
        n_groups, d_out = (
            len(self.corrections) * len(KINDS),
            self.trainer.datamodule.cache.meta.d_out,
        )
        self.reconstruction = GroupedReconstruction(n_groups, d_out).to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for i, (x_BI, r_BD, y_BD) in enumerate(self._by_layer(batch)):
            for k, kind in enumerate(KINDS):
                ours_BD = y_BD - r_BD + self.corrections[i][kind](x_BI)
                self.reconstruction.update(i * len(KINDS) + k, y_BD, ours_BD)

    def on_validation_epoch_end(self) -> None:
        self.fvu = self.reconstruction.compute()["fvu"].view(-1, len(KINDS)).tolist()
        for layer, of_layer in zip(self.trainer.datamodule.layers, self.fvu, strict=True):
            for kind, fvu in zip(KINDS, of_layer, strict=True):
                self.log(f"val/layer_{layer}/{kind}/fvu", fvu, rank_zero_only=True)

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            for of_layer in self.corrections:
                for kind, correction in of_layer.items():
                    check_finite((f"{kind}: {name}", t) for name, t in correction.named_buffers())
            with stage_output(self) as folder:
                self._write(folder)
        self.trainer.strategy.barrier()

    def _write(self, folder: Path) -> None:
        data, meta = self.trainer.datamodule, self.trainer.datamodule.cache.meta
        for i, layer in enumerate(data.layers):
            for k, kind in enumerate(KINDS):
                config = CorrectionConfig(
                    layer=layer,
                    d_in=meta.d_in,
                    kind=kind,
                    n_parameters=self._n_parameters(kind, self.deltas[i]),
                    hook_site=meta.hook_site.name,
                    model_fingerprint=meta.model_fingerprint,
                    base_hash=data.base_id(layer, data.base_keys[0]).hash,
                    fvu=self.fvu[i][k],
                )
                save_correction(
                    folder / kind / f"layer_{layer}", self.corrections[i][kind].cpu(), config
                )

    @staticmethod
    def _rank(delta: Transcoder) -> int:
        """The rank that has as many parameters as the delta (which trains no decoder bias)."""
        n_parameters = delta.n_features * (delta.d_in + delta.d_out + 2)
        return matched_rank(n_parameters, delta.d_in, delta.d_out)

    def _n_parameters(self, kind: str, delta: Transcoder) -> int:
        d_in, d_out = delta.d_in, delta.d_out
        weights = {"low_rank": self._rank(delta) * (d_in + d_out), "ridge": d_in * d_out}
        return weights.get(kind, 0) + d_out
