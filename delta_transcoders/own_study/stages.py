"""The stages of a study of somebody's own model: their configurations, as `configs/tiny` has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from delta_transcoders.command import arguments_of, nearest, set_option
from delta_transcoders.hub import are_two_models
from delta_transcoders.interventions.intervention import from_spec, layer_groups
from delta_transcoders.own_study.checks import (
    N_TEXTS,
    as_json,
    check_context,
    checked,
    studied_layers,
    too_few,
    which_dictionaries,
)
from delta_transcoders.own_study.file import ALL, STAGES, OwnStudy, make_task
from delta_transcoders.own_study.sizes import Defaults, defaults_for
from delta_transcoders.own_study.wordings import split_by_wording
from delta_transcoders.tasks.task import DESCRIPTION_VERSION, subsets_of
from delta_transcoders.tasks.wordings import wording

MOST_SINGLE_LAYERS = 8
"""Layers that are replaced alone in Experiment 1, evenly spread; half as many in Experiment 2A."""
N_SCORED = 100
"""Prompts of a subset, of both halves together, on which single features are chosen and scored."""
_EXPERIMENT = "lightning_modules.intervention_evaluation.InterventionEvaluation"
EVALUATIONS = {
    "behaviour": "lightning_modules.behaviour.BehaviourEvaluation",
    "exp1": _EXPERIMENT,
    "exp2a": _EXPERIMENT,
    "exp2b": _EXPERIMENT,
    "spillover": "lightning_modules.spillover.Spillover",
    "controls": _EXPERIMENT,
    "ranking": "lightning_modules.feature_ranking.FeatureRanking",
    "effects": "lightning_modules.feature_ranking.FeatureRanking",
}
SPLIT = ("base_mlp", "dictionary_error")
"""What tells the finetune from a dictionary's own error."""
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
CONTROLS = ("bias", "steering", "low_rank", "ridge")
"""What `corrections` fits, each a control in the place of the delta."""


class Stages:
    """Makes the configurations of one study.

    Attributes:
        model: the finetuned model, merged.
        layers: those that get a delta.
        every: all of those at once, as experiments name them.
    """

    def __init__(self, own: OwnStudy) -> None:
        self.own = own
        self.folder = own.study / "configs"
        self.found = checked(own, self.folder / "checked.json")
        self.layers = studied_layers(own, self.found)
        n_target = self.found.n_target if own.has_targets else 0
        self.defaults = defaults_for(own.size, self.found.n_train_tokens, n_target, own.dtype)
        check_context(own, self.found, self._answer_length())
        self.model = "${study}/finetuned_model" if own.is_adapter else own.finetuned_model
        names = [str(layer) for layer in self.layers]
        self.every = "all" if len(names) == own.size.n_layers else "+".join(names)
        self.target = "residual" if own.dictionaries else "mlp_difference"
        self.skipped = self._skipped()
        self.names = [name for name in STAGES if name not in self.skipped]

    def _answer_length(self) -> int:
        given = (
            self.own.options.get(stage, {}).get("model.max_new_tokens")
            for stage in ("behaviour", "exp2a", "exp2b")
        )
        lengths = [n for n in given if n is not None]
        for length in lengths:
            if type(length) is not int or length < 1:
                raise ValueError(
                    f"{self.own.file}: model.max_new_tokens is {length!r}, expected a whole number from 1"
                )
        return max(lengths, default=self.defaults.max_new_tokens)

    def _skipped(self) -> dict[str, str]:
        """Stages that are left out, and why; some run only where the study file names them."""
        own, skipped = self.own, {}
        if not own.is_adapter:
            skipped["model"] = "finetuned_model is no adapter"
        if not own.has_targets:
            skipped["exp1"] = "the examples have no targets, and so no cross-entropy"
        for name in ("ranking", "effects"):
            if not own.has_targets or name not in own.options:
                skipped[name] = "the examples have no targets to rank features by"
        if own.text is None:
            skipped["spillover"] = "no text: what happens to other text is not measured"
        if "corrections" not in own.options or not own.dictionaries:
            skipped["corrections"] = "there are no dictionaries to correct"
            skipped["controls"] = (
                "it compares with corrections, which need dictionaries and be named"
            )
        return skipped

    def __call__(self) -> dict[str, Any]:
        """See `own_study.expand`."""
        for name, why in self.skipped.items():
            if self.own.options.get(name):
                raise ValueError(f"{self.own.file}: {name} has options and is not run: {why}")
        if "corrections" in self.names:
            self._check_corrections()
        self._check_split()
        stages = {}
        files = {self.folder / "checked.json": as_json(self.found)}
        files[self.folder / "defaults.yaml"] = self._yaml("defaults", self._shared())
        files |= self._described()
        for name in self.names:
            if STAGES[name] == "module":
                stages[name] = {"split": self._split, "model": self._model}[name]()
                continue
            path = self.folder / f"{name}.yaml"
            files[path] = self._yaml(name, self._config(name))
            stages[name] = {"run": STAGES[name], "config": str(path)}
            if name == "activations":
                stages[name]["takes"] = {"megabytes": round(self._cache_megabytes())}
        stages |= self._reports()
        return {
            "study": str(self.own.study),
            "seed": self.own.seed,
            "stages": stages,
            "shows": ["delta_transcoders.report.answer ${study}"],
            "files": {str(path): text for path, text in files.items()},
            "notes": self._notes(),
        }

    def _check_corrections(self) -> None:
        subsets = subsets_of(self.own.loaded)
        for key in ("model.towards", "model.away"):
            name = self.own.options["corrections"].get(key)
            if name not in subsets:
                raise ValueError(
                    f"{self.own.file}: corrections: {key} is {name!r}, expected a subset of the examples: "
                    f"{', '.join(subsets)}"
                )

    def _check_split(self) -> None:
        own = self.own
        try:
            split_by_wording(make_task(own.reading), list(own.loaded), 1, own.seed)
        except ValueError as error:
            raise ValueError(f"{own.file}: examples: {error}") from error

    def _described(self) -> dict[Path, str]:
        """What is studied, for exports and model cards; no stage reads it."""
        own = self.own
        models = {"base_model": own.base_model, "dictionaries": own.dictionaries, "text": own.text}
        models["finetuned_model"] = self.model.replace("${study}", str(own.study))
        task = {"format_version": DESCRIPTION_VERSION, **make_task(own.task).describe()}
        return {
            self.folder / f"{name}.json": json.dumps(what, indent=1, ensure_ascii=False) + "\n"
            for name, what in (("models", models), ("task", task))
        }

    # Stages that are modules

    def _split(self) -> dict[str, Any]:
        own, output = self.own, str(self.own.study / "examples")
        tokenizer = self.model.replace("${study}", str(own.study))
        arguments = ["--task", json.dumps(own.reading), "--examples", own.examples]
        arguments += ["--tokenizer", tokenizer, "--output", output]
        arguments += ["--seed", str(own.seed), *self._module_options("split", ("n_evaluation",))]
        return {
            "run": "delta_transcoders.own_study.split",
            "arguments": arguments,
            "reads": [own.examples, tokenizer],
            "writes": [output],
        }

    def _model(self) -> dict[str, Any]:
        own, output = self.own, str(self.own.study / "finetuned_model")
        arguments = ["--base_model", own.base_model, "--adapter", own.finetuned_model]
        arguments += ["--output", output, "--dtype", self.defaults.dtype]
        return {
            "run": "delta_transcoders.own_study.merge",
            "arguments": arguments,
            "reads": [own.base_model, own.finetuned_model],
            "writes": [output],
            "takes": {
                "megabytes": round(own.size.n_parameters * _bytes(self.defaults.dtype) / 1e6)
            },
        }

    def _reports(self) -> dict[str, Any]:
        study = str(self.own.study)
        read = [name for name in self.names if name not in ("split", "model", "activations")]
        return {
            "comparisons": {
                "run": "delta_transcoders.report.comparisons",
                "arguments": [f"{study}/exp2a"],
                "reads": ["exp2a"],
                "writes": [f"{study}/exp2a/comparisons"],
            },
            "feature_pages": {
                "run": "delta_transcoders.pages.feature_pages",
                "arguments": [study],
                "reads": [name for name in ("features", "effects") if name in self.names],
                "writes": [f"{study}/report/features.html"],
            },
            "report": {
                "run": "delta_transcoders.report.html",
                "arguments": [study],
                "reads": [*read, "split", "comparisons"],
                "writes": [f"{study}/report/index.html"],
            },
        }

    def _module_options(self, stage: str, known: Sequence[str]) -> list[str]:
        given = self.own.options.get(stage, {})
        for key in given:
            if key not in known:
                raise ValueError(
                    f"{self.own.file}: {stage} has no option {key!r}; {nearest(key, known)}"
                )
            if type(given[key]) is not int or given[key] < 1:
                raise ValueError(
                    f"{self.own.file}: {stage}: {key} is {given[key]!r}, expected a whole number from 1"
                )
        return [text for key, value in given.items() for text in (f"--{key}", str(value))]

    # Stages with a configuration

    def _shared(self) -> dict[str, Any]:
        logger = {
            "save_dir": "${study}/logs",
            "name": "${stage}",
            "version": "",
            "default_hp_metric": False,
        }
        shared = {
            "study": str(self.own.study),
            "task": self.own.task,
            "subsets": None,
            "seed_everything": self.own.seed,
            "trainer": {
                "accelerator": "auto",
                "devices": 1,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "default_root_dir": "${study}/logs/${stage}",
                "logger": _part("lightning.pytorch.loggers.TensorBoardLogger", logger),
            },
        }
        for key, value in self.own.options.get(ALL, {}).items():
            self._set(shared, ALL, key, value)
        return shared

    def _config(self, name: str) -> dict[str, Any]:
        made = {
            "activations": self._activations,
            "delta": self._delta,
            "corrections": self._corrections,
            "features": self._features,
        }
        config = made[name]() if name in made else self._evaluation(name)
        for key, value in self.own.options.get(name, {}).items():
            self._set(config, name, key, value)
        if "conditions" in config["model"]["init_args"]:
            self._check_columns(name, config["model"]["init_args"])
        return config

    def _check_columns(self, name: str, model: dict[str, Any]) -> None:
        """Refuse layers without a delta and unknown conditions; `all` are all that have a delta."""
        where = f"{self.own.file}: {name}"
        for key in ("layers", "conditions"):
            if key in model and not (isinstance(model[key], list) and model[key]):
                raise ValueError(f"{where}: model.{key} is {model[key]!r}, expected a list")
        try:
            for spec in model["conditions"]:
                from_spec(spec, ())
            if "layers" in model:
                named = [self.every if layer == "all" else layer for layer in model["layers"]]
                layer_groups(named, self.own.size.n_layers, self.layers)
                model["layers"] = named
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _activations(self) -> dict[str, Any]:
        d = self.defaults
        layers, examples = list(self.layers), "${study}/examples"
        model = {"model": self.model, "layers": layers, "dtype": d.dtype}
        said = {"hook_site": self.found.hook_site, "leading": self.found.leading}
        model |= {name: value for name, value in said.items() if value is not None}
        writer = {"output": "${study}/activations", "dtype": d.cache_dtype}
        return {
            "model": _part("lightning_modules.activation_capture.ActivationCapture", model),
            "data": _part(
                "datamodules.activation_texts.ActivationTexts",
                {"task": self.own.reading, "model": self.model, "examples": examples},
            ),
            "trainer": {
                "logger": False,
                "callbacks": [_part("callbacks.activation_writer.ActivationWriter", writer)],
            },
        }

    def _cached(self) -> dict[str, Any]:
        return {
            "cache": "${study}/activations",
            "model": self.model,
            "base_model": self.own.base_model,
            "model_dtype": self.defaults.dtype,
            "buffer_tokens": 16_384,
            "seed": "${seed_everything}",
        }

    def _checked_site(self) -> dict[str, Any]:
        return {
            "task": self.own.reading,
            "base_transcoders": self.own.dictionaries,
            "examples": "${study}/examples/validation.jsonl",
        }

    def _corrections(self) -> dict[str, Any]:
        model = {"output": "${study}/corrections", "deltas": "${study}/delta"}
        data = self._cached() | self._checked_site() | which_dictionaries(self.own) | {"passes": 1}
        return {
            "model": _part("lightning_modules.linear_corrections.LinearCorrections", model),
            "data": _part("datamodules.delta_targets.CorrectionData", data),
            "trainer": {
                "max_epochs": 1,
                "num_sanity_val_steps": 0,
                "enable_checkpointing": False,
            },
        }

    def _delta(self) -> dict[str, Any]:
        d = self.defaults
        data = self._cached() | {"batch_tokens": d.batch_tokens, "passes": d.passes}
        kind = "datamodules.mlp_difference.MLPDifferenceData"
        if self.own.dictionaries:
            kind = "datamodules.delta_targets.DeltaData"
            data |= self._checked_site()
        model = {
            "output": "${study}/delta",
            "d_new": [d.d_new],
            "l0": 8,
            "sparsity": {"mode": "batch_topk", "threshold_momentum": 0.9},
            "lr": d.lr,
            "betas": [0.9, 0.98],
            "seed": "${seed_everything}",
        }
        checkpoint = {"save_last": True, "save_top_k": 0, "enable_version_counter": False}
        return {
            "model": _part("lightning_modules.delta_transcoder.DeltaTranscoderTraining", model),
            "data": _part(kind, data),
            "trainer": {
                "max_epochs": 1,
                "val_check_interval": 0.1,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 20,
                "callbacks": [
                    "lightning.pytorch.callbacks.LearningRateMonitor",
                    _part("lightning.pytorch.callbacks.ModelCheckpoint", checkpoint),
                ],
            },
        }

    def _features(self) -> dict[str, Any]:
        d = self.defaults
        model = {"model": self.model, "delta": "${study}/delta", "output": "${study}/features"}
        data = {
            "task": self.own.reading,
            "model": self.model,
            "cache": "${study}/activations",
            "examples": "${study}/examples",
            "jsonl": "${study}/examples/evaluation.jsonl",
            "batch_size": d.batch_size,
        }
        kind = "lightning_modules.feature_statistics.FeatureStatistics"
        return {
            "model": _part(kind, model | {"dtype": d.dtype}),
            "data": _part("datamodules.feature_texts.FeatureTexts", data),
            "trainer": {"logger": False},
        }

    def _evaluation(self, name: str) -> dict[str, Any]:
        own, d = self.own, self.defaults
        model = {"output": f"${{study}}/{name}", "dtype": d.dtype}
        data = {
            "task": "${task}",
            "jsonl": "${study}/examples/evaluation.jsonl",
            "model": self.model,
            "batch_size": d.batch_size,
            "subsets": "${subsets}",
        }
        swapped = {"model": self.model, "base_model": own.base_model}
        if own.dictionaries:
            swapped["base_transcoders"] = own.dictionaries
        if name == "behaviour":
            model |= {"models": {"raw": self.model, "base_model": own.base_model}}
            model |= {"max_new_tokens": d.max_new_tokens}
        elif name == "spillover":
            conditions = ["no_delta", "full", *(SPLIT if own.dictionaries else ())]
            model |= swapped | {"delta": "${study}/delta", "conditions": conditions}
            data |= {
                "task": {"class_path": "delta_transcoders.tasks.paragraphs.Paragraphs"},
                "jsonl": own.text,
                "subsets": None,
                "n_per_subset": N_TEXTS,
                "batch_size": max(1, d.batch_size // 8),  # every token of a text is a target
            }
        elif name in ("ranking", "effects"):
            model |= swapped | {"experiment": name, "delta": "${study}/delta"}
            model |= {"layers": list(self.layers), "rows_per_pass": d.rows_per_pass}
            data |= {"batch_size": max(1, d.batch_size // 4)}
            if name == "effects":
                model |= {"first": 8, "generate": True, "max_new_tokens": d.max_new_tokens}
                data |= {"n_per_subset": N_SCORED}
        else:
            model |= swapped | {"experiment": name, "deltas": ["${study}/delta"]}
            model |= {"rows_per_pass": d.rows_per_pass, **self._experiment(name)}
        return {
            "model": _part(EVALUATIONS[name], model),
            "data": _part("datamodules.evaluation_prompts.EvaluationPrompts", data),
        }

    def _experiment(self, name: str) -> dict[str, Any]:
        new = {"max_new_tokens": self.defaults.max_new_tokens}
        if name == "exp1":
            return {
                "layers": [*self._alone(MOST_SINGLE_LAYERS), self.every],
                "conditions": ["no_delta", "full"],
                "generate": False,
                "reconstruction": True,
            }
        if name == "controls":
            bare = [
                {"condition": c, "terms": [{"source": "base"}, {"source": c}]} for c in CONTROLS
            ]
            return {
                "layers": [self.every],
                "controls": {control: f"${{study}}/corrections/{control}" for control in CONTROLS},
                "conditions": ["no_delta", "full", "base_mlp", "error_kept", "random_delta", *bare],
            } | new
        if name == "exp2a":
            split = SPLIT if self.own.dictionaries else ()
            conditions = ["no_delta", "full", *split, "error_kept", "random_delta"]
            layers = [*self._alone(MOST_SINGLE_LAYERS // 2), *self._halves(), self.every]
            return {"layers": layers, "conditions": conditions} | new
        alphas = [f"alpha_{alpha}" for alpha in (-0.5, 0, 0.25, 0.5, 0.75, 1, 1.5)]
        return {"layers": [self.every], "conditions": alphas} | new

    def _alone(self, most: int) -> list[str]:
        """At most so many single layers, evenly spread; none where there is but one."""
        n, last = min(most, len(self.layers)), len(self.layers) - 1
        if last == 0:
            return []
        return [str(self.layers[round(i * last / (n - 1))]) for i in range(n)]

    def _halves(self) -> list[str]:
        """The lower and the upper half of the layers, where they are more than single ones."""
        middle = len(self.layers) // 2
        halves = (self.layers[:middle], self.layers[middle:]) if middle > 1 else ()
        return ["+".join(map(str, half)) for half in halves]

    # What is said, and written

    def _set(self, config: dict[str, Any], stage: str, option: str, value: Any) -> None:
        """What `--option value` does on the stage's command line."""
        part, *path = option.removesuffix("+").split(".")
        parts = [name for name in ("model", "data", "trainer") if name in (*config, "trainer")]
        where = f"{self.own.file}: {stage}"
        if part not in parts or not path:
            hint = nearest(part, parts) if part not in parts else f"give {part}.OPTION"
            raise ValueError(f"{where} has no option {option!r}; {hint}")
        kind = TRAINER if part == "trainer" else config[part]["class_path"]
        known = arguments_of(kind)
        if path[0] not in known:
            hint = nearest(path[0], known)
            raise ValueError(f"{where}: {kind.rpartition('.')[2]} has no option {option!r}; {hint}")
        if path[-1] == "output":
            raise ValueError(f"{where}: {option} is the study's: give `study: FOLDER` for all")
        if part == "trainer" and len(path) > 1:
            raise ValueError(f"{where}: give {part}.{path[0]} as a whole, not {option}")
        if part != "trainer" and len(path) == 1:
            _check_value(f"{where}: {option}", config[part]["init_args"].get(path[0]), value)
        set_option(config, option, value)

    def _yaml(self, name: str, config: Mapping[str, Any]) -> str:
        script = {"train": "train.py", "evaluate": "evaluate.py"}.get(STAGES.get(name, ""))
        lines = [
            f"# Made of {self.own.file} by study.py, which makes it anew: change options there."
        ]
        if script:
            lines.append(f"# python {script} --config {self.folder / f'{name}.yaml'}")
        return "\n".join([*lines, yaml.safe_dump(config, sort_keys=False, allow_unicode=True)])

    def _cache_megabytes(self) -> float:
        """Input, output and target of every token and layer."""
        width = 3 * self.own.size.d_model * _bytes(self.defaults.cache_dtype)
        return self.found.n_tokens * len(self.layers) * width / 1e6

    def _notes(self) -> list[str]:
        own, d = self.own, self.defaults
        notes = [
            f"{own.base_model}: {own.size.n_layers} layers of {own.size.d_model}, target {self.target}, "
            f"{_chosen(d)} (each stage's options are in {self.folder})"
        ]
        notes += own.notes
        of = self.found.explained
        if are_two_models(of, own.base_model):
            notes.append(
                f"warning: the dictionaries say that they are for {of}, and base_model is {own.base_model}"
            )
        if not self.found.changed:
            notes.append(
                "warning: the finetune changed no MLP: a delta has the dictionaries' error alone"
            )
        left_out = [layer for layer in own.layers if layer not in self.layers]
        if left_out:
            notes.append(
                f"left out, their MLPs are the base model's: layers {', '.join(map(str, left_out))}"
            )
        told = ("exp1", "spillover", *own.options)
        notes += [f"not run: {name} ({why})" for name, why in self.skipped.items() if name in told]
        if own.has_targets and self._answer_length() < self.found.n_target:
            notes.append(
                f"warning: answers end after {self._answer_length()} tokens, the longest target has "
                f"{self.found.n_target}: give behaviour, exp2a and exp2b model.max_new_tokens"
            )
        n_wordings = len(set(map(wording, own.loaded)))
        return notes + [f"warning: {line}" for line in too_few(n_wordings, self.found)]


def _check_value(where: str, chosen: Any, value: Any) -> None:
    """Refuse what is not of the kind that is chosen where the study file says nothing."""
    if isinstance(chosen, list) and value == []:
        raise ValueError(f"{where} is empty, expected one or more")
    if type(chosen) in (int, float) and isinstance(value, str):
        try:
            float(value)  # YAML reads 1e-3 as a text
        except ValueError:
            raise ValueError(f"{where} is {value!r}, expected a number") from None


def _chosen(defaults: Defaults) -> str:
    return ", ".join(f"{name} {value}" for name, value in vars(defaults).items())


def _part(class_path: str, init_args: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def study_file(own: OwnStudy) -> dict[str, Any]:
    """An ordinary study file's content, see `own_study.expand`."""
    return Stages(own)()
