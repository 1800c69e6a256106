"""Behaviour coming back while a delta learns, as curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.dictionaries.bases import entry_of, load_base
from delta_transcoders.families import family_of
from delta_transcoders.fingerprints import check_hash, model_fingerprint, tokenizer_fingerprint
from delta_transcoders.generation import AnswerReader
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import RAW, Intervention, from_spec
from delta_transcoders.interventions.sources import DictionarySource, Source
from delta_transcoders.language_models import (
    check_context,
    check_model_source,
    end_ids,
    load_model,
    load_tokenizer,
    tokenize,
)
from delta_transcoders.metrics.pooling import behaviour_cells, measures_of
from delta_transcoders.tasks.task import Task, subsets_of
from lightning_modules.delta_transcoder import DeltaTranscoderTraining
from lightning_modules.loggers import log_scalars


class BehaviourWhileTraining(Callback):
    """Every so many validations, `full` with the present deltas of all trained layers together.

    Logs `behaviour/…`: `mean_ce`, `dce` (nats a token, to the untouched model) and the rates of the task's
    measures on prompts of one subset, and `behaviour/raw/…`, the same for the untouched model, measured once.
    For a `DeltaTranscoderTraining` with one d_new and one base per layer. The training is the same with and
    without it; rank zero holds the model and the base dictionaries beside it, and the other ranks wait.

    Args:
        model: folder or hub id of the finetuned model, adapters merged.
        base_transcoders: folder or hub id of the base dictionaries.
        task: reads and judges the examples.
        examples: file of held-out examples.
        subset: the one that is asked; the file's first where None.
        n_prompts: first so many of it.
        every_n_validations: validations from one measurement to the next.
        max_new_tokens: longest answer.
        dtype: of the model's weights, as when its activations were captured.
    """

    def __init__(
        self,
        model: str,
        base_transcoders: str,
        task: Task,
        examples: str,
        subset: str | None = None,
        n_prompts: PositiveInt = 32,
        every_n_validations: PositiveInt = 1,
        max_new_tokens: PositiveInt = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        check_model_source(model)
        self.model = model
        self.base_transcoders = base_transcoders
        self.n_prompts = n_prompts
        self.every_n_validations = every_n_validations
        self.max_new_tokens = max_new_tokens
        self.dtype = dtype
        self.task = task
        held = list(task.read(examples).values())
        subset = subset or held[0].subset
        self.examples = [e for e in held if e.subset == subset][:n_prompts]
        if not self.examples:
            raise ValueError(
                f"{examples} holds no example of the subset {subset!r}; it has {', '.join(subsets_of(held))}"
            )
        self.n_validations = 0
        self.engine: InterventionEngine | None = None
        self.raw: dict[str, float] = {}

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
        measures = self.task.verdicts("", self.examples[0])
        names = ["mean_ce", *(f"{measure}_rate" for measure in measures)]
        charts = {n: ["Multiline", [f"behaviour/{n}$", f"behaviour/raw/{n}$"]] for n in names}
        pl_module.charts["behaviour"] = charts
        if stage == "fit" and trainer.is_global_zero:
            with isolate_rng():
                self._load(trainer)

    def _load(self, trainer: Trainer) -> None:
        """The engine with its base dictionaries, refusing what the cache was not made with."""
        data, device = trainer.datamodule, trainer.strategy.root_device
        tokenizer, model = load_tokenizer(self.model), load_model(self.model, self.dtype)
        context = family_of(model.config).context
        self.tokens = tokenize(tokenizer, self.task, self.examples)
        ends = end_ids(self.model, tokenizer)
        self.reader = AnswerReader(tokenizer, self.task, ends, self.examples)
        check_context(self.examples, self.tokens, context, self.max_new_tokens)
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
                files=entry_of(self.base_transcoders, expected.path).path,
                d_model=meta.d_in,
            )
            problem = f"the deltas are trained on another base, {expected.path}"
            check_hash(problem, expected.hash, base_id.path, base_id.hash)
            bases[layer] = DictionarySource(base, base_id.leading).to(device)
        bridge = boot_bridge(model.to(device), tokenizer)
        self.engine = InterventionEngine(bridge, tokenizer, {"base": bases}, meta.hook_site)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.loggers or trainer.state.fn != "fit":
            return
        self.n_validations += 1
        if self.n_validations % self.every_n_validations:
            return
        self.raw = self.raw or self._scores(RAW)
        ours = self.measure(pl_module)
        ours["dce"] = ours["mean_ce"] - self.raw["mean_ce"]
        scalars = {f"behaviour/{name}": value for name, value in ours.items()}
        scalars |= {f"behaviour/raw/{name}": value for name, value in self.raw.items()}
        log_scalars(trainer, scalars)

    def measure(self, module: DeltaTranscoderTraining) -> dict[str, float]:
        """`mean_ce` and the rates of `full` with the module's present weights."""
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
            scores = self.engine.teacher_forced(self.tokens, interventions)
            prompts = [row.prompt_ids for row in self.tokens]
            texts = self.engine.generate(prompts, interventions, self.max_new_tokens, self.reader)
        records = [
            {
                "wording": self.task.wording(example),
                "nll": score.nll,
                "n_tokens": score.n_tokens,
                "measures": self.task.verdicts(text, example),
            }
            for score, text, example in zip(scores, texts, self.examples, strict=True)
        ]
        cells = behaviour_cells(records, measures_of(records))
        return {
            k: v for k, v in cells.items() if k == "mean_ce" or (k.endswith("_rate") and v == v)
        }

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.engine = None  # a model and all base dictionaries
