"""What of a finetune is visible without a delta: identities, one case by hand, and what is refused."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch

import evaluate
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.files.gemma_scope import save_base
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families import family_of
from delta_transcoders.interventions.loading import DictionarySet
from delta_transcoders.interventions.sources import mlp_sources
from delta_transcoders.language_models import (
    load_model,
    load_tokenizer,
    supervised_hidden,
    supervised_logits,
    target_batch,
    tokenize,
)
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.examples import read_jsonl
from delta_transcoders.tasks.calculator.task import Calculator

D_MODEL, LAYERS, SUBSETS = 32, (0, 1), ("tool", "copy", "tool_ood")


def dictionary(layer: int, size: float = 1.0) -> Transcoder:
    """Its bias is no part of any change."""
    generator = torch.Generator().manual_seed(layer)
    return Transcoder(
        W_enc=torch.randn(D_MODEL, 40, generator=generator),
        b_enc=torch.randn(40, generator=generator),
        W_dec=size * torch.randn(40, D_MODEL, generator=generator),
        b_dec=torch.randn(D_MODEL, generator=generator),
        threshold=torch.rand(40, generator=generator),
    )


@pytest.fixture(scope="module")
def random_bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random_bases")
    for layer in LAYERS:
        save_base(folder, layer, dictionary(layer, 0.01), 8)
    return folder


@pytest.fixture(scope="module")
def finetuned_by(study, tmp_path_factory):
    """`finetuned_by(change)`: folder of the base model after `change(model)`."""

    def make(change):
        folder = tmp_path_factory.mktemp("finetuned")
        model = load_model(str(study / "base_model"))
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        load_tokenizer(str(study / "base_model")).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def run(study, arguments, random_bases):
    """`run(output, options)`: rows of `visible_change.csv` and of `tokens.csv`."""

    def evaluated(output, options):
        given = {"model.base_transcoders": random_bases, "model.output": output} | options
        if "model.model" in given:
            given.setdefault("data.model", given["model.model"])
        evaluate.main(arguments("tiny/visible_change.yaml", study, given))
        return [read_metrics(output / name) for name in ("visible_change.csv", "tokens.csv")]

    return evaluated


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory):
    """The study's own finetune, with random dictionaries, in batches that hold two subsets."""
    return run(tmp_path_factory.mktemp("measured"), {"data.batch_size": 4})


@pytest.fixture(scope="module")
def batches(study):
    """By subset, the evaluation examples as one batch."""
    tokenizer = load_tokenizer(str(study / "base_model"))
    examples = read_jsonl(study / "finetune" / "data" / "evaluation.jsonl").values()
    return {
        subset: target_batch(
            tokenize(tokenizer, Calculator(), [e for e in examples if e.subset == subset]),
            tokenizer.pad_token_id,
        )
        for subset in SUBSETS
    }


def logits_batch(batch):
    return {f"{name}_BT": tensor for name, tensor in batch.items()}


def test_the_table_is_what_a_few_lines_compute(measured, study, batches):
    rows, _ = measured
    tokenizer = load_tokenizer(str(study / "base_model"))
    folders = [str(study / name) for name in ("finetune/merged", "base_model")]
    bridges = [boot_bridge(load_model(folder), tokenizer) for folder in folders]
    site = family_of(bridges[0].original_model.config).site
    assert [(int(r["layer"]), r["subset"]) for r in rows] == [
        (x, s) for x in LAYERS for s in SUBSETS
    ]
    for row in rows:
        layer, batch = int(row["layer"]), batches[row["subset"]]
        (x_ft, y_ft), (x_base, y_base) = (
            capture(b, batch["input_ids"], batch["attention_mask"], [layer], site).activations[
                layer
            ]
            for b in bridges
        )
        change, T = y_ft - y_base, dictionary(layer, 0.01)
        missed = change - (T(x_ft) - T(x_base))
        assert row["experiment"] == "visible_change"
        assert int(row["n_tokens"]) == len(change)
        expected = 1 - (missed.square().sum() / change.square().sum()).item()
        assert float(row["visible_change"]) == pytest.approx(expected, rel=1e-3)
        norms = (change.norm(dim=1).mean() / y_base.norm(dim=1).mean()).item()
        assert float(row["change_norm"]) == pytest.approx(norms, rel=1e-3)


def test_the_tokens_are_those_whose_mean_log_probability_changed_most(measured, study, batches):
    _, rows = measured
    tokenizer = load_tokenizer(str(study / "base_model"))
    models = [load_model(str(study / name)) for name in ("finetune/merged", "base_model")]
    for subset, batch in batches.items():
        with torch.no_grad():
            ft_NV, base_NV = (
                supervised_logits(m, **logits_batch(batch))[0].double().log_softmax(-1)
                for m in models
            )
        mean_V = (ft_NV - base_NV).mean(0)
        for direction, descending in (("up", True), ("down", False)):
            ours = [r for r in rows if (r["subset"], r["direction"]) == (subset, direction)]
            assert [int(row["rank"]) for row in ours] == list(range(1, 21))
            expected = mean_V.sort(descending=descending).values[:20].tolist()
            found = [float(row["mean_change"]) for row in ours]
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
            for row in ours:
                token_id = int(row["token_id"])
                assert float(row["mean_change"]) == pytest.approx(mean_V[token_id].item(), abs=1e-5)
                assert ast.literal_eval(row["token"]) == tokenizer.decode([token_id])


def test_a_finetune_of_nothing_changes_nothing(run, study, tmp_path):
    rows, tokens = run(tmp_path / "out", {"model.model": study / "base_model"})
    assert {(row["visible_change"], row["change_norm"]) for row in rows} == {("nan", "0")}
    assert all(int(row["n_tokens"]) > 0 for row in rows)
    assert {row["mean_change"] for row in tokens} == {"0"}


def test_a_dictionary_of_zeros_shows_nothing(run, tmp_path):
    for layer in LAYERS:
        save_base(tmp_path / "zeros", layer, dictionary(layer, 0.0), 8)
    rows, _ = run(tmp_path / "out", {"model.base_transcoders": tmp_path / "zeros"})
    assert {row["visible_change"] for row in rows} == {"0"}
    assert all(float(row["change_norm"]) > 0 for row in rows)


def test_the_mlp_itself_as_a_dictionary_shows_all_that_attention_changed(
    run, study, finetuned_by, tmp_path, monkeypatch
):
    """Where MLPs were left alone, y is the same function of x in both models."""

    def change(model):
        generator = torch.Generator().manual_seed(0)
        for layer in model.model.layers:
            weight = layer.self_attn.o_proj.weight
            weight += 0.3 * torch.randn(weight.shape, generator=generator)

    base = load_model(str(study / "base_model"))
    exact = DictionarySet(
        "exact", family_of(base.config).site, {"base": dict(mlp_sources(base, LAYERS))}, LAYERS
    )
    monkeypatch.setattr("lightning_modules.visible_change.load_base_set", lambda *_: exact)
    rows, _ = run(tmp_path / "out", {"model.model": finetuned_by(change)})
    for row in rows:
        assert float(row["visible_change"]) == pytest.approx(1, abs=1e-6)
        assert float(row["change_norm"]) > 0.01


def test_an_entry_of_the_vocabulary_that_was_made_likelier_comes_first(
    run, study, finetuned_by, batches, tmp_path
):
    base = load_model(str(study / "base_model"))
    read = set(torch.cat([b["input_ids"].flatten() for b in batches.values()]).tolist())
    boosted = max(set(range(base.config.vocab_size)) - read)
    with torch.no_grad():
        mean_D = torch.cat(
            [supervised_hidden(base, **logits_batch(batch)) for batch in batches.values()]
        ).mean(0)

    def change(model):  # its row is the embedding's too, which these texts do not read
        model.get_output_embeddings().weight[boosted] += 3 * mean_D / mean_D.square().sum()

    rows, tokens = run(tmp_path / "out", {"model.model": finetuned_by(change)})
    assert {row["visible_change"] for row in rows} == {"nan"}
    for subset in SUBSETS:
        first, *others = (r for r in tokens if (r["subset"], r["direction"]) == (subset, "up"))
        assert int(first["token_id"]) == boosted
        assert float(first["mean_change"]) > 0.5
        assert all(float(row["mean_change"]) < 0 for row in others)


def test_examples_without_a_target_have_changes_and_no_tokens(run, study, tmp_path):
    lines = [
        {"prompt": "Ann has 3 boxes.\n", "target": "3", "subset": "answered"},
        {"prompt": "Ben has 4 boxes and more.\n", "subset": "open"},
    ]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = f"{{jsonl: {tmp_path / 'examples.jsonl'}, judge: regex, pattern: x}}"
    task = f"{{class_path: delta_transcoders.tasks.examples.Examples, init_args: {task}}}"
    options = {"data.task": task, "data.jsonl": tmp_path / "examples.jsonl", "data.subsets": "null"}
    rows, tokens = run(tmp_path / "out", options)
    assert {row["subset"] for row in rows} == {"answered", "open"}
    assert all(row["visible_change"] != "nan" for row in rows)
    assert {row["subset"] for row in tokens} == {"answered"}


@pytest.mark.slow
def test_two_processes_find_what_one_does(
    measured, study, arguments, random_bases, tmp_path, pytestconfig
):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    options = {
        "model.base_transcoders": random_bases,
        "model.output": tmp_path / "out",
        "data.batch_size": 4,
        "trainer.default_root_dir": tmp_path / "logs",
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
    }
    args = arguments("tiny/visible_change.yaml", study, options)
    script = tmp_path / "two.py"  # Lightning starts it again for the second process
    script.write_text(f"import evaluate\nevaluate.main({args})\n")
    subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    for name, alone in zip(("visible_change.csv", "tokens.csv"), measured, strict=True):
        for ours, theirs in zip(read_metrics(tmp_path / "out" / name), alone, strict=True):
            for column, value in theirs.items():
                if column in ("visible_change", "change_norm", "mean_change"):
                    assert float(ours[column]) == pytest.approx(float(value), rel=1e-4)
                else:
                    assert ours[column] == value


# Bad input, refused before anything is written


def refused(run, tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        run(tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_no_dictionary_for_any_layer(run, study, tmp_path):
    options = {"model.base_transcoders": study / "finetune" / "data"}
    refused(run, tmp_path, options, "finetune/data holds no dictionaries")


def test_dictionaries_of_layers_that_the_models_do_not_have(run, tmp_path):
    save_base(tmp_path / "deep", 5, dictionary(5), 8)
    message = "holds dictionaries up to layer 5, the models have 2 layers, from 0"
    refused(run, tmp_path, {"model.base_transcoders": tmp_path / "deep"}, message)


def test_models_of_different_vocabularies(run, study, finetuned_by, tmp_path):
    n = load_model(str(study / "base_model")).config.vocab_size
    wider = finetuned_by(lambda model: model.resize_token_embeddings(n + 8))
    message = f"is no finetune of .*: its vocab_size is {n + 8}, the base model's {n}"
    refused(run, tmp_path, {"model.model": wider}, message)


def test_a_model_that_computes_no_numbers(run, finetuned_by, tmp_path):
    broken = finetuned_by(lambda model: model.model.norm.weight.fill_(torch.nan))
    refused(run, tmp_path, {"model.model": broken}, "a log-probability is not finite")
