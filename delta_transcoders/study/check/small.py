"""A stage made small: the options that do it, and how much more work the real one is.

Models, widths, layers, conditions and batch sizes stay, so that memory and the time of a batch are the real
ones'; what shrinks is how many there are.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta_transcoders.command import defaults_of
from delta_transcoders.study.plan import Graph, Step

N_PROMPTS, N_OF_HALVES = 5, 8
"""Evaluation prompts of a subset; more where one half of the wordings chooses and the other is scored."""
N_STEPS, N_BATCHES, N_OF_PHASE = 2, 4, 3
"""Of a training, at least, and steps of each phase of one that has several."""
N_TEXTS, N_HELD_OUT, N_EVALUATION = 64, 32, 24
"""Examples that are trained on at least, held out, and made for evaluation: enough for a task that is read by
parts of its subsets."""
N_DOCUMENTS = 600
N_CHECKED = 16
PASSES = 4
MAX_NEW_TOKENS = 16
"""A model after two steps does not know when to stop; a finetuned one does, after about as many tokens."""
N_DRAWS = 2

CHOOSE_ON_HALF = (
    *("FeatureRanking", "FeatureCurve", "FeatureDeletion", "ComponentDeletion"),
    *("WeightBaselines", "Removal"),
)
FROM_CACHE = ("ActivationData", "DeltaData", "MLPDifferenceData", "CorrectionData")


@dataclass(frozen=True)
class Small:
    """
    Attributes:
        kind: `evaluation`, `capture`, `training`, or `from_cache`, a training on cached activations.
        options: of the stage, for the command line.
        factor: of evaluations and captures, the real number of rows over that of the small one.
        batches: that the real stage trains on; from a cache its length decides.
        validations: of the real stage.
        held_out: the real number of held-out examples over that of the small one.
        tokens_per_batch, passes, buffer_tokens: of a training from a cache.
    """

    kind: str
    options: dict[str, Any]
    factor: float = 1.0
    batches: int = 0
    validations: float = 1.0
    held_out: float = 1.0
    tokens_per_batch: int = 1
    passes: int = 1
    buffer_tokens: int = 0


class Values(dict):
    """Options of a stage as they are given, and of its classes as they are by default."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        for part in ("model", "data"):
            defaults = defaults_of(values.get(f"{part}.class_path", ""))
            for name, value in defaults.items():
                self.setdefault(f"{part}.{name}", value)

    def kind(self, part: str) -> str:
        return self.get(f"{part}.class_path", "").rpartition(".")[2]


def small(step: Step, graph: Graph) -> Small:
    """What makes a stage of train.py or evaluate.py small."""
    values = Values(step.config.values)
    options: dict[str, Any] = {}
    if "model.max_new_tokens" in values:
        options["model.max_new_tokens"] = min(values["model.max_new_tokens"], MAX_NEW_TOKENS)
    kind = values.kind("data")
    if kind in FROM_CACHE:
        if graph.maker(values.get("data.base_transcoders") or ""):
            options["data.require_site"] = False  # a few steps make no dictionary that fits
        return _from_cache(values, options)
    if step.stage.run == "train":
        return _training(values, options, graph)
    if kind == "ActivationTexts":
        return _capture(values, options, graph)
    return _evaluation(values, options, graph)


def _training(values: Values, options: dict[str, Any], graph: Graph) -> Small:
    """Of a language model, or of deltas or weights through one."""
    accumulate = values.get("trainer.accumulate_grad_batches", 1)
    batch = values.get("data.batch_size", 1)
    steps = max(N_STEPS, math.ceil(N_BATCHES / accumulate))
    every = steps * accumulate
    if values.kind("model") == "EndToEndDelta":
        # A phase for each number of features; its first batch chooses them.
        every = N_OF_PHASE
        steps = every * (1 + len(values["model.budgets"]))
    options |= {
        "trainer.max_steps": steps,
        "trainer.val_check_interval": every,
        "trainer.check_val_every_n_epoch": None,  # an epoch may be shorter than that
    }
    n_train, held_out = values.get("data.n_train") or values.get("data.n_documents"), 1.0
    if values.kind("data") in ("FinetuneData", "BaseTextData"):
        name = "data.n_train" if values.kind("data") == "FinetuneData" else "data.n_documents"
        least = N_TEXTS if name == "data.n_train" else N_DOCUMENTS
        options[name] = min(values[name], max(least, batch * every))
        options["data.n_validation"] = min(values["data.n_validation"], N_HELD_OUT)
        held_out = values["data.n_validation"] / max(1, options["data.n_validation"])
        if name == "data.n_train":
            options["data.n_evaluation"] = min(values["data.n_evaluation"], N_EVALUATION)
    elif made := _maker_of(values.get("data.validation"), graph):
        n_train = n_train or made["data.n_train"]
        n = values["data.n_validation"] or made["data.n_validation"]
        held_out = n / min(n, N_HELD_OUT)
    epoch = math.ceil((n_train or batch) / batch)
    batches = values.get("trainer.max_steps", -1) * accumulate
    if batches < 0:
        batches = values.get("trainer.max_epochs", 1) * epoch
    return Small(
        "training",
        options,
        batches=batches,
        validations=_validations(values, batches, epoch),
        held_out=held_out,
    )


def _validations(values: Values, batches: int, epoch: int) -> float:
    """
    >>> _validations(Values({"trainer.val_check_interval": 50}), 200, 1000)
    4.0
    >>> _validations(Values({"trainer.val_check_interval": 0.1}), 2000, 1000)
    20.0
    """
    every = values.get("trainer.val_check_interval", 1.0)
    return batches / every if isinstance(every, int) else batches / epoch / every


def _from_cache(values: Values, options: dict[str, Any]) -> Small:
    every = values.get("trainer.val_check_interval", 1.0)
    options |= {"data.passes": PASSES, "trainer.val_check_interval": 1.0}
    if "data.n_check_examples" in values:
        options["data.n_check_examples"] = min(values["data.n_check_examples"], N_CHECKED)
    return Small(
        "from_cache",
        options,
        validations=1 / every if isinstance(every, float) else 10,
        tokens_per_batch=values["data.batch_tokens"],
        passes=values["data.passes"],
        buffer_tokens=values["data.buffer_tokens"],
    )


def _capture(values: Values, options: dict[str, Any], graph: Graph) -> Small:
    real, small_ = 0, 0
    splits = {"data.n_train": ("train", N_TEXTS), "data.n_validation": ("validation", N_HELD_OUT)}
    for name, (split, few) in splits.items():
        n = values.get(name) or _n_examples(values.get("data.examples"), split, graph) or few
        options[name] = min(n, few)
        real, small_ = real + n, small_ + options[name]
    return Small("capture", options, factor=real / small_)


def _n_examples(folder: str | None, split: str, graph: Graph) -> int | None:
    """Examples of a split that a stage of this study generates, or that lie in a folder."""
    values = _maker_of(folder, graph)
    if values is not None:
        return values.get(f"data.n_{split}")
    return None if folder is None else _n_lines(f"{folder}/{split}.jsonl")


def _maker_of(path: str | None, graph: Graph) -> Values | None:
    maker = graph.maker(path) if path else ""
    values = Values(graph.steps[maker].config.values) if maker else None
    return values if values and "data.n_evaluation" in values else None


def _n_lines(path: str) -> int | None:
    try:
        return len(Path(path).read_text(encoding="utf-8").splitlines())
    except OSError:
        return None


def _largest_subset(path: str | None) -> int | None:
    """Examples in the largest subset of a file."""
    try:
        rows = [json.loads(line) for line in Path(path or "").read_text("utf-8").splitlines()]
        return max(Counter(row.get("subset", row.get("label")) for row in rows).values())
    except (OSError, ValueError, AttributeError):  # no file yet, or one that its stage will refuse
        return None


def _evaluation(values: Values, options: dict[str, Any], graph: Graph) -> Small:
    factor = 1.0
    if "data.n_per_subset" in values:
        few = N_OF_HALVES if values.kind("model") in CHOOSE_ON_HALF else N_PROMPTS
        made = _maker_of(values.get("data.jsonl"), graph)
        there = made["data.n_evaluation"] if made else _largest_subset(values.get("data.jsonl"))
        known = [n for n in (values["data.n_per_subset"], there) if n]
        n = min(known) if known else few
        options["data.n_per_subset"] = min(n, few)
        factor = n / options["data.n_per_subset"]
    for name in ("model.n_draws", "model.n_random"):
        if name in values:
            # Of a deletion matrix one for each rule.
            options[name] = min(values[name], max(N_DRAWS, len(values.get("model.rules", ()))))
            factor *= (1 + values[name]) / (1 + options[name])
    layers = values.get("model.layers")
    if values.kind("model") == "FeatureRanking" and values["model.first"] is None and layers:
        options["model.layers"] = layers[:1]
        factor *= len(layers)
    return Small("evaluation", options, factor=factor)
