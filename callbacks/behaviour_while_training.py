"""Behaviour coming back while a delta learns, as curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.dictionaries.files.gemma_scope import load_base
from delta_transcoders.fingerprints import check_hash, model_fingerprint, tokenizer_fingerprint
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import RAW, Intervention, from_spec
from delta_transcoders.interventions.sources import DictionarySource, Source
from delta_transcoders.language_models import (
    check_context,
    check_model_source,
    load_model,
    load_tokenizer,
)
from delta_transcoders.tasks.calculator.grammar import judge
from delta_transcoders.tasks.examples import read_jsonl
from lightning_modules.delta_transcoder import DeltaTranscoderTraining
from lightning_modules.loggers import log_scalars


class BehaviourWhileTraining(Callback):
    """Every so many validations, `full` with the present deltas of all trained layers together.

    Logs `val/behaviour/tool_call_rate` and `val/behaviour/mean_ce` on prompts of the subset `tool`, and
    once `val/behaviour/raw/…`, the same for the untouched model. For a `DeltaTranscoderTraining` with
    one d_new and one base per layer. The training is the same with and without it; rank zero holds the
    model and the base dictionaries beside it, and the other ranks wait.

    Args:
        model: folder or hub id of the finetuned model, adapters merged.
        base_transcoders: folder or hub id of the base dictionaries.
        examples: JSONL of held-out examples.
        n_prompts: first so many of `tool`.
        every_n_validations: validations from one measurement to the next.
        max_new_tokens: longest answer.
        dtype: of the model's weights, as when its activations were captured.
    """

    def __init__(
        self,
        model: str,
        base_transcoders: str,
        examples: str,
        n_prompts: int = 32,
        every_n_validations: int = 1,
        max_new_tokens: int = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        check_model_source(model)
        for name, value in (
            ("n_prompts", n_prompts),
            ("every_n_validations", every_n_validations),
            ("max_new_tokens", max_new_tokens),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.model = model
        self.base_transcoders = base_transcoders
        self.n_prompts = n_prompts
        self.every_n_validations = every_n_validations
        self.max_new_tokens = max_new_tokens
        self.dtype = dtype
        self.examples = [e for e in read_jsonl(examples) if e.subset == "tool"][:n_prompts]
        if not self.examples:
            raise ValueError(f"{examples} holds no example of the subset 'tool'")
        self.n_validations = 0
        self.engine: InterventionEngine | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"n_validations": self.n_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n_validations = state_dict["n_validations"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, DeltaTranscoderTraining):
            raise ValueError(
                f"BehaviourWhileTraining is for DeltaTranscoderTraining, not {type(pl_module).__name__}"
            )
        widths, keys = list(pl_module.hparams.d_new), trainer.datamodule.base_keys
        if len(widths) != 1 or len(keys) != 1:
            raise ValueError(
                "BehaviourWhileTraining needs one d_new and one percentile, this run has d_new "
                f"{widths} and bases {keys}"
            )
        if stage == "fit" and trainer.is_global_zero:
            with isolate_rng():
                self._load(trainer)

    def _load(self, trainer: Trainer) -> None:
        """The engine with its base dictionaries, refusing what the cache was not made with."""
        data, device = trainer.datamodule, trainer.strategy.root_device
        tokenizer, model = load_tokenizer(self.model), load_model(self.model, self.dtype)
        context = model.config.max_position_embeddings
        check_context(tokenizer, self.examples, context, self.max_new_tokens)
        meta, found = data.cache.meta, model_fingerprint(model)
        data.cache.expect(tokenizer_fingerprint=tokenizer_fingerprint(tokenizer))
        problem = f"the cache {data.cache.folder} is of another model"
        check_hash(problem, meta.model_fingerprint, f"{self.model} in {self.dtype}", found)
        bases: dict[int, Source] = {}
        for layer in data.layers:
            expected = data.base_id(layer, data.base_keys[0])
            base, base_id = load_base(
                self.base_transcoders,
                layer,
                width=expected.width,
                average_l0=expected.average_l0,
                d_model=meta.d_in,
            )
            problem = f"the deltas are trained on another base, {expected.path}"
            check_hash(problem, expected.hash, base_id.path, base_id.hash)
            bases[layer] = DictionarySource(base).to(device)
        bridge = boot_bridge(model.to(device), tokenizer)
        self.engine = InterventionEngine(bridge, tokenizer, {"base": bases}, meta.hook_site)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.loggers or trainer.state.fn != "fit":
            return
        self.n_validations += 1
        if self.n_validations % self.every_n_validations:
            return
        measured = {"": self.measure(pl_module)}
        if self.n_validations == self.every_n_validations:
            measured["raw/"] = self._scores(RAW)
        for where, scores in measured.items():
            log_scalars(trainer, {f"val/behaviour/{where}{k}": v for k, v in scores.items()})

    def measure(self, module: DeltaTranscoderTraining) -> dict[str, float]:
        """`tool_call_rate` and `mean_ce` of `full` with the module's present weights."""
        layers = module.trainer.datamodule.layers
        (stack,) = module.stacks.values()
        deltas = {
            layers[variant.layer]: DictionarySource(stack.export(v))
            for v, variant in enumerate(stack.variants)
        }
        self.engine.bank = {"base": self.engine.bank["base"], "delta": deltas}
        return self._scores(from_spec("full", layers))

    def _scores(self, intervention: Intervention) -> dict[str, float]:
        interventions: Sequence[Intervention] = [intervention] * len(self.examples)
        with isolate_rng():
            scores = self.engine.teacher_forced(self.examples, interventions)
            prompts = [e.prompt for e in self.examples]
            texts = self.engine.generate(prompts, interventions, self.max_new_tokens)
        pairs = zip(texts, self.examples, strict=True)
        called = [judge(text, example.target).called for text, example in pairs]
        return {
            "tool_call_rate": sum(called) / len(called),
            "mean_ce": sum(s.nll for s in scores) / sum(s.n_tokens for s in scores),
        }

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.engine = None  # a model and all base dictionaries
