"""What the model writes while it learns, in TensorBoard's text tab."""

from __future__ import annotations

from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from delta_transcoders.generation import greedy_texts
from lightning_modules.loggers import tensorboards


class GeneratedTexts(Callback):
    """After each validation, greedy answers to the first validation prompts of each kind.

    For a `ToolFinetune` fed by `ToolCallData`.

    Args:
        n_prompts: prompts of each label.
        max_new_tokens: per answer.
    """

    def __init__(self, n_prompts: PositiveInt = 3, max_new_tokens: PositiveInt = 48) -> None:
        self.n_prompts = n_prompts
        self.max_new_tokens = max_new_tokens

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The first process alone cannot run a model of which it holds a part.
        if trainer.sanity_checking or not tensorboards(trainer) or pl_module.is_sharded:
            return
        validation = trainer.datamodule.splits["validation"]
        shown = [
            example
            for label in ("positive", "negative")
            for example in [e for e in validation if e.label == label][: self.n_prompts]
        ]
        model = pl_module.causal_model()
        was_training = model.training
        model.eval()
        prompts = [e.prompt for e in shown]
        texts = greedy_texts(model, pl_module.tokenizer, prompts, self.max_new_tokens)
        model.train(was_training)
        rows = [
            f"| `{e.input}` | `{e.target}` | `{text}` |"
            for e, text in zip(shown, texts, strict=True)
        ]
        table = "\n".join(["| prompt | target | generated |", "| --- | --- | --- |", *rows])
        for tensorboard in tensorboards(trainer):
            tensorboard.add_text("val/generated", table, trainer.global_step)
