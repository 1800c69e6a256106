"""Every stage of `configs/smollm2`, on a random Llama of 30 tiny layers and a tokenizer like SmolLM2's."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import evaluate
import train
from benchmarks.random_dictionaries import fitted_dictionary
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.delta import load_delta
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.features.files import read_features
from delta_transcoders.features.rules.firing import read_firing
from delta_transcoders.language_models import load_model, load_tokenizer, target_batch, tokenize
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.study.study_file import read_study
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.task import Calculator
from interop.published_sets import sparsify
from tests.report_studies import page_of

pytestmark = pytest.mark.slow

N_LAYERS = 30
BASE = "models/SmolLM2-135M-Instruct"
SKIP_LAYERS, K = (18,), 32


@pytest.fixture(scope="module")
def base_model(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("llama"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{a}\n{b}" for a, b in itertools.islice(base_documents(0), 300)]
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(arguments, pytestconfig, tmp_path_factory, base_model):
    """`run(main, stage, options)`: a stage of the study `run.study`."""
    root = tmp_path_factory.mktemp("smollm2")
    (root / "configs").mkdir()
    for path in (Path(pytestconfig.rootpath) / "configs/smollm2").glob("*.yaml"):
        (root / "configs" / path.name).write_text(path.read_text().replace(BASE, base_model))

    def run(main, stage: str, options: dict | None = None) -> None:
        main(arguments(str(root / "configs" / f"{stage}.yaml"), run.study, options))

    run.study = root / "study"
    few = {"data.n_train": 40, "data.n_validation": 10, "data.n_evaluation": 3}
    run(train.main, "lora", few | {"trainer.max_steps": 4, "trainer.val_check_interval": 2})
    run(evaluate.main, "activations")
    return run


def test_the_whole_study(run):
    study = run.study
    run(evaluate.main, "behaviour")
    run(train.main, "delta", {"trainer.val_check_interval": 2})
    run(train.main, "delta_end_to_end", {"trainer.max_steps": 5, "trainer.val_check_interval": 1})
    run(evaluate.main, "exp2a")
    run(evaluate.main, "exp2b")
    run(evaluate.main, "features")
    features = read_features(study / "features")
    assert (len(features), features.info["target"]) == (N_LAYERS * 32, "mlp_difference")
    assert features.feature(N_LAYERS - 1, 0).activity["tool (held out)"].held_out
    run(evaluate.main, "unit_firing", {"model.n": 3})
    firing = read_firing(study / "unit_firing_a")
    assert len(firing.units) == 12 and firing.half == "A"
    run(evaluate.main, "effects", {"model.first": 1, "model.steps": 1})
    features = read_features(study / "features")
    assert features.rankings == [study / "effects"]
    (ranked,) = (f for f in features if f.effects)
    assert {e.subset for e in ranked.effects} == {"tool", "copy"}
    for name in ("delta", "delta_end_to_end/n960", "delta_end_to_end/n32"):
        assert len(list((study / name).glob("layer_*/delta.safetensors"))) == N_LAYERS

    rows = read_metrics(study / "behaviour" / "metrics.csv")
    assert {row["condition"] for row in rows} == {"raw", "base_model"} and len(rows) == 2 * 4
    rows = read_metrics(study / "exp2a" / "metrics.csv")
    halves = ["+".join(map(str, range(*half))) for half in ((0, 15), (15, 30))]
    cells = itertools.product(["all", *halves, "15"], ["no_delta", "full", "random_delta"])
    assert {(row["layer"], row["condition"]) for row in rows} == {("", "raw"), *cells}
    assert {row["subset"] for row in rows} == {"tool", "copy"}
    of_2a = {
        row["condition"]: row for row in rows if row["layer"] == "all" and row["subset"] == "tool"
    }
    of_2b = {row["condition"]: row for row in read_metrics(study / "exp2b" / "metrics.csv")}
    for alpha, name in (("alpha_0.00", "no_delta"), ("alpha_1.00", "full")):
        ends = (float(row["mean_ce"]) for row in (of_2b[alpha], of_2a[name]))
        assert next(ends) == pytest.approx(next(ends), abs=1e-5)
    assert "dose–response" in page_of(study)


def test_base_dictionaries_of_six_layers(run):
    """On text like `texts.collect`'s: prose with a target, and a request without one."""
    for split, n in (("train", 60), ("validation", 12)):
        texts = [
            {"prompt": f"{a}\n", "target": b, "subset": "docstrings"}
            for a, b in itertools.islice(base_documents(1 + (split == "train")), n)
        ]
        texts += [{"prompt": f"How many is {i} and {n}?", "subset": "requests"} for i in range(4)]
        path = run.study / "base_text" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    layers = [8, 11, 14, 17, 20, 23]
    run(evaluate.main, "base_activations")
    small = {"model.width": 64, "model.l0": "[4]", "model.aux_k": 4, "data.batch_tokens": 128}
    run(train.main, "base_transcoder", small)
    found = {
        int(path.name.removeprefix("layer_"))
        for path in (run.study / "base_transcoders").glob("layer_*")
    }
    assert found == set(layers)
    run(evaluate.main, "base_floor_text")
    rows = read_metrics(run.study / "base_floor_text" / "metrics.csv")
    measured = {
        (row["layer"], row["condition"], row["subset"]) for row in rows if row["fvu"] != "nan"
    }
    assert measured == set(
        itertools.product(
            map(str, layers), ["no_delta", "top_32_neurons"], ["docstrings", "requests"]
        )
    )
    # Of 32 neurons in all the 32 largest are the whole MLP.
    assert all(float(row["fvu"]) < 1e-6 for row in rows if row["condition"] == "top_32_neurons")


def plant_skip_transcoders(folder: Path, base_model: str) -> None:
    """Layer 18 in sparsify's layout, float32; `cfg.json` names no scales."""
    tokenizer = load_tokenizer(base_model)
    examples = Calculator().generate(16, 2, 1, seed=1)["train"]
    rows = tokenize(tokenizer, Calculator(), examples)
    batch = target_batch(rows, tokenizer.pad_token_id)
    captured = capture(
        boot_bridge(load_model(base_model), tokenizer),
        batch["input_ids"],
        batch["attention_mask"],
        SKIP_LAYERS,
        HOOK_SITES["after_gain"],
    )
    tensors = {}
    for layer, (x_ND, y_ND) in captured.activations.items():
        fitted = fitted_dictionary(x_ND, y_ND, 256, K, layer, "relu_topk", skip=True)
        tensors[layer] = {name: tensor.numpy() for name, tensor in fitted.state_dict().items()}
    config = {"expansion_factor": 16, "normalize_decoder": True, "num_latents": 0}
    sparsify(folder, skip=True, tensors=tensors, k=K, multi_topk=False, **config)


def test_deltas_beside_skip_transcoders(run, base_model, tmp_path, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    plant_skip_transcoders(tmp_path / "skip", base_model)
    file = "configs/smollm2/study_skip_transcoders.yaml"
    stages = read_study(file, folder=str(run.study)).stages
    assert set(stages) - set(read_study("configs/smollm2/quick.yaml").stages) == {
        *("skip_delta", "skip_exp2a")
    }
    local = {"base_transcoders": tmp_path / "skip"}
    few = {"data.n_check_examples": 10, "trainer.val_check_interval": 2}
    run(train.main, "skip_delta", few | {f"data.{k}": v for k, v in local.items()})
    options = dict(stages["skip_exp2a"].options)
    assert options["model.base_transcoders"] == "EleutherAI/skip-transcoder-SmolLM2-135M-128x"
    run(evaluate.main, "exp2a", options | {f"model.{k}": v for k, v in local.items()})

    cache = ActivationCache(run.study / "activations")
    for layer in SKIP_LAYERS:
        _, config = load_delta(run.study / f"skip_delta/layer_{layer}")
        assert config.base_id == f"{tmp_path}/skip/model.layers.{layer}.mlp/sae.safetensors"
        assert (config.hook_site, config.average_l0_base, config.d_new) == ("after_gain", K, 32)
        t = {n: v.double() for n, v in load_file(Path(config.base_id)).items()}
        x, y, residual = cache.load("validation", layer, ["x", "y", "residual-skip-p0.5"]).values()
        x = x.double()
        z = x @ t["encoder.weight"].T + t["encoder.bias"]
        least = z.topk(K).values[:, -1:]
        a = torch.where(z >= least, z, 0).relu()
        expected = y.double() - (a @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T)
        torch.testing.assert_close(residual.double(), expected, rtol=1e-2, atol=1e-3)
    rows = read_metrics(run.study / "skip_exp2a" / "metrics.csv")
    conditions = ("no_delta", "full", "base_mlp", "dictionary_error")
    cells = itertools.product(("18",), conditions)
    assert {(row["layer"], row["condition"]) for row in rows} == {("", "raw"), *cells}
    for row in rows:
        whole = row["condition"] in ("no_delta", "full", "base_mlp")  # nothing of the MLP is kept
        assert math.isfinite(float(row["fvu"])) == whole
