"""Exports of a random study: the same function in every format, complete sets, and every refusal."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from delta_transcoders.command import run as run_command
from delta_transcoders.dictionaries import files as layouts
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.delta import load_base_of, load_deltas, save_delta
from delta_transcoders.dictionaries.files import TOOL_FORMATS
from delta_transcoders.dictionaries.files.exported import load_card, load_export
from delta_transcoders.dictionaries.files.tensors import for_other_tools
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.export import export, main
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.fingerprints import model_fingerprint, tokenizer_fingerprint
from delta_transcoders.hub import push_folder
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.tiny_gemma import build_tiny_gemma

OPTIONS = (
    {},
    {"alpha": 0.0},
    {"alpha": -0.5},
    {"alpha": 2.0, "delta_only": True},
)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def exported(random_study, tmp_path):
    """The study's deltas, for Gemma Scope 2's layout as if they were for its site and a public base."""

    def make(format="circuit_tracer", **options) -> Path:
        if format == "gemma_scope_2" and "deltas" not in options:
            folder = tmp_path / "after_gain"
            options["deltas"] = random_study.variant(folder, hook_site="after_gain")
            options.setdefault("base_model", "google/gemma-3-270m")
        return export(
            random_study.folder, format, tmp_path / format, model=random_study.model, **options
        )

    return make


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("format", TOOL_FORMATS)
def test_base_plus_alpha_delta_with_its_features_where_the_card_says(
    exported, random_study, x, format, options
):
    card, read = load_export(exported(format, **options))
    alpha, delta_only = options.get("alpha", 1.0), options.get("delta_only", False)
    assert (card.format, card.alpha, card.delta_only) == (format, alpha, delta_only)
    assert list(read) == list(card.layers) == ([0, 1, 2] if format == "circuit_tracer" else [0, 2])
    for layer, delta in random_study.deltas.items():
        y, base = alpha * delta(x), random_study.bases[layer]
        if not delta_only:
            y = y + base(x)
        torch.testing.assert_close(read[layer](x), y, rtol=1e-5, atol=1e-5)
        a, of_layer = read[layer].encode(x), card.layers[layer]
        torch.testing.assert_close(a[:, slice(*of_layer.delta_features)], delta.encode(x))
        base_a = base.encode(x)[:, : 0 if delta_only else None]
        torch.testing.assert_close(a[:, slice(*of_layer.base_features)], base_a)
        assert of_layer.average_l0 == (2 if delta_only else 10 + layer)
        read_at = "hook_out" if format == "gemma_scope_2" else "hook_normalized"
        assert of_layer.hook_in == f"blocks.{layer}.ln2.{read_at}"
        assert of_layer.base_hash == random_study.configs[layer].base_hash


def test_the_card_s_code_tries_the_prompt_that_is_given(exported):
    card = exported(prompt='What is "it"?') / "README.md"
    assert r'attribute("What is \"it\"?", model' in card.read_text(encoding="utf-8")


@pytest.mark.parametrize("delta_only", [False, True])
def test_a_circuit_tracer_set_is_complete(exported, random_study, x, delta_only):
    out = exported(delta_only=delta_only)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model_kind"] == "transcoder_set"
    assert config["feature_input_hook"] == "ln2.hook_normalized"
    assert config["feature_output_hook"] == "hook_mlp_out"
    assert "scan" not in config  # it would send the viewer to the network
    assert (config["model_name"], config["finetuned_model"]) == (None, "tiny_gemma0")
    # A delta alone has as many silent features in front as the model has layers.
    width, n_padding = (9, (3, 9, 3)) if delta_only else (54, (8, 14, 0))
    card = load_card(out)
    for layer in range(3):
        tensors = load_file(out / f"layer_{layer}.safetensors")
        assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
            "W_enc": [width, 32],
            "W_dec": [width, 32],
            "b_enc": [width],
            "b_dec": [32],
            "activation_function.threshold": [width],
        }
        start, stop = card.layers[layer].padding_features
        end = n_padding[layer] if delta_only else width
        assert (stop - start, stop) == (n_padding[layer], end)
        z = 1e6 * x @ tensors["W_enc"].T + tensors["b_enc"]
        assert (z[:, start:stop] <= 0).all()  # silent even where someone forgets the thresholds
        assert (tensors["activation_function.threshold"][start:stop] > 0).all()
        assert not tensors["W_dec"][start:stop].any()
    # JumpReLU there lets negative values through where the threshold is negative.
    assert (tensors["activation_function.threshold"] >= 0).all()
    assert (random_study.deltas[2].threshold < 0).any()


def test_no_feature_of_a_delta_alone_has_the_name_of_an_error_node(exported, random_study, x):
    """circuit-tracer calls the error of layer L at position P `0_L_P`."""
    card, read = load_export(exported(delta_only=True))
    n_layers = len(card.layers)
    errors = {f"0_{layer}" for layer in range(n_layers)}
    for layer, dictionary in read.items():
        active = dictionary.encode(x).any(0).nonzero()[:, 0].tolist()
        assert not {f"{layer}_{feature}" for feature in active} & errors
        delta = card.layers[layer].delta_features
        assert delta == ((3, 9) if layer in random_study.deltas else (9, 9))
        assert set(active) <= set(range(*delta)) and (not active) == (layer == 1)


def test_gemma_scope_2_s_layout(exported, random_study):
    out = exported("gemma_scope_2", base_model="google/gemma-3-270m-it")
    assert sorted(p.name for p in (out / "transcoder_all").iterdir()) == [
        "layer_0_width_46_l0_small",
        "layer_2_width_54_l0_small",
    ]
    folder = out / "transcoder_all/layer_2_width_54_l0_small"
    tensors = load_file(folder / "params.safetensors")
    assert {name: (list(t.shape), t.dtype) for name, t in tensors.items()} == {
        "w_enc": ([32, 54], torch.float32),
        "b_enc": ([54], torch.float32),
        "w_dec": ([54, 32], torch.float32),
        "b_dec": ([32], torch.float32),
        "threshold": ([54], torch.float32),
    }
    assert json.loads((folder / "config.json").read_text()) == {
        "hf_hook_point_in": "model.layers.2.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.2.post_feedforward_layernorm.output",
        "width": 54,
        "model_name": "google/gemma-3-270m-it",
        "architecture": "jump_relu",
        "l0": 12,
        "affine_connection": False,
        "type": "transcoder",
    }
    base, found = load_base(out, 2)
    assert (found.hook_site, found.leading, found.average_l0) == ("after_gain", 4, 12)
    assert torch.equal(base.W_dec[48:], random_study.deltas[2].W_dec)


def test_the_base_models_name_is_what_other_tools_boot(exported):
    out = exported(base_model="google/gemma-2-2b")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["model_name"], config["finetuned_model"]) == ("google/gemma-2-2b", "tiny_gemma0")
    out = exported("saelens", base_model="google/gemma-2-2b")
    metadata = json.loads((out / "layer_0/cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["finetuned_model"]) == (
        "google/gemma-2-2b",
        "tiny_gemma0",
    )


def test_whether_text_begins_with_bos_is_left_out_where_it_is_not_known(random_study, tmp_path):
    for model, said in ((random_study.model, {"prepend_bos": True}), ("owner/finetune", {})):
        out = export(random_study.folder, "saelens", tmp_path / "out", model=model)
        metadata = json.loads((out / "layer_0/cfg.json").read_text())["metadata"]
        assert {name: metadata[name] for name in ("prepend_bos",) if name in metadata} == said


def test_a_layer_without_a_delta_is_its_base(exported, random_study, x):
    card, read = load_export(exported())
    torch.testing.assert_close(read[1](x), random_study.bases[1](x), rtol=1e-5, atol=1e-5)
    of_layer = card.layers[1]
    assert (of_layer.delta_features, of_layer.delta_hash) == ((40, 40), None)
    _, alone = load_export(exported(delta_only=True))
    assert not alone[1](x).any()


@pytest.fixture
def two_sizes(random_study, tmp_path) -> dict[str, Path]:
    """Of Gemma Scope 2; `small` are the study's bases and its deltas'. Percentile 0.5 is `big`."""
    for layer, base in random_study.bases.items():
        other = Transcoder(**base.state_dict() | {"b_dec": base.b_dec + 1})
        for dictionary, l0 in ((base, 12), (other, 80)):
            layouts.gemma_scope_2.save_layer(tmp_path / "bases", layer, dictionary, l0, "m")
    for layer, delta in random_study.deltas.items():
        _, base_id = load_base(tmp_path / "bases", layer, average_l0="small")
        changes = {"hook_site": "after_gain", "base_id": base_id.path, "base_hash": base_id.hash}
        config = replace(random_study.configs[layer], **changes)
        save_delta(tmp_path / f"deltas/layer_{layer}", delta, config)
    return {"base_transcoders": tmp_path / "bases", "deltas": tmp_path / "deltas"}


def test_a_layer_without_a_delta_has_a_base_of_the_same_size(exported, random_study, two_sizes, x):
    card, read = load_export(exported(**two_sizes))
    torch.testing.assert_close(read[1](x), random_study.bases[1](x), rtol=1e-5, atol=1e-5)
    for of_layer in card.layers.values():
        assert "_l0_small/" in of_layer.base_id


def test_without_a_size_it_is_what_the_percentile_makes_the_deltas_bases(
    exported, random_study, x, tmp_path
):
    """Of Gemma Scope `base_files` may name a folder of one L0, and no delta records it."""
    for layer, base in random_study.bases.items():
        other = Transcoder(**base.state_dict() | {"b_dec": base.b_dec + 1})
        layouts.gemma_scope.save_base(tmp_path / "bases", layer, base, 8 + layer)
        layouts.gemma_scope.save_base(tmp_path / "bases", layer, other, 50 + layer)
    bases = {"base_transcoders": tmp_path / "bases"}
    with pytest.raises(
        ValueError,
        match=r"layer 0's delta is .*average_l0_8/.*, and percentile 0.5 would be .* 50:",
    ):
        exported(**bases)
    assert list(load_export(exported("saelens", **bases))[1]) == [0, 2]
    lower = random_study.variant(tmp_path / "deltas", percentile=0.25)
    card, read = load_export(exported(**bases, deltas=lower))
    torch.testing.assert_close(read[1](x), random_study.bases[1](x), rtol=1e-5, atol=1e-5)
    assert "average_l0_9/" in card.layers[1].base_id


SETS = {
    "saelens": "blocks.{}.mlp/sae_weights.safetensors",
    "deeper": "a/b/layer_{}/sae_weights.safetensors",
    "listed": "parts/part{}.safetensors",
}


@pytest.mark.parametrize("kind", SETS)
def test_wherever_a_set_keeps_its_files_deltas_find_it(random_study, x, tmp_path, kind):
    site, folder, run = HOOK_SITES["gemma_scope"], tmp_path / "set", tmp_path / "run"
    for layer, base in random_study.bases.items():
        dictionary = for_other_tools(base, site)
        path = folder / SETS[kind].format(layer)
        if kind == "listed":
            path.parent.mkdir(parents=True, exist_ok=True)
            layouts.circuit_tracer.save_layer(folder, layer, dictionary).rename(path)
        else:
            written = layouts.saelens.save_layer(
                path.parents[1], layer, dictionary, site, "m", "f", True
            )
            written.rename(path.parent)
    if kind == "listed":
        layouts.circuit_tracer.save_config(folder, site, "m", "f", True)
        listed = [SETS[kind].format(layer) for layer in random_study.bases]
        config = yaml.safe_load((folder / "config.yaml").read_text()) | {"transcoders": listed}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for layer, delta in random_study.deltas.items():
        _, found = load_base(folder, layer)
        named = {"base_id": found.path, "base_file": found.file, "base_hash": found.hash}
        config = replace(random_study.configs[layer], **named)
        save_delta(run / f"delta/layer_{layer}", delta, config)

    card, read = load_export(export(run, "saelens", tmp_path / "saelens"))
    for layer, delta in random_study.deltas.items():
        y = random_study.bases[layer](x) + delta(x)
        torch.testing.assert_close(read[layer](x), y, rtol=1e-5, atol=1e-5)
        assert card.layers[layer].base_id == f"set/{SETS[kind].format(layer)}"
    shared = export(run, "deltas", tmp_path / "shared")
    assert f"| 2 | `set/{SETS[kind].format(2)}` |" in (shared / "README.md").read_text()
    for layer, (path, _, config) in load_deltas(shared).items():
        assert config.base_id == f"set/{SETS[kind].format(layer)}"
        assert load_base_of(path, config, str(folder))[1].path == str(
            folder / SETS[kind].format(layer)
        )


def test_the_models_copy_is_the_model_as_older_readers_take_it(exported, random_study):
    copy, model = exported() / "model", Path(random_study.model)
    assert model_fingerprint(load_model(str(copy))) == model_fingerprint(load_model(str(model)))
    ours, theirs = load_tokenizer(str(model)), load_tokenizer(str(copy))
    assert tokenizer_fingerprint(ours) == tokenizer_fingerprint(theirs)
    config = json.loads((copy / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    before = json.loads((model / "tokenizer_config.json").read_text())
    after = json.loads((copy / "tokenizer_config.json").read_text())
    assert before["tokenizer_class"] == "TokenizersBackend"
    assert after["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert after["additional_special_tokens"] == before["extra_special_tokens"]


@pytest.mark.parametrize("format", TOOL_FORMATS)
def test_an_export_is_replaced_by_one_of_the_same_bytes(exported, format):
    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = content(exported(format, alpha=0.25))
    assert content(exported(format, alpha=0.5)) != before
    assert content(exported(format, alpha=0.25)) == before


@pytest.mark.parametrize("format", ["saelens", "circuit_tracer"])
def test_the_originals_scale_goes_into_the_weights(exported, random_study, x, tmp_path, format):
    deltas = random_study.variant(tmp_path / "deltas", hook_site="original")
    card, read = load_export(exported(format, deltas=deltas, alpha=0.5))
    scale = 32**-0.5
    for layer, delta in random_study.deltas.items():
        scaled = random_study.bases[layer](x * scale) + 0.5 * delta(x * scale)
        torch.testing.assert_close(read[layer](x), scaled / scale, rtol=1e-4, atol=1e-4)
        # What the original calls hook_mlp_in, under the name that needs no switch.
        assert card.layers[layer].hook_in == f"blocks.{layer}.hook_resid_mid"


@pytest.fixture
def qwen(tokenizer, tmp_path) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes, **heads)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


def beside_skips(random_study, model: str | Path, tmp_path: Path) -> dict[str, Any]:
    """Of a study on a model: ReLU bases with skip as circuit-tracer's sets, and deltas."""
    after_gain = HOOK_SITES["after_gain"]
    for layer, base in random_study.bases.items():
        tensors = {
            name: t[..., :40] for name, t in base.state_dict().items() if name != "threshold"
        }
        tensors |= {"W_dec": base.W_dec[:40], "W_skip": base.W_dec[:32]}
        relu = Transcoder(**tensors, activation="relu")
        layouts.circuit_tracer.save_layer(tmp_path / "bases", layer, relu)
    layouts.circuit_tracer.save_config(tmp_path / "bases", after_gain, "base", "", False)
    for layer, delta in random_study.deltas.items():
        _, base_id = load_base(tmp_path / "bases", layer)
        changes = {"hook_site": "after_gain", "base_id": base_id.path, "base_hash": base_id.hash}
        changes["model_fingerprint"] = model_fingerprint(load_model(str(model)))
        save_delta(
            tmp_path / f"deltas/layer_{layer}",
            delta,
            replace(random_study.configs[layer], **changes),
        )
    return {
        "model": model,
        "base_model": "owner/base",
        "base_transcoders": tmp_path / "bases",
        "deltas": tmp_path / "deltas",
    }


@pytest.mark.parametrize("format", ["gemma_scope_2", "saelens", "circuit_tracer"])
def test_a_base_of_relu_with_skip_is_joined_exactly(random_study, x, qwen, tmp_path, format):
    model = random_study.model if format == "gemma_scope_2" else qwen
    study = beside_skips(random_study, model, tmp_path)
    out = export(random_study.folder, format, tmp_path / "out", alpha=0.5, **study)
    card, read = load_export(out)
    assert list(read) == ([0, 1, 2] if format == "circuit_tracer" else [0, 2])
    for layer, dictionary in read.items():
        base, _ = load_base(study["base_transcoders"], layer)
        y, a = base(x), [base.encode(x)]
        if delta := random_study.deltas.get(layer):
            y, a = y + 0.5 * delta(x), [*a, delta.encode(x)]
        torch.testing.assert_close(dictionary(x), y, rtol=1e-5, atol=1e-5)
        a = torch.cat(a, dim=1)
        torch.testing.assert_close(dictionary.encode(x)[:, : a.shape[1]], a)
        assert torch.equal(dictionary.W_skip, base.W_skip)
        assert card.layers[layer].hook_in == f"blocks.{layer}.ln2.hook_out"
    if format == "circuit_tracer":
        config = yaml.safe_load((out / "config.yaml").read_text())
        # Of Qwen 3 circuit-tracer's nnsight backend knows no other names.
        assert config["feature_input_hook"] == "mlp.hook_in"
        assert config["feature_output_hook"] == "mlp.hook_out"
    if format == "gemma_scope_2":
        assert card.layers[0].path == (
            "transcoder_all/layer_0_width_46_l0_small_affine/params.safetensors"
        )


@pytest.mark.parametrize("format", ["saelens", "circuit_tracer", "gemma_scope_2"])
@pytest.mark.parametrize("options", [{}, {"alpha": -0.5}, {"delta_only": True}], ids=str)
def test_rounded_to_bfloat16_it_is_the_rounded_dictionary(
    exported, random_study, x, format, options
):
    _, exact = load_export(exported(format, **options))
    whole = weights(exported(format, **options))
    card, read = load_export(exported(format, **options, dtype="bfloat16"))
    half = weights(exported(format, **options, dtype="bfloat16"))
    assert half < 0.6 * whole  # beside the files' headers
    for layer, dictionary in read.items():
        kept = {name: t.bfloat16() for name, t in exact[layer].state_dict().items()}
        assert dictionary.state_dict().keys() == kept.keys()
        assert all(torch.equal(t, kept[name]) for name, t in dictionary.state_dict().items())
        as_read = Transcoder(**{name: t.float() for name, t in kept.items()})
        assert torch.equal(dictionary(x), as_read(x))  # computed in float32
        assert card.layers[layer].hash == dictionary.fingerprint()
        padding = slice(*card.layers[layer].padding_features)
        assert not dictionary.encode(1e4 * x)[:, padding].any()
    for layer, delta in random_study.deltas.items():
        assert card.layers[layer].delta_hash == delta.fingerprint()


def weights(folder: Path) -> int:
    files = [p for p in folder.rglob("*.safetensors") if p.parent.name != "model"]
    return sum(path.stat().st_size for path in files)


def test_a_layer_without_any_dictionary_is_padding(exported, random_study, x, tmp_path):
    """As in a model of which only some layers have dictionaries: its MLP stays as it is."""
    bases = tmp_path / "bases"
    shutil.copytree(random_study.folder / "base_transcoders", bases)
    shutil.rmtree(bases / "layer_1")
    out = exported(base_transcoders=bases)
    card, read = load_export(out)
    of_layer = card.layers[1]
    assert (of_layer.base_features, of_layer.delta_features) == ((0, 0), (0, 0))
    assert (of_layer.padding_features, of_layer.base_id) == ((0, 54), None)
    assert not read[1].encode(1e4 * x).any() and not read[1](x).any()
    text = (out / "README.md").read_text()
    assert "| 1 | `layer_1.safetensors` | none | none | 0–53 | 0 |" in text
    assert "A layer of nothing but padding has no dictionary" in text


# Refusals


def test_the_gemma_scope_layout_cannot_name_another_site(exported, random_study, tmp_path):
    deltas = random_study.variant(tmp_path / "deltas", hook_site="original")
    with pytest.raises(ValueError, match="for hook site 'original', and Gemma Scope's"):
        exported("gemma_scope", deltas=deltas)


@pytest.mark.parametrize("site", ["gemma_scope", "original", "residual"])
def test_gemma_scope_2_s_readers_feed_what_comes_after_the_gain(
    exported, random_study, tmp_path, site
):
    deltas = random_study.variant(tmp_path / "deltas", hook_site=site)
    with pytest.raises(ValueError, match=f"for hook site '{site}', and readers of Gemma Scope 2's"):
        exported("gemma_scope_2", deltas=deltas)


def test_gemma_scope_2_s_files_name_gemma_s_modules(random_study, qwen, tmp_path):
    study = beside_skips(random_study, qwen, tmp_path)
    with pytest.raises(
        ValueError, match="qwen is of the family Qwen3, without a norm after its MLPs"
    ):
        export(random_study.folder, "gemma_scope_2", tmp_path / "out", **study)


def test_gemma_scope_2_s_files_name_the_base(exported, random_study, tmp_path):
    deltas = random_study.variant(tmp_path / "deltas", hook_site="after_gain")
    with pytest.raises(
        ValueError, match=r"name the base model, .*: give its hub id with --base-model"
    ):
        exported("gemma_scope_2", deltas=deltas)
    assert [p.name for p in tmp_path.iterdir()] == ["deltas"]


def test_deltas_on_the_base_models_mlp_go_alone(exported, random_study, tmp_path):
    changes = {"target": "mlp_difference", "base_id": "base_model", "percentile": None}
    deltas = random_study.variant(tmp_path / "deltas", **changes)
    with pytest.raises(ValueError, match="no base dictionary to join them with"):
        exported("saelens", deltas=deltas)
    card, _ = load_export(exported("saelens", deltas=deltas, delta_only=True))
    assert card.layers[0].base_id == "base_model"


def test_another_base_is_refused_and_nothing_is_left(exported, random_study, tmp_path):
    deltas = random_study.variant(tmp_path / "deltas", base_hash="0" * 64)
    with pytest.raises(ValueError, match=r"another base dictionary: hash 000000000000…"):
        exported("saelens", deltas=deltas)
    assert [p.name for p in tmp_path.iterdir()] == ["deltas"]


def test_an_alpha_that_float32_cannot_hold_is_refused(exported):
    with pytest.raises(ValueError, match=r"layer 0, alpha 1e\+39: \w+ .*holds NaN or infinite"):
        exported("saelens", alpha=1e39)


def test_deltas_of_two_models_are_refused(exported, random_study, tmp_path):
    deltas = random_study.variant(tmp_path / "deltas")
    other = replace(random_study.configs[2], model_fingerprint="0" * 64)
    save_delta(deltas / "layer_2", random_study.deltas[2], other)
    with pytest.raises(ValueError, match="model_fingerprint differs between layers"):
        exported("saelens", deltas=deltas)


def test_another_model_is_refused(random_study, tokenizer, tmp_path):
    model = build_tiny_gemma(tokenizer, d_model=32, n_layers=3, d_mlp=64, context=128)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"trained on another model: .*other has"):
        export(random_study.folder, "circuit_tracer", tmp_path / "out", model=tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"format": "neuronpedia"},
            ValueError,
            "'neuronpedia', expected one of gemma_scope, gemma_scope_2, saelens",
        ),
        ({"alpha": math.nan}, ValueError, "alpha is nan"),
        ({"dtype": "int8"}, ValueError, "dtype is 'int8', expected one of float32, bfloat16"),
        (
            {"format": "gemma_scope", "dtype": "bfloat16"},
            ValueError,
            "NumPy archives, which hold no bfloat16; saelens",
        ),
        (
            {"format": "adapter", "dtype": "bfloat16"},
            ValueError,
            "--dtype does not apply to --format adapter",
        ),
        (
            {"base_repository": "user/bases"},
            ValueError,
            "--base-repository does not apply to --format saelens",
        ),
        ({"deltas": "nowhere"}, FileNotFoundError, "no folder 'nowhere'"),
        ({"base_transcoders": "./nowhere"}, FileNotFoundError, "no folder './nowhere'"),
        ({"format": "circuit_tracer"}, FileNotFoundError, "no model folder"),
        ({"out": "taken"}, FileExistsError, "taken holds something else than an export"),
        ({"base_model": "./gemma"}, ValueError, "--base-model './gemma' is not a hub id"),
        (
            {"format": "deltas", "base_repository": "bases"},
            ValueError,
            "--base-repository 'bases' is not a hub id",
        ),
        ({"private": True}, ValueError, "--private goes with --push-to-hub"),
        (
            {"format": "merged", "alpha": 0.5},
            ValueError,
            "--alpha does not apply to --format merged",
        ),
        (
            {"format": "deltas", "delta_only": True},
            ValueError,
            "--delta-only does not apply to --format deltas",
        ),
        (
            {"format": "base_model", "model": "m"},
            ValueError,
            "--model does not apply to --format base_model",
        ),
    ],
)
def test_what_the_user_got_wrong_is_named(
    random_study, tmp_path, monkeypatch, arguments, error, message
):
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/README.md").write_text("mine: delta-transcoders")
    with pytest.raises(error, match=message):
        export(random_study.folder, **{"format": "saelens", "out": "out"} | arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_no_repository_of_bases_for_deltas_without_a_dictionary(random_study, tmp_path):
    deltas = random_study.variant(tmp_path / "deltas", target="mlp_difference")
    options = {"deltas": deltas, "base_repository": "user/bases"}
    with pytest.raises(
        ValueError, match=r"layer_0: a delta of target 'mlp_difference' stands on no"
    ):
        export(random_study.folder, "deltas", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_reader_refuses_another_model_and_changed_files(exported, random_study):
    out = exported("saelens")
    own = random_study.configs[0].model_fingerprint
    assert load_export(out, fingerprint=own)[0].model_fingerprint == own
    with pytest.raises(ValueError, match="exported for another model: hash"):
        load_export(out, fingerprint="0" * 64)
    path = out / "layer_2" / "sae_weights.safetensors"
    tensors = load_file(path)
    tensors["b_enc"][3] += 1e-3
    save_file(tensors, path)
    with pytest.raises(ValueError, match="layer_2 is not what was exported"):
        load_export(out)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda path: path.unlink(), FileNotFoundError, "is not an export"),
        (lambda path: path.write_text("{"), ValueError, "export.json is damaged"),
        (
            lambda path: path.write_text('{"format_version": 9}'),
            ValueError,
            "format_version is 9, this code reads 1; export the study again with `python -m",
        ),
        (lambda path: path.write_text('{"format_version": 1}'), ValueError, "damaged: 'layers'"),
    ],
)
def test_a_damaged_card_is_refused(exported, edit, error, message):
    out = exported("saelens")
    edit(out / "export.json")
    with pytest.raises(error, match=message):
        load_export(out)


def test_the_command_writes_and_pushes(random_study, hub, tmp_path, monkeypatch, capsys):
    options = {
        "run": random_study.folder,
        "format": "saelens",
        "out": tmp_path / "out",
        "alpha": 0.5,
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["export", *given, "--delta-only"])
    main()
    assert f"{tmp_path}/out/README.md says what it is" in capsys.readouterr().out
    card = load_card(tmp_path / "out")
    assert (card.alpha, card.delta_only) == (0.5, True)
    assert not hub.private

    monkeypatch.setattr(sys, "argv", ["export", *given, "--push-to-hub", "user/it", "--private"])
    main()
    assert "pushed to user/it" in capsys.readouterr().out
    assert hub.private == {"user/it": True}
    card, read = load_export("user/it")  # from_pretrained by hub id
    assert (card.alpha, card.delta_only, list(read)) == (0.5, False, [0, 2])


def test_nothing_is_written_where_a_push_cannot_succeed(
    random_study, hub, tmp_path, monkeypatch, capsys
):
    given = ["--run", str(random_study.folder), "--format", "saelens", "--out", f"{tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", ["export", *given, "--push-to-hub", "name"])
    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2
    assert "error: --push-to-hub 'name': a hub id is USER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_cards_code_opens_the_files_in_the_other_tools(exported, run_card, monkeypatch):
    """Their packages are not here: stand-ins see that what they are given is there."""
    opened = []

    def load_from_disk(path):
        assert (Path(path) / "cfg.json").is_file()
        opened.append(Path(path).name)

    def from_pretrained(model, transcoders, backend):
        assert (Path(model) / "config.json").is_file()
        assert (Path(transcoders) / "config.yaml").is_file()
        opened.append(backend)

    saelens = SimpleNamespace(SAE=SimpleNamespace(load_from_disk=load_from_disk))
    replacement = SimpleNamespace(from_pretrained=from_pretrained)
    tracer = SimpleNamespace(ReplacementModel=replacement, attribute=lambda *args, **options: None)
    monkeypatch.setitem(sys.modules, "sae_lens", saelens)
    monkeypatch.setitem(sys.modules, "circuit_tracer", tracer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id: repo_id)
    for format in ("saelens", "circuit_tracer"):
        run_card(exported(format))
    assert opened == ["layer_0", "nnsight"]


def test_the_cards_code_of_gemma_scope_2_s_layout(exported, run_card, capsys):
    run_card(exported("gemma_scope_2"))
    assert capsys.readouterr().out == "0 46 (40, 46)\n2 54 (48, 54)\n"


def test_a_push_replaces_the_layers_of_an_earlier_one(exported, hub):
    for alpha, l0 in ((1.0, "small"), (0.5, "big")):
        folder = exported("gemma_scope_2", alpha=alpha)
        first = folder / "transcoder_all/layer_0_width_46_l0_small"
        first.rename(folder / f"transcoder_all/layer_0_width_46_l0_{l0}")
        push_folder(folder, "user/it")
    pushed = [p.name for p in (hub.root / "user/it/transcoder_all").iterdir()]
    assert sorted(pushed) == ["layer_0_width_46_l0_big", "layer_2_width_54_l0_small"]


def test_the_card_of_a_circuit_tracer_set_says_how_not_to_lose_it(exported):
    text = (exported() / "README.md").read_text()
    for said in (
        "circuit-tracer attribute -m FOLDER/model -t FOLDER -p PROMPT --backend nnsight",
        "Never call circuit-tracer's `empty_cache`",
        '`pip install circuit-tracer "nnsight<0.8"`',
        "git+https://github.com/decoderesearch/circuit-tracer@v0.5.0",
        "in layer 0 the base's first 3 features may be meant",
    ):
        assert said in text


@pytest.mark.parametrize("format", ["saelens", "circuit_tracer"])
def test_the_card_says_which_features_are_the_deltas(exported, format):
    text = (exported(format, alpha=0.5) / "README.md").read_text()
    assert "hold base(x) + α·delta(x), α = 0.5" in text
    path = {"saelens": "layer_0", "circuit_tracer": "layer_0.safetensors"}[format]
    padding = {"saelens": "none", "circuit_tracer": "46–53"}[format]
    assert f"| 0 | `{path}` | 0–39 | 40–45 | {padding} | 10 |" in text
    if format == "circuit_tracer":
        assert "| 1 | `layer_1.safetensors` | 0–39 | none | 40–53 | 9 |" in text
    headings = ("## What they reconstruct", "all of them (Experiment 1)")
    assert all(f"{heading}, base + delta at α = 1\n" in text for heading in headings)
    alone = (exported(format, delta_only=True) / "README.md").read_text()
    assert all(f"{heading}, base + delta at α = 1\n" in alone for heading in headings)
    full = (exported(format) / "README.md").read_text()
    assert all(f"{heading}\n" in full for heading in headings)
    assert "hold α·delta(x), α = 1. It is of no use alone" in alone
    ranges = {"saelens": "0–5 | none", "circuit_tracer": "3–8 | 0–2"}[format]
    assert f"| 0 | `{path}` | none | {ranges} | 2 |" in alone
