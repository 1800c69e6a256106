"""What the model writes while it learns, in TensorBoard's text tab."""

from __future__ import annotations

from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import end_ids
from delta_transcoders.tasks.task import subsets_of
from lightning_modules.loggers import tensorboards


class GeneratedTexts(Callback):
    """After each validation, greedy answers to the first validation prompts of each subset.

    For a `Finetune` fed by `FinetuneData`.

    Args:
        n_prompts: prompts of each subset.
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
        data = trainer.datamodule
        examples, tokens = data.splits["validation"], data.tokens["validation"]
        shown = []
        for subset in subsets_of(examples):
            shown += [i for i, e in enumerate(examples) if e.subset == subset][: self.n_prompts]
        model = pl_module.causal_model()
        was_training = model.training
        model.eval()
        prompts = [tokens[i].prompt_ids for i in shown]
        ends = end_ids(data.hparams.model, data.tokenizer)
        reader = AnswerReader(data.tokenizer, data.task, ends, examples)
        texts = greedy_texts(model, prompts, self.max_new_tokens, reader)
        model.train(was_training)
        rows = []
        for i, text in zip(shown, texts, strict=True):
            cells = (examples[i].prompt_record, examples[i].target, text)
            rows.append(f"| {' | '.join(map(_cell, cells))} |")
        table = "\n".join(["| prompt | target | generated |", "| --- | --- | --- |", *rows])
        for tensorboard in tensorboards(trainer):
            tensorboard.add_text("val/generated", table, trainer.global_step)


def _cell(value: object) -> str:
    """As a cell of a Markdown table, to the letter but for line breaks and what would end the cell."""
    text = str(value).rstrip("\n").replace("\n", "⏎").replace("`", "'").replace("|", "¦")
    return f"`{text}`"
