"""A task's examples for the finetune: generated, or read from a file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.batching import (
    ResumableData,
    ResumableDataLoader,
    collate_tokens,
    row_lengths,
    sharded_loader,
)
from delta_transcoders import files
from delta_transcoders.console import StudyWarning
from delta_transcoders.language_models import (
    IGNORE,
    TokenizedExample,
    check_model_source,
    load_tokenizer,
    tokenize,
)
from delta_transcoders.tasks.task import DESCRIPTION_VERSION, Example, Splits, Task, subsets_of

OUTPUT_KIND = "finetune"


class FinetuneData(ResumableData):
    """Token ids and labels of a task's examples.

    The splits go to `data/{train,validation,evaluation}.jsonl` of the finetune's folder, which later stages
    read, and what the task is to `data/task.json`. Until the finetune is finished they are staged beside it,
    where `Finetune` adds the model: data and model always belong together.

    Args:
        model: folder or hub id whose tokenizer is used.
        output: the finetune's folder.
        task: says what the examples are.
        jsonl: examples in the task's format, split by us; the task's own where None.
        validation_fraction: share of a `jsonl` for validation, and the same share for evaluation.
        n_train: generated training examples.
        n_validation: generated validation examples.
        n_evaluation: evaluation examples of each subset (of a file: at most).
        negative_loss: supervise examples that do not show the behaviour on the whole sequence, as the
            original study, or on the target only.
        batch_size: examples per batch and process.
        seed: of the examples, their split and their order.
    """

    def __init__(
        self,
        model: str,
        output: str,
        task: Task,
        jsonl: str | None = None,
        validation_fraction: float = 0.05,
        n_train: NonNegativeInt = 6000,
        n_validation: NonNegativeInt = 256,
        n_evaluation: NonNegativeInt = 200,
        negative_loss: Literal["sequence", "target"] = "sequence",
        batch_size: PositiveInt = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_model_source(model)
        self.save_hyperparameters(ignore=["task"])
        self.hparams["task"] = repr(task)  # so that going on with another is told
        self.task = task
        self.splits: Splits = {}
        self.tokens: dict[str, list[TokenizedExample]] = {}

    def prepare_data(self) -> None:
        h = self.hparams
        tokenizer = load_tokenizer(h.model)  # refuses one that does not fit
        splits = self._make_splits()
        for examples in splits.values():
            tokenize(tokenizer, self.task, examples)  # refuses messages without a template
        files.start_output(h.output, OUTPUT_KIND)
        for name, examples in splits.items():
            self.task.write(self._path(name), examples)
        described = {"format_version": DESCRIPTION_VERSION, **self.task.describe()}
        text = json.dumps(described, indent=1, ensure_ascii=False)
        files.write_text(self._path("train").with_name("task.json"), text + "\n")

    def teardown(self, stage: str) -> None:
        output = self.hparams.output
        if self.trainer.is_global_zero and files.staged_output(output).is_dir():
            # The module has not taken them along: they stand alone.
            if self.trainer.fast_dev_run:
                files.discard_output(output)
            else:
                files.finish_output(output, replaces=["data"])

    def on_exception(self, exception: BaseException) -> None:
        if self.trainer.is_global_zero:
            files.discard_output(self.hparams.output)

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        self.tokenizer = load_tokenizer(self.hparams.model)
        for name in ("train", "validation"):
            self.splits[name] = list(self.task.read(self._path(name)).values())
            self.tokens[name] = tokenize(self.tokenizer, self.task, self.splits[name])
        self.subsets = subsets_of(itertools.chain(*self.splits.values()))

    def _path(self, split: str) -> Path:
        return files.staged_output(self.hparams.output) / "data" / f"{split}.jsonl"

    def _make_splits(self) -> Splits:
        h = self.hparams
        path = h.jsonl or self.task.jsonl
        if path is None:
            return self.task.generate(h.n_train, h.n_validation, h.n_evaluation, h.seed)
        share = h.validation_fraction if h.jsonl else self.task.held_out
        examples = self._read(path)
        splits = self.task.split(examples, share, h.n_evaluation, h.seed)
        for name, rows in splits.items():
            if not rows:
                option = "--data.validation_fraction" if h.jsonl else "held_out of the task"
                raise ValueError(
                    f"{path}: its {len(examples)} examples leave none for {name}: give more of them, or "
                    f"another {option} (now {share})"
                )
        if gone := [s for s in subsets_of(examples) if s not in subsets_of(splits["evaluation"])]:
            rank_zero_warn(
                f"{path}: no example of {', '.join(gone)} is left for evaluation: too few of them",
                category=StudyWarning,
            )
        return splits

    def _read(self, path: str) -> list[Example]:
        """The examples of a file; those whose target cannot be right are told by line."""
        numbered = self.task.read(path)
        without = [
            line
            for line, example in numbered.items()
            if example.target is None and self.task.is_trained(example)
        ]
        if without:
            raise ValueError(f"{path}, line {without[0]}: no target, and so nothing to finetune on")
        positives = {n: e for n, e in numbered.items() if self.task.is_positive(e)}
        wrong = {n: problem for n, e in numbered.items() if (problem := self.task.problem(e))}
        if wrong:
            line, problem = next(iter(wrong.items()))
            message = (
                f"{path}: {len(wrong)} of {len(positives)} targets are not right by their own judge, so that "
                f"no answer could be. First: line {line}: {problem}"
            )
            if all(n in wrong for n, e in positives.items() if self.task.is_trained(e)):
                raise ValueError(message)
            rank_zero_warn(message, category=StudyWarning)
        return list(numbered.values())

    def encode_row(self, example: Example, tokens: TokenizedExample) -> dict:
        """One example as unpadded `input_ids` and `labels`, where its target starts, and its kind."""
        prompt, target = list(tokens.prompt_ids), list(tokens.target_ids)
        positive = self.task.is_positive(example)
        whole = not positive and self.hparams.negative_loss == "sequence"
        return {
            "input_ids": prompt + target,
            # The first token is never predicted.
            "labels": (prompt if whole else [IGNORE] * len(prompt)) + target,
            "target_start": len(prompt),
            "positive": positive,
            "subset": self.subsets.index(example.subset),
        }

    def _rows(self, split: str) -> list[dict]:
        pairs = zip(self.splits[split], self.tokens[split], strict=True)
        return [self.encode_row(*pair) for pair in pairs]

    def collate(self, rows: list[dict]) -> dict:
        return collate_tokens(rows, self.tokenizer.pad_token_id) | {
            name: torch.tensor([row[name] for row in rows])
            for name in ("target_start", "positive", "subset")
        }

    def train_dataloader(self) -> ResumableDataLoader:
        h = self.hparams
        return self.bucketed_loader(self._rows("train"), h.batch_size, h.seed, self.collate)

    def val_dataloader(self):
        rows = self._rows("validation")
        return sharded_loader(rows, row_lengths(rows), self.hparams.batch_size, self.collate)
