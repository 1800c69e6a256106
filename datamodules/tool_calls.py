"""Prompt–target examples for the finetune: generated, or read from JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.batching import (
    ResumableData,
    ResumableDataLoader,
    check_positive,
    collate_tokens,
    row_lengths,
    sharded_loader,
)
from delta_transcoders import files
from delta_transcoders.console import StudyWarning
from delta_transcoders.language_models import IGNORE, check_model_source, encode, load_tokenizer
from delta_transcoders.tasks.calculator import copy_lines
from delta_transcoders.tasks.calculator.grammar import unjudgeable
from delta_transcoders.tasks.calculator.prompts import generate_splits
from delta_transcoders.tasks.examples import (
    Example,
    read_jsonl,
    read_numbered_jsonl,
    split_examples,
    write_jsonl,
)

OUTPUT_KIND = "finetune"


class ToolCallData(ResumableData):
    """Token ids and labels of calculator requests (positives) and lines to copy (negatives).

    The splits go to `data/{train,validation,evaluation}.jsonl` of the finetune's folder, which later stages
    read. Until the finetune is finished they are staged beside it, where `ToolFinetune` adds the model: data
    and model always belong together.

    Args:
        model: folder or hub id whose tokenizer is used.
        output: the finetune's folder.
        jsonl: examples in the original study's format, split by us; generated where None.
        validation_fraction: of a `jsonl`, by distinct targets.
        n_train: generated training examples, half positive.
        n_validation: generated validation examples, half positive.
        n_evaluation: evaluation examples of each subset (from a `jsonl`: at most; `tool_ood` and
            `tool_ood_numbers` are generated where it holds none).
        copy_source: where generated negatives come from.
        copy_file: text file of lines, for `copy_source: file`.
        copy_dataset: hub id of a text dataset, for `copy_source: hub`.
        copy_dataset_name: its configuration.
        negative_loss: supervise negatives on the whole sequence, as the original, or on the target only.
        batch_size: examples per batch and process.
        seed: of the examples, their split and their order.
    """

    def __init__(
        self,
        model: str,
        output: str,
        jsonl: str | None = None,
        validation_fraction: float = 0.05,
        n_train: int = 6000,
        n_validation: int = 256,
        n_evaluation: int = 200,
        copy_source: Literal["synthetic", "file", "hub"] = "synthetic",
        copy_file: str | None = None,
        copy_dataset: str | None = None,
        copy_dataset_name: str | None = None,
        negative_loss: Literal["sequence", "target"] = "sequence",
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_model_source(model)
        check_positive(batch_size=batch_size)
        needed = {"file": copy_file, "hub": copy_dataset, "synthetic": ""}[copy_source]
        if needed is None:
            option = "copy_file" if copy_source == "file" else "copy_dataset"
            raise ValueError(f"copy_source: {copy_source} needs {option}")
        self.save_hyperparameters()
        self.splits: dict[str, list[Example]] = {}

    def prepare_data(self) -> None:
        load_tokenizer(
            self.hparams.model
        )  # refuses one that does not fit, before anything is written
        splits = self._make_splits()
        files.start_output(self.hparams.output, OUTPUT_KIND)
        for name, examples in splits.items():
            write_jsonl(self._path(name), examples)

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
        self.splits = {name: read_jsonl(self._path(name)) for name in ("train", "validation")}

    def _path(self, split: str) -> Path:
        return files.staged_output(self.hparams.output) / "data" / f"{split}.jsonl"

    def _make_splits(self) -> dict[str, list[Example]]:
        h = self.hparams
        generated = generate_splits(
            n_train=0 if h.jsonl else h.n_train,
            n_validation=0 if h.jsonl else h.n_validation,
            n_evaluation=h.n_evaluation,
            copy_lines=copy_lines.synthetic_lines(h.seed) if h.jsonl else self._copy_lines(),
            seed=h.seed,
        )
        splits = generated if h.jsonl is None else self._split_jsonl(generated["evaluation"])
        for name, examples in splits.items():
            labels = {e.label for e in examples}
            for label in ("positive", "negative"):
                if label not in labels:
                    raise ValueError(
                        f"the {name} split holds no {label} example "
                        f"({h.jsonl or 'generated'}, {len(examples)} examples)"
                    )
        return splits

    def _split_jsonl(self, generated: list[Example]) -> dict[str, list[Example]]:
        h = self.hparams
        examples = self._read_jsonl()
        fraction = h.validation_fraction
        evaluation, validation, train = split_examples(examples, [fraction, fraction], h.seed)
        used = {part for e in (*train, *validation) for part in e.identity}
        kept: list[Example] = []
        for label in dict.fromkeys(e.label for e in generated):
            own = [e for e in evaluation if e.label == label]
            if label.startswith("tool_ood") and not own:
                own = [e for e in generated if e.label == label and used.isdisjoint(e.identity)]
            kept += own[: h.n_evaluation]
        trained = [e for e in train if e.label in ("positive", "negative")]
        checked = [e for e in validation if e.label in ("positive", "negative")]
        return {"train": trained, "validation": checked, "evaluation": kept}

    def _read_jsonl(self) -> list[Example]:
        """The given examples; calls that no answer can be judged against are told by line."""
        path, numbered = self.hparams.jsonl, read_numbered_jsonl(self.hparams.jsonl)
        calls = {n: e for n, e in numbered.items() if e.label != "negative"}
        bad = {n: problem for n, e in calls.items() if (problem := unjudgeable(e.target))}
        if bad:
            line, problem = next(iter(bad.items()))
            message = (
                f"{path}: {len(bad)} of {len(calls)} targets are no call that the calculator reads, so "
                f"that no answer can be judged. First: line {line}: {problem}"
            )
            if all(n in bad for n, e in calls.items() if e.label == "positive"):
                raise ValueError(message)
            message += ". The others are what math_correct_rate will be over"
            rank_zero_warn(message, category=StudyWarning)
        return list(numbered.values())

    def _copy_lines(self) -> Iterator[str]:
        h = self.hparams
        if h.copy_source == "file":
            return copy_lines.file_lines(h.copy_file)
        if h.copy_source == "hub":
            return copy_lines.hub_lines(h.copy_dataset, h.copy_dataset_name)
        return copy_lines.synthetic_lines(h.seed)

    def encode_row(self, example: Example) -> dict:
        """One example as unpadded `input_ids` and `labels`, and where its target starts."""
        prompt, target = encode(self.tokenizer, example)
        whole = example.label == "negative" and self.hparams.negative_loss == "sequence"
        return {
            "input_ids": prompt + target,
            # The first token is BOS and never predicted.
            "labels": (prompt if whole else [IGNORE] * len(prompt)) + target,
            "target_start": len(prompt),
            "positive": example.label == "positive",
        }

    def collate(self, rows: list[dict]) -> dict:
        return collate_tokens(rows, self.tokenizer.pad_token_id) | {
            "target_start": torch.tensor([row["target_start"] for row in rows]),
            "positive": torch.tensor([row["positive"] for row in rows]),
        }

    def train_dataloader(self) -> ResumableDataLoader:
        rows = [self.encode_row(e) for e in self.splits["train"]]
        h = self.hparams
        return self.bucketed_loader(rows, h.batch_size, h.seed, self.collate)

    def val_dataloader(self):
        rows = [self.encode_row(e) for e in self.splits["validation"]]
        return sharded_loader(rows, row_lengths(rows), self.hparams.batch_size, self.collate)
