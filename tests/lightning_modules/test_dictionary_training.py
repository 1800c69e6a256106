"""Capture, base dictionaries, deltas and experiments, end to end on a study of random tiny models."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers.normalizers import Lowercase

import evaluate
import train
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries import stack
from delta_transcoders.dictionaries.bases import available_l0s, load_base
from delta_transcoders.dictionaries.delta import load_delta
from delta_transcoders.dictionaries.files.gemma_scope import save_base
from delta_transcoders.dictionaries.stack import Variant
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.report.tables import read_metrics
from lightning_modules.base_transcoder import BaseTranscoderTraining


def test_a_base_dictionary_is_named_after_the_l0_that_it_has(dictionaries):
    for layer in (0, 1):
        (l0,) = available_l0s(str(dictionaries / "base_transcoders"), layer, 128)
        base, _ = load_base(str(dictionaries / "base_transcoders"), layer, percentile=0.5)
        rows = ActivationCache(dictionaries / "base_activations").load("validation", layer)
        a_NF = base.encode(rows["x"].float())
        assert l0 == round(float((a_NF > 0).sum() / len(a_NF)))


def test_a_delta_s_config_says_what_its_tensors_do(dictionaries):
    cache = ActivationCache(dictionaries / "activations")
    for layer in (0, 1):
        delta, config = load_delta(dictionaries / "delta" / f"layer_{layer}")
        base, base_id = load_base(
            str(dictionaries / "base_transcoders"), layer, average_l0=config.average_l0_base
        )
        assert (config.base_id, config.base_hash) == (base_id.path, base_id.hash)
        assert config.model_fingerprint == cache.meta.model_fingerprint
        assert (config.hook_in, config.hook_out) == cache.meta.hook_site.names(layer)
        rows = {k: v.float() for k, v in cache.load("validation", layer).items()}
        x, y = rows["x"], rows["y"].double()
        squares = (y - y.mean(0)).square().sum()
        # Residuals are stored in the cache's float16.
        fvu_base = float((y - base(x)).square().sum() / squares)
        assert config.measured["fvu_base"] == pytest.approx(fvu_base, rel=1e-3)
        fvu_full = float((y - base(x) - delta(x)).square().sum() / squares)
        assert config.measured["fvu_full"] == pytest.approx(fvu_full, rel=1e-3)
        assert fvu_full < fvu_base
        active = delta.encode(x) > 0
        assert config.measured["l0_delta"] == pytest.approx(float(active.sum(1).double().mean()))
        dead = 1 - float(active.any(0).double().mean())
        assert config.measured["dead_fraction"] == pytest.approx(dead)
        assert not delta.b_dec.any()


def test_a_variant_of_a_sweep_is_the_one_trained_alone(
    dictionaries, arguments, delta_options, tmp_path
):
    sweep = {
        "model.d_new": "[6, 4]",
        "data.percentiles": "[0.25, 0.75]",
        "model.output": tmp_path / "sweep",
    }
    alone = {"data.layers": "[1]", "data.percentiles": "[0.75]", "model.output": tmp_path / "alone"}
    train.main(arguments("tiny/delta.yaml", dictionaries, delta_options | sweep))
    train.main(arguments("tiny/delta.yaml", dictionaries, delta_options | alone))
    together, config = load_delta(tmp_path / "sweep" / "d6_p0.75" / "layer_1")
    single, single_config = load_delta(tmp_path / "alone" / "layer_1")
    for name, tensor in single.state_dict().items():
        torch.testing.assert_close(together.get_buffer(name), tensor, rtol=0, atol=5e-3)
    # Rounding, which differs with the number of threads, flips a few of BatchTopK's choices.
    assert config.measured == pytest.approx(single_config.measured, rel=0.01)
    assert len(list((tmp_path / "sweep").glob("d*_p*/layer_*/config.json"))) == 8


@pytest.mark.parametrize("mode", ["batch_topk", "jumprelu", "l1"])
def test_an_interrupted_run_resumes_to_the_same_weights(
    dictionaries, arguments, delta_options, tmp_path, mode
):
    every = {"trainer.callbacks+": "lightning.pytorch.callbacks.ModelCheckpoint"}
    every |= {"trainer.callbacks.dirpath": tmp_path, "trainer.callbacks.every_n_train_steps": 5}
    every |= {"trainer.callbacks.save_top_k": -1, "trainer.callbacks.filename": "{step}"}
    options = delta_options | {"model.sparsity.mode": mode}
    whole = options | every | {"model.output": tmp_path / "whole"}
    train.main(arguments("tiny/delta.yaml", dictionaries, whole))
    resumed = options | {"model.output": tmp_path / "resumed"}
    resumed |= {"ckpt_path": tmp_path / "step=5.ckpt"}
    train.main(arguments("tiny/delta.yaml", dictionaries, resumed))
    for layer in (0, 1):
        one, two = (load_delta(tmp_path / n / f"layer_{layer}")[0] for n in ("whole", "resumed"))
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.get_buffer(name)), name


def test_a_dictionary_at_the_wrong_site_stops_the_training(
    dictionaries, arguments, delta_options, tmp_path
):
    folder = tmp_path / "wrong"
    model = load_model(str(dictionaries / "base_model"))
    for layer in (0, 1):
        base, base_id = load_base(str(dictionaries / "base_transcoders"), layer, percentile=0.5)
        gain = 1 + model.model.layers[layer].pre_feedforward_layernorm.weight.data
        # Reads after the gain what was trained before it.
        base.W_enc = base.W_enc / gain[:, None]
        save_base(folder, layer, base, base_id.average_l0)
    options = delta_options | {"data.base_transcoders": folder, "model.output": tmp_path / "delta"}
    with pytest.raises(ValueError, match=r"gemma_scope.*ln2.hook_out -> blocks.0.hook_mlp_out"):
        train.main(arguments("tiny/delta.yaml", dictionaries, options))
    assert not (tmp_path / "delta").exists()


def refused(study, arguments, options, message):
    """The message comes, nothing is written and the cache stays as it was."""
    manifest = (study / "activations" / "manifest.json").read_bytes()
    output = study / "refused"
    with pytest.raises(ValueError, match=message):
        train.main(arguments("tiny/delta.yaml", study, options | {"model.output": output}))
    assert not output.exists()
    assert (study / "activations" / "manifest.json").read_bytes() == manifest


def test_a_cache_of_another_model_or_tokenizer_is_refused(
    dictionaries, arguments, delta_options, tmp_path
):
    other_model = {"data.model": dictionaries / "base_model"}
    refused(dictionaries, arguments, delta_options | other_model, "has model_fingerprint = ")
    load_model(str(dictionaries / "finetune/merged")).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(dictionaries / "finetune/merged"))
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(tmp_path)
    other_tokenizer = {"data.model": tmp_path}
    refused(dictionaries, arguments, delta_options | other_tokenizer, "tokenizer_fingerprint = ")


def test_a_base_of_another_width_is_refused(dictionaries, arguments, delta_options, tmp_path):
    base, _ = load_base(str(dictionaries / "base_transcoders"), 0, percentile=0.5)
    tensors = base.state_dict() | {"W_enc": base.W_enc[:8], "W_dec": base.W_dec[:, :8]}
    narrow = Transcoder(**tensors | {"b_dec": base.b_dec[:8]})
    for layer in (0, 1):
        save_base(tmp_path, layer, narrow, 16)
    options = delta_options | {"data.base_transcoders": tmp_path}
    refused(dictionaries, arguments, options, r"layer_0.*d_model 8, the model expects 32")


def test_every_layer_has_its_curves(dictionaries):
    events = EventAccumulator(str(dictionaries / "logs/delta")).Reload()
    tags = events.Tags()
    measured_names = (
        "fvu", "fvu_base", "cosine", "relative_l2", "l0", "l0_base", "dead_fraction"
    )  # fmt: skip
    trained = tuple(f"train/{name}" for name in ("loss", "penalty", "l0"))
    for layer in ("layer_0", "layer_1"):
        assert {f"{name}/{layer}" for name in (*trained, *measured_names)} <= set(tags["scalars"])
        assert f"log10_density/{layer}" in tags["histograms"]
        best = min(event.value for event in events.Scalars(f"fvu/{layer}"))
        measured = load_delta(dictionaries / "delta" / layer)[1].measured
        assert best == pytest.approx(measured["fvu_full"], rel=0.01)


def test_training_stops_when_all_variants_have_converged(
    dictionaries, arguments, delta_options, tmp_path
):
    frozen = {"model.lr": 0.0, "model.patience": 2, "model.output": tmp_path}
    cli = train.main(arguments("tiny/delta.yaml", dictionaries, delta_options | frozen))
    assert cli.trainer.global_step == 3 * 4  # the first validation is an improvement, two are not
    assert cli.trainer.global_step < cli.trainer.estimated_stepping_batches


def test_a_variant_that_diverges_is_named_and_takes_no_other_with_it(
    dictionaries, arguments, delta_options, tmp_path, monkeypatch
):
    first_weights = stack.first_weights

    def broken(seed, key, *args):
        W_enc, W_dec = first_weights(seed, key, *args)
        return W_enc * (torch.nan if key == "layer_1/d4/p0.5" else 1), W_dec

    options = delta_options | {"model.d_new": "[6, 4]", "model.output": tmp_path / "sweep"}
    monkeypatch.setattr(stack, "first_weights", broken)
    with pytest.raises(ValueError, match=r"finite FVU for layer_1/d4/p0\.5: "):
        train.main(arguments("tiny/delta.yaml", dictionaries, options))
    assert not (tmp_path / "sweep").exists()
    beside = tmp_path / "sweep.incomplete"
    written = {str(p.parent.relative_to(beside)) for p in beside.rglob("config.json")}
    assert written == {"d6_p0.5/layer_0", "d6_p0.5/layer_1", "d4_p0.5/layer_0"}
    monkeypatch.undo()
    train.main(
        arguments("tiny/delta.yaml", dictionaries, options | {"model.output": tmp_path / "sound"})
    )
    for folder in ("d6_p0.5/layer_1", "d4_p0.5/layer_0"):
        ours, sound = (load_delta(tmp_path / n / folder)[0] for n in ("sweep.incomplete", "sound"))
        assert torch.equal(ours.W_dec, sound.W_dec)


def test_a_training_without_a_validation_leaves_earlier_base_dictionaries(
    dictionaries, arguments, tmp_path
):
    folder = shutil.copytree(dictionaries / "base_transcoders", tmp_path / "base_transcoders")
    before = {p: p.read_bytes() for p in folder.rglob("*.npz")}
    assert before
    options = {
        "data.batch_tokens": 128,
        "model.width": 128,
        "model.l0": "[16]",
        "model.output": folder,
        "trainer.max_steps": 1,
        "trainer.log_every_n_steps": 1,
    }
    with pytest.raises(ValueError, match="finite FVU for layer_0/l0_16"):
        train.main(arguments("tiny/base_transcoder.yaml", dictionaries, options))
    assert {p: p.read_bytes() for p in folder.rglob("*.npz")} == before


def test_several_l0_targets_give_as_many_dictionaries(dictionaries, arguments, tmp_path):
    options = {
        "data.batch_tokens": 128,
        "data.passes": 10,
        "model.width": 64,
        "model.l0": "[4, 24, 24.1]",
        "model.output": tmp_path,
        "trainer.enable_checkpointing": "false",
        "trainer.callbacks": "[]",
    }
    train.main(arguments("tiny/base_transcoder.yaml", dictionaries, options))
    for layer in (0, 1):
        low, high, as_high = available_l0s(str(tmp_path), layer, 64)
        assert low < 12 < high < as_high < high + 2


def test_the_original_s_site_is_used_under_its_name_and_warns(
    dictionaries, arguments, delta_options, tmp_path
):
    cache = {"model.hook_site": "original", "trainer.callbacks.output": tmp_path / "cache"}
    evaluate.main(arguments("tiny/activations.yaml", dictionaries, cache))
    options = {"data.cache": tmp_path / "cache", "model.output": tmp_path / "delta"}
    with pytest.warns(match="hook site 'original' is not where the base dictionary of layer 1"):
        train.main(arguments("tiny/delta.yaml", dictionaries, delta_options | options))
    config = load_delta(tmp_path / "delta/layer_1")[1]
    assert (config.hook_site, config.hook_in) == ("original", "blocks.1.hook_mlp_in")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.d_new": "[0]"}, r"d_new is \[0\]"),
        ({"data.percentiles": "[1.5]"}, "--data.percentiles is 1.5, expected >=0 and <=1"),
        ({"data.layers": "[7]"}, "layer 7"),
        ({"data.layers": "[]"}, "layers is empty"),
        ({"data.percentiles": "[]"}, "percentiles is empty"),
        ({"data.passes": 0}, "--data.passes is 0, expected >0"),
        ({"model.d_new": "[6, 6]"}, r"d_new is \[6, 6\]"),
    ],
)
def test_bad_options_are_named(dictionaries, arguments, delta_options, options, message):
    refused(dictionaries, arguments, delta_options | options, message)


def test_experiments_write_a_row_for_every_layer_subset_and_condition(
    dictionaries, arguments, tmp_path
):
    layers = {"model.layers": "[0, 1, all]", "model.max_new_tokens": 8}
    for name in ("exp1", "exp2a", "exp2b"):
        output = tmp_path / name
        evaluate.main(
            arguments(f"tiny/{name}.yaml", dictionaries, layers | {"model.output": output})
        )
    exp1, exp2a, exp2b = (
        read_metrics(tmp_path / n / "metrics.csv") for n in ("exp1", "exp2a", "exp2b")
    )
    assert len(exp1) == (1 + 3 * 3) * 3
    assert len(exp2a) == (1 + 3 * 4) * 3
    assert len(exp2b) == (1 + 3 * 7) * 3

    def cell(rows, column, **where):
        (row,) = [r for r in rows if all(r[k] == v for k, v in where.items())]
        return float(row[column])

    def same(value):  # in other batches: the tables round the fifth digit
        return pytest.approx(value, abs=2e-5)

    for subset in ("tool", "copy", "tool_ood"):
        raw = cell(exp1, "mean_ce", subset=subset, condition="raw")
        for layer in ("0", "1", "all"):
            at = {"subset": subset, "layer": layer}
            full, zero = (cell(exp2a, "mean_ce", condition=c, **at) for c in ("full", "no_delta"))
            assert cell(exp1, "mean_ce", condition="full", **at) == same(full)
            assert cell(exp1, "dce", condition="full", **at) == pytest.approx(full - raw, abs=1e-4)
            assert cell(exp2b, "mean_ce", condition="alpha_1.00", **at) == same(full)
            assert cell(exp2b, "mean_ce", condition="alpha_0.00", **at) == same(zero)
    config = json.loads((dictionaries / "delta/layer_0/config.json").read_text())
    assert 0 < config["measured"]["fvu_full"] < 1
    one = cell(exp1, "fvu", subset="tool", layer="0", condition="full")
    assert 0 < one < cell(exp1, "fvu", subset="tool", layer="0", condition="no_delta")
    assert 0 < cell(exp1, "fvu", subset="tool", layer="0", condition="top_8_neurons") < 1
    lines = (tmp_path / "exp2a" / "generations.jsonl").read_text().splitlines()
    assert len(lines) == (1 + 3 * 4) * 15
    assert {"layer", "condition", "prompt", "target", "text", "parsed_call"} <= set(
        json.loads(lines[0])
    )
    assert (tmp_path / "exp2b" / "plots" / "dose_response.png").is_file()


def test_two_l0_that_print_alike_have_folders_of_their_own(tmp_path):
    module = BaseTranscoderTraining(output="")
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(layers=[3]))
    tensors = {"W_enc": torch.ones(4, 6), "b_enc": torch.ones(6), "W_dec": torch.ones(6, 4)}
    base = Transcoder(**tensors, b_dec=torch.ones(4), threshold=torch.ones(6))
    variant = Variant("layer_3/l0_24", 0, 0, 24)
    for l0 in (24.123, 24.124, 24.26, 24.1231):
        assert module.export(tmp_path, variant, base, {"l0": l0}) == "layer_3/width_6"
    held = [24, 24.1, 24.12, 24.3]
    assert available_l0s(str(tmp_path), 3, 6) == held
    with pytest.warns(StudyWarning, match=r"layer_3/l0_24 is not written: .* the L0 24.0000 too"):
        module.export(tmp_path, variant, base, {"l0": 24.0})
    assert available_l0s(str(tmp_path), 3, 6) == held
