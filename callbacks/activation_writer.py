"""Captured activations to the cache on disk, while Lightning's predict loop runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from delta_transcoders import files
from delta_transcoders.activations.capture import Captured
from delta_transcoders.activations.layout import CacheMeta, disk_bytes
from delta_transcoders.activations.writing import CacheWriter, finish_cache
from delta_transcoders.fingerprints import hash_texts, tokenizer_fingerprint
from delta_transcoders.signals import Stopped
from lightning_modules.outputs import finish_output

say = logging.getLogger("delta_transcoders").info

MENDABLE = (Stopped, OSError, torch.OutOfMemoryError)
"""After these, what is written is right, and stays; after any other error it may be wrong, and does not."""


class ActivationWriter(BasePredictionWriter):
    """Writes what `ActivationCapture` captures of `ActivationTexts`; the manifest comes last.

    A run that was stopped or killed, or had no room on the disk or in a GPU's memory, leaves its shards, and
    the same command goes on after them.

    Args:
        output: folder of the cache; an older cache there is replaced when the new one is complete.
        dtype: of the stored activations.
        shard_rows: tokens per file; several processes, which each hold a file's, share them out.
        n_targets: targets that will be added per layer, for the estimate of the disk it takes.
    """

    output_kind = "activations"

    def __init__(
        self,
        output: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        shard_rows: PositiveInt = 16384,
        n_targets: NonNegativeInt = 1,
    ) -> None:
        super().__init__(write_interval="batch")
        self.output = output
        self.dtype = dtype
        self.shard_rows = shard_rows
        self.n_targets = n_targets
        self.writer: CacheWriter | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        width = pl_module.family.d_model
        self.meta = CacheMeta(
            layers=tuple(pl_module.layers),
            d_in=width,
            d_out=width,
            dtype=self.dtype,
            hook_site=pl_module.site,
            text_policy=data.hparams.text,
            model_fingerprint=pl_module.fingerprint,
            model_dtype=pl_module.hparams.dtype,
            tokenizer_fingerprint=tokenizer_fingerprint(data.tokenizer),
            subsets=tuple(data.subsets),
            n_examples={split: len(rows) for split, rows in data.rows.items()},
            texts_sha256={split: hash_texts(data.texts(split)) for split in data.rows},
            token_policy=pl_module.tokens.name,
        )
        n_tokens = sum(len(row["input_ids"]) for rows in data.rows.values() for row in rows)
        need = disk_bytes(n_tokens, len(self.meta.layers), width, width, self.dtype, self.n_targets)
        rows = max(1, self.shard_rows // trainer.world_size)
        made_from = {
            "meta": asdict(self.meta),
            "batch_size": data.hparams.batch_size,
            "world_size": trainer.world_size,
            "shard_rows": rows,
        }
        if trainer.is_global_zero:
            staged = files.start_output(self._written(trainer), self.output_kind, made_from)
            free = files.free_bytes(staged)
            need -= sum(p.stat().st_size for p in staged.rglob("*.safetensors"))
            if need > free:
                raise OSError(  # as where it fills up later, so that what is written stays
                    f"the cache {self.output} will take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
                    "capture fewer layers or texts, use dtype bfloat16, or remove an older cache first"
                )
            say(
                f"  {n_tokens:,} tokens × {len(self.meta.layers)} layers: {self.output} will take "
                f"{need / 1e6:,.0f} MB"
            )
        trainer.strategy.barrier()
        self.folder = files.staged_output(self._written(trainer))
        self.writer = CacheWriter(self.folder, self.meta, trainer.global_rank, rows)
        if self.writer.n_written:
            say(
                f"  going on after {self.writer.n_written:,} tokens that an earlier run has written"
            )

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batch["is_written"] = self.writer.skip(batch["split"])

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Captured | None,
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if prediction is None:
            return
        rows = prediction.rows
        self.writer.add(
            batch["split"],
            prediction.activations,
            token_ids=prediction.token_ids,
            positions=prediction.positions,
            example_ids=batch["example_ids"][rows],
            subset_ids=batch["subset_ids"][rows].to(torch.uint8),
        )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.writer.finish()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            if not trainer.fast_dev_run:
                finish_cache(
                    self.folder, self.meta, trainer.world_size, command=files.command_line()
                )
            finish_output(trainer, self._written(trainer))
        trainer.strategy.barrier()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if not trainer.is_global_zero:
            return
        if isinstance(exception, MENDABLE) and not trainer.fast_dev_run:
            files.leave_output(self.output)
            if not isinstance(exception, Stopped) and self.writer:
                say(
                    f"  {self.writer.n_written:,} tokens are written and stay: once the cause is mended, "
                    "the same command goes on after them"
                )
        else:
            files.discard_output(self._written(trainer))

    def _written(self, trainer: Trainer) -> str:
        """A `fast_dev_run`, which is thrown away, leaves alone what an interrupted run has written."""
        return f"{self.output}.fast_dev_run" if trainer.fast_dev_run else self.output
