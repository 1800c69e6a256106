"""Every configuration of Gemma 2 2B run to its end, on a random Gemma 2 of 26 tiny layers.

Precision, dtypes, clipping, accumulation, gradient checkpointing, callbacks, layers and conditions are the
configurations' own; what is replaced is named in `REPLACED`.
"""

import itertools
import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import evaluate
import train
from benchmarks.random_dictionaries import fitted_dictionary
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.delta import load_delta
from delta_transcoders.dictionaries.files.gemma_scope import save_base
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.language_models import load_model, load_tokenizer, target_batch, tokenize
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator import copy_lines
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.prompts import generate_splits
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tiny_gemma import build_tiny_gemma, train_tokenizer

pytestmark = [
    pytest.mark.slow,
    # One cache is of the wrong site, to reproduce the original study.
    pytest.mark.filterwarnings("ignore:hook site 'original' is not where"),
]

FOLDER = Path(__file__).parent.parent / "configs" / "gemma2_2b"
CONFIGS = sorted(
    path.stem
    for path in FOLDER.glob("*.yaml")
    if path.stem != "defaults" and not path.stem.startswith("study")
)
N_LAYERS, D_MODEL, WIDTH, AVERAGE_L0 = 26, 16, 256, (4, 8, 16, 32)

HUB = {"google/gemma-2-2b": "base", "google/gemma-scope-2b-pt-transcoders": "bases"}
REPLACED = {
    # The model and the dictionaries: hub ids, and the width.
    *("model.model", "model.base_model", "model.models.base_model", "model.base_transcoders"),
    *("data.model", "data.base_model", "data.base_transcoders", "data.width"),
    # Lengths.
    *("data.n_train", "data.n_validation", "data.n_evaluation", "data.n_check_examples"),
    *("data.n_per_subset", "data.passes", "trainer.max_epochs"),
    *("trainer.max_steps", "trainer.val_check_interval"),
    "model.max_new_tokens",
    # Lines to copy come from a file, not from the web.
    "data.task",
    # A handful of steps must change weights in bfloat16.
    "model.lr",
    # What the configurations' comments and the study files say of second runs.
    *("model.output", "model.sparsity", "model.hook_site", "data.cache", "data.target"),
    *("trainer.logger.name", "trainer.callbacks.output"),
}

FINETUNE = {
    "data.n_train": 32,
    "data.n_validation": 10,
    "data.n_evaluation": 8,  # of both halves of the wordings
    "model.lr": 1e-2,
    "trainer.max_epochs": 2,
}
TRAIN = {"data.passes": 10}  # all training tokens are a batch
DELTA = TRAIN | {"data.width": WIDTH, "data.n_check_examples": 12}
TEXTS = {"model.max_new_tokens": 3}
FEW = {"data.n_per_subset": 1}


def stages(study: Path, base: str) -> list[tuple[str, str, dict]]:
    """(script, configuration, replaced options) in the order in which they need each other."""
    on_base = {"model.model": base, "data.model": base}
    base_cache = study / "base_model_on_examples"
    original_cache = study / "activations_original"
    return [
        ("train", "lora", FINETUNE | {"data.task": own_lines(study / "lines.txt")}),
        ("evaluate", "behaviour", TEXTS),
        ("evaluate", "activations", {}),
        ("train", "delta", DELTA),
        ("evaluate", "features", {}),
        ("evaluate", "exp1", FEW),
        ("evaluate", "exp2a", TEXTS | FEW),
        ("evaluate", "exp2b", TEXTS | FEW),
        ("evaluate", "effects", TEXTS),
        ("train", "sweep", DELTA),
        ("evaluate", "exp1_sweep", FEW),
        ("train", "mlp_difference", TRAIN),
        ("evaluate", "targets", TEXTS | FEW),
        ("train", "delta_end_to_end", {"trainer.max_steps": 5, "trainer.val_check_interval": 1}),
        ("train", "corrections", {"data.width": WIDTH, "data.n_check_examples": 12}),
        (
            "train",
            "delta",
            DELTA
            | {"model.output": study / "dense", "trainer.logger.name": "dense"}
            | {"model.sparsity": "{mode: l1, l1_weight: 0.0}"},
        ),
        ("evaluate", "activations", on_base | {"trainer.callbacks.output": base_cache}),
        (
            "train",
            "delta",
            DELTA
            | {"data.cache": base_cache, "data.model": base}
            | {"model.output": study / "base_model_delta"},
        ),
        (
            "train",
            "delta",
            DELTA | {"data.target": "dictionary_error", "model.output": study / "error_delta"},
        ),
        ("evaluate", "controls", TEXTS | FEW),
        ("evaluate", "base_floor", TEXTS | FEW),
        ("evaluate", "faults", TEXTS | FEW),
        (
            "evaluate",
            "activations",
            {"model.hook_site": "original", "trainer.callbacks.output": original_cache},
        ),
        (
            "train",
            "delta",
            DELTA | {"data.cache": original_cache, "model.output": study / "delta_site_original"},
        ),
        ("evaluate", "original", TEXTS | FEW),
        ("evaluate", "ranking", FEW),
        ("train", "delta_original", DELTA),
    ]


def own_lines(path: Path) -> str:
    options = {"copy_source": "file", "copy_file": str(path)}
    calculator = "delta_transcoders.tasks.calculator.task.Calculator"
    return json.dumps({"class_path": calculator, "init_args": options})


def hub_ids(config: str, root: Path) -> dict[str, Path]:
    """Options that name hub ids in a configuration, with folders for them."""
    stage = yaml.safe_load((FOLDER / f"{config}.yaml").read_text())
    found = {}
    for part in ("model", "data"):
        options = stage[part]["init_args"]
        options |= {f"models.{k}": v for k, v in options.get("models", {}).items()}
        named = {k: v for k, v in options.items() if isinstance(v, str) and v in HUB}
        found |= {f"{part}.{name}": root / HUB[value] for name, value in named.items()}
    return found


def save_base_model(folder: Path) -> None:
    texts = [f"{line}\n{rest}" for line, rest in itertools.islice(base_documents(0), 500)]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    torch.manual_seed(0)
    model = build_tiny_gemma(tokenizer, D_MODEL, N_LAYERS, n_heads=2, n_kv_heads=1, d_mlp=32)
    # As in trained models, none of a layer's hook points is like another: the site matters.
    model.model.embed_tokens.weight.data *= 4
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data *= 5  # undone by the norm after it
        torch.nn.init.uniform_(layer.post_feedforward_layernorm.weight, -0.9, 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_bases(folder: Path, base: str) -> None:
    """Dictionaries of every layer and average L0, in Gemma Scope's layout."""
    model, tokenizer = load_model(base), load_tokenizer(base)
    examples = generate_splits(
        n_train=24,
        n_validation=2,
        n_evaluation=1,
        copy_lines=copy_lines.synthetic_lines(1),
        seed=1,
    )["train"]
    rows = tokenize(tokenizer, Calculator(), examples)
    batch = target_batch(rows, tokenizer.pad_token_id)
    captured = capture(
        boot_bridge(model, tokenizer),
        batch["input_ids"],
        batch["attention_mask"],
        range(N_LAYERS),
        HOOK_SITES["gemma_scope"],
    )
    for layer, (x_ND, y_ND) in captured.activations.items():
        for l0 in AVERAGE_L0:
            save_base(folder, layer, fitted_dictionary(x_ND, y_ND, WIDTH, l0, layer), l0)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, arguments) -> SimpleNamespace:
    """Every stage, run once: the study's folder, and by configuration the trainers of its runs."""
    root = tmp_path_factory.mktemp("gemma2_2b")
    study = root / "study"
    study.mkdir()
    lines = itertools.islice(copy_lines.synthetic_lines(0), 200)
    (study / "lines.txt").write_text("\n".join(lines))
    save_base_model(root / "base")
    save_bases(root / "bases", str(root / "base"))
    trainers = defaultdict(list)
    for script, config, options in stages(study, str(root / "base")):
        given = hub_ids(config, root) | options
        assert set(given) <= REPLACED
        main = {"train": train.main, "evaluate": evaluate.main}[script]
        cli = main(arguments(f"gemma2_2b/{config}.yaml", study, given))
        trainers[config].append(cli.trainer)
    return SimpleNamespace(root=root, study=study, trainers=trainers)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_runs_to_its_end(ran, config):
    assert ran.trainers[config]
    for trainer in ran.trainers[config]:
        assert trainer.state.finished
        written = yaml.safe_load((FOLDER / f"{config}.yaml").read_text()).get("trainer", {})
        assert trainer.precision == written.get("precision", "32-true")
        assert trainer.gradient_clip_val == written.get("gradient_clip_val")
        assert trainer.accumulate_grad_batches == written.get("accumulate_grad_batches", 1)
        paths = [c if isinstance(c, str) else c["class_path"] for c in written.get("callbacks", ())]
        named = {path.rpartition(".")[2] for path in paths}
        assert named <= {type(callback).__name__ for callback in trainer.callbacks}


def test_the_finetune_steps_in_mixed_precision(ran):
    (trainer,) = ran.trainers["lora"]
    assert trainer.global_step == 2 * 2  # epochs of 32 examples, 2 a batch and 8 batches a step
    (optimizer,) = trainer.optimizers
    assert {p.dtype for group in optimizer.param_groups for p in group["params"]} == {torch.float32}
    assert trainer.lightning_module.hparams.gradient_checkpointing
    base = load_model(str(ran.root / "base"), "bfloat16")
    merged = load_model(str(ran.study / "finetune/merged"), "bfloat16")
    config = json.loads((ran.study / "finetune/merged/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    for ours, theirs in zip(merged.model.layers, base.model.layers, strict=True):
        assert not torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight)


def test_caches_and_deltas_are_of_all_layers(ran):
    for name in ("activations", "base_model_on_examples", "activations_original"):
        meta = ActivationCache(ran.study / name).meta
        assert meta.layers == tuple(range(N_LAYERS))
        assert (meta.dtype, meta.model_dtype) == ("bfloat16", "bfloat16")
    deltas = {
        **{"delta": 128, "dense": 128, "base_model_delta": 128, "delta_site_original": 128},
        "delta_original": 128,
        **{f"mlp_difference/d{width}_mlp_difference": width for width in (32, 128, 256)},
        **{f"sweep/d{w}_p{p}": w for w in (32, 64, 128) for p in (0.25, 0.5, 0.75)},
    }
    for folder, width in deltas.items():
        configs = [load_delta(ran.study / folder / f"layer_{i}")[1] for i in range(N_LAYERS)]
        assert {config.d_new for config in configs} == {width}
        percentile = configs[0].percentile
        if percentile is not None:
            l0 = AVERAGE_L0[int(percentile * len(AVERAGE_L0))]
            assert {config.average_l0_base for config in configs} == {l0}
        assert all(math.isfinite(config.measured["fvu_full"]) for config in configs)


@pytest.mark.parametrize(
    ("experiment", "n_columns"),
    [
        ("exp1", 9 * 2),
        ("exp2a", 9 * 4),
        ("exp2b", 9 * 7),
        ("exp1_sweep", 9 * 9 * 2),
        ("targets", 4 * 9 * 4),
        ("controls", 9 * 14),
        ("base_floor", 9 * 2),
        ("faults", 9 * 2),
        ("original", 8 * 7),
        ("ranking", 1 + 8 * (2 + 2 * 128)),
    ],
)
def test_experiments_measure_every_condition_at_every_layer(ran, experiment, n_columns):
    folder = "faults/right" if experiment == "faults" else experiment
    rows = read_metrics(ran.study / folder / "metrics.csv")
    subsets = ("tool", "copy") if experiment == "ranking" else ("tool", "copy", "tool_ood")
    assert len(rows) == (1 + n_columns) * len(subsets)
    assert all(math.isfinite(float(row["mean_ce"])) for row in rows)
    assert all(row["n_examples"] == "1" for row in rows)
