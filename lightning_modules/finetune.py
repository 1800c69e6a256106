"""Teach a causal language model a task, by LoRA or in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryF1Score, BinaryPrecision, BinaryRecall

from datamodules.finetune_data import OUTPUT_KIND
from delta_transcoders import files
from delta_transcoders.families import family_of
from delta_transcoders.language_models import (
    IGNORE,
    check_context,
    check_model_source,
    load_model,
    load_tokenizer,
    on_cpu,
    opening_tokens,
    supervised_logits,
)
from delta_transcoders.metrics.grouped import GroupedMean
from lightning_modules.language_model import LanguageModelTraining
from lightning_modules.outputs import check_finite, check_trained, finish_output

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def check_target_modules(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse names of layers that LoRA cannot adapt and merge.

    Raises:
        ValueError: a name that no linear layer or embedding has, or one whose weights are used elsewhere too
            (tied embeddings): merging would change both.
    """
    from transformers.pytorch_utils import Conv1D

    layers = {
        path: module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D)
    }
    shared = [id(weight) for weight in layers.values()]
    for name in names:
        found = [w for path, w in layers.items() if f".{path}".endswith(f".{name}")]
        if not found:
            known = sorted({path.rpartition(".")[2] for path in layers})
            raise ValueError(
                f"Target modules {{{name!r}}} not found: target_modules names layers of the model, which has "
                f"{', '.join(known)}"
            )
        if any(shared.count(id(weight)) > 1 for weight in found):
            raise ValueError(
                f"target_modules: {name} shares its weights with another layer (tied embeddings), so an "
                "adapter cannot be merged into it; leave it out"
            )


class Finetune(LanguageModelTraining):
    """Finetune on `FinetuneData` and write `output/adapter` (LoRA only) and `output/merged`.

    Validation logs the loss, that of the worst subset (a mean hides what is not learned) and, where the task
    has an opening, precision, recall and F1 of "the target's first token is one that the behaviour begins
    with", positives against negatives. Checkpoints hold trainable weights only.

    Args:
        model: folder or hub id of the base model.
        output: the finetune's folder.
        method: `lora`, or `full` for all weights.
        lora_r: rank.
        lora_alpha: updates are scaled by lora_alpha / lora_r.
        lora_dropout: on the adapters' input.
        target_modules: linear layers that get an adapter; those of the model's family where None.
        dtype: of the frozen weights, `float32` or `bfloat16`.
        gradient_checkpointing: recompute activations in the backward pass, for memory.
        lr: peak learning rate.
        warmup_fraction: share of the steps over which the rate rises linearly.
        final_lr_fraction: last rate as a share of the peak.
        weight_decay: AdamW's.
        betas: AdamW's.
    """

    def __init__(
        self,
        model: str,
        output: str,
        method: Literal["lora", "full"] = "lora",
        lora_r: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.1,
        target_modules: tuple[str, ...] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        lr: float = 2e-5,
        warmup_fraction: float = 0.05,
        final_lr_fraction: float = 0.0,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(lr, warmup_fraction, final_lr_fraction, weight_decay, betas)
        check_model_source(model)
        self.save_hyperparameters()
        self.model = None
        self.opening_metrics = MetricCollection(
            {"precision": BinaryPrecision(), "recall": BinaryRecall(), "f1": BinaryF1Score()},
            prefix="val/",
        )

    @property
    def strict_loading(self) -> bool:
        return False  # checkpoints hold trainable weights only; `on_load_checkpoint` is the check

    output_kind = OUTPUT_KIND
    can_be_sharded = True  # by FSDP; `on_fit_end` gathers the weights

    def setup(self, stage: str) -> None:
        h = self.hparams
        self.subset_nll = GroupedMean(len(self.trainer.datamodule.subsets))
        if self.is_sharded and (h.method, h.dtype) == ("lora", "bfloat16"):
            raise ValueError(
                "fsdp shards weights of one dtype, and adapters are float32: use --model.dtype float32"
            )

    @on_cpu()  # the adapters' first weights too
    def configure_model(self) -> None:
        if self.model is None:
            self.tokenizer = load_tokenizer(self.hparams.model)
            self.model = self._build()

    def _build(self) -> PreTrainedModel | PeftModel:
        """The base model, with new adapters where there are any, in training mode."""
        h = self.hparams
        model = load_model(h.model, h.dtype)
        if h.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        if h.method == "lora":
            from peft import LoraConfig, get_peft_model

            family = family_of(model.config)
            targets = family.lora_targets if h.target_modules is None else h.target_modules
            check_target_modules(model, targets)
            config = LoraConfig(
                r=h.lora_r,
                lora_alpha=h.lora_alpha,
                lora_dropout=h.lora_dropout,
                target_modules=list(targets),
                exclude_modules=family.lora_excluded,
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, config)
        return model.train()

    def causal_model(self):
        return self.model.get_base_model() if self.hparams.method == "lora" else self.model

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        labels_BT = batch["labels"]
        logits_NV, labels_N = supervised_logits(
            self.causal_model(), batch["input_ids"], batch["attention_mask"], labels_BT
        )
        nll_N = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
        self.update_loss(nll_N)
        supervised = labels_BT[:, 1:] != IGNORE
        self.subset_nll.update(batch["subset"][supervised.nonzero()[:, 0]], nll_N)
        if not self.opening_tokens:
            return
        # Row of `logits_NV` that predicts each example's first target token.
        row_of = (supervised.flatten().cumsum(0) - 1).view_as(supervised)
        first_B = row_of.gather(1, batch["target_start"][:, None] - 1).squeeze(1)
        tokens = torch.tensor(self.opening_tokens, device=logits_NV.device)
        opened_B = torch.isin(logits_NV[first_B].argmax(-1), tokens)
        self.opening_metrics.update(opened_B.long(), batch["positive"].long())

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        nll_S = self.subset_nll.compute()
        known_S = nll_S[
            ~nll_S.isnan()
        ]  # nan: no validation example of the subset, or one that diverged
        self.log("val/worst_loss", known_S.max().float() if len(known_S) else torch.nan)
        self.subset_nll.reset()
        if self.opening_tokens:
            self.log_dict(self.opening_metrics.compute(), prog_bar=True)
            self.opening_metrics.reset()

    def trainable_keys(self) -> set[str]:
        return {
            name.replace("_fsdp_wrapped_module.", "")
            for name, p in self.named_parameters()
            if p.requires_grad
        }

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, **kwargs: Any) -> None:
        if self.is_sharded and gradient_clip_val:
            self.trainer.model.clip_grad_norm_(gradient_clip_val)  # a shard does not know the norm
        else:
            self.clip_gradients(optimizer, gradient_clip_val, **kwargs)

    @property
    def is_sharded(self) -> bool:
        return isinstance(self.trainer.strategy, FSDPStrategy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = self.trainable_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = {(name, value.shape) for name, value in checkpoint["state_dict"].items()}
        own = {(name, p.shape) for name, p in self.named_parameters() if p.requires_grad}
        if differing := sorted({name for name, _ in own ^ found}):
            raise ValueError(
                f"the checkpoint's trainable weights are not this model's: {len(differing)} differ, "
                f"for example {differing[0]!r}; resume with the configuration it was trained with"
            )

    def on_fit_start(self) -> None:
        check_finite(self.named_parameters(), f"the weights of {self.hparams.model} are no numbers")
        context, data = family_of(self.model.config).context, self.trainer.datamodule
        for name, examples in data.splits.items():
            check_context(examples, data.tokens[name], context)
        positives = [e.target for e in data.splits["train"] if data.task.is_positive(e)]
        positives += [e.target for e in data.splits["validation"] if data.task.is_positive(e)]
        self.opening_tokens = []
        if data.task.opening:
            if not positives:
                raise ValueError(
                    f"no target begins with the task's opening {data.task.opening!r}: leave it out, or give "
                    "the text that answers begin with"
                )
            self.opening_tokens = opening_tokens(self.tokenizer, positives)
        for callback in self.trainer.callbacks if not self.opening_tokens else ():
            monitor = getattr(callback, "monitor", None)
            if monitor in ("val/f1", "val/precision", "val/recall") and getattr(
                callback, "strict", True
            ):
                raise ValueError(
                    f"{type(callback).__name__} monitors {monitor}, which a task without an opening does not "
                    "have: monitor val/loss (mode: min), or give the task an opening"
                )

    def on_fit_end(self) -> None:
        # Of all processes: each may hold a part only.
        weights = self.trainer.strategy.lightning_module_state_dict() if self.is_sharded else {}
        if self.trainer.is_global_zero:
            model = self._build() if self.is_sharded else self.model
            weights = {n.removeprefix("model."): w for n, w in (weights | self._best()).items()}
            model.load_state_dict(weights, strict=False)
            check_trained(self.trainer, model)
            self._export(model)
        self.trainer.strategy.barrier()

    def _best(self) -> dict[str, Tensor]:
        """The trained weights of the best checkpoint; none where the last are to be kept."""
        callback = self.trainer.checkpoint_callback
        if callback is None or not (callback.monitor and callback.best_model_path):
            return {}
        best = torch.load(callback.best_model_path, map_location="cpu", weights_only=True)
        return best["state_dict"]

    def _export(self, model: PreTrainedModel | PeftModel) -> None:
        """Adapter and merged model beside the data that `FinetuneData` has staged, all of it at once."""
        output, merged = self.hparams.output, model
        folder = files.staged_output(output)
        if not folder.is_dir():  # the data are of another kind, or kept elsewhere
            files.start_output(output, self.output_kind)
        if self.hparams.method == "lora":
            model.save_pretrained(folder / "adapter")
            merged = model.merge_and_unload()
        merged.save_pretrained(folder / "merged")
        self.tokenizer.save_pretrained(folder / "merged")
        finish_output(self.trainer, output)
