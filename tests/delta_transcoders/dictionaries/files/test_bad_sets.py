"""Public sets that are damaged, incomplete or mean something else: each is refused by name."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from delta_transcoders.dictionaries.bases import load_base
from interop.published_sets import (
    D,
    F,
    circuit_tracer,
    gemma_scope,
    gemma_scope_2,
    saelens,
    sparsify,
    write,
    write_json,
)


def replaced(path: Path, **changes: np.ndarray | None) -> None:
    tensors = load_file(path) | changes
    write(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})


FIRST = {
    "gemma_scope_2": "transcoder_all/layer_0_width_12_l0_small_affine/params.safetensors",
    "circuit_tracer": "layer_0.safetensors",
    "sparsify": "model.layers.0.mlp/sae.safetensors",
    "saelens": "layer_0/sae_weights.safetensors",
}
ENCODER = {"gemma_scope_2": "w_enc", "sparsify": "encoder.weight"}
WRITERS = {
    "gemma_scope_2": lambda folder: gemma_scope_2(folder, affine=True),
    "circuit_tracer": lambda folder: circuit_tracer(folder, skip=True),
    "sparsify": lambda folder: sparsify(folder, skip=True),
    "saelens": lambda folder: saelens(folder, "skip_transcoder", ("mlp.hook_in", "hook_mlp_out")),
}


@pytest.fixture(params=FIRST)
def layout(request, tmp_path) -> tuple[str, Path]:
    WRITERS[request.param](tmp_path)
    return request.param, tmp_path / FIRST[request.param]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.T, r"has shape .*; it is transposed"),
        (lambda t: t.astype(np.float64), r"has dtype torch.float64, expected float32, bfl"),
        (lambda t: t.astype(np.int32), r"has dtype torch.int32, expected float32, bfl"),
        (lambda t: t * np.float32(np.nan), r"W_enc .* holds NaN or infinite values"),
        (lambda t: None, r"is missing; the file holds"),
    ],
)
def test_an_encoder_that_is_not_one(layout, tmp_path, edit, message):
    name, path = layout
    encoder = ENCODER.get(name, "W_enc")
    replaced(path, **{encoder: edit(load_file(path)[encoder])})
    with pytest.raises(ValueError, match=message) as error:
        load_base(tmp_path, 0)
    assert str(path) in str(error.value)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
NO_FILE = {
    "pointer": (lambda content: POINTER, "is not the file but a Git LFS"),
    "pickle": (
        lambda content: pickle.dumps({"W_enc": [1.0]}),
        "is not a .* be a pickle, or cut short",
    ),
    "cut short": (lambda content: content[:-100], "is not a .* be a pickle, or cut short"),
    "cut in the header": (lambda content: content[:20], "is not a .* be a pickle, or cut short"),
    "empty": (lambda content: b"", "is not a .* be a pickle, or cut short"),
    "garbage": (lambda content: b"\x10" + 7 * b"\0" + 90 * b"x", "is not a .* be a pickle"),
}


@pytest.mark.parametrize("what", NO_FILE)
def test_a_file_that_is_none(layout, tmp_path, what):
    path, (edit, message) = layout[1], NO_FILE[what]
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_base(tmp_path, 0)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("what", NO_FILE)
def test_an_archive_that_is_none(tmp_path, what):
    gemma_scope(tmp_path)
    path, (edit, message) = tmp_path / "layer_0/width_12/average_l0_5/params.npz", NO_FILE[what]
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_base(tmp_path, 0)
    assert str(path) in str(error.value)


def test_a_skip_of_another_shape(layout, tmp_path):
    name, path = layout
    skip = {"gemma_scope_2": "affine_skip_connection"}.get(name, "W_skip")
    replaced(path, **{skip: np.zeros((D, D + 1), np.float32)})
    with pytest.raises(ValueError, match=rf"{skip} has shape \[8, 9\], expected \[8, 8\]"):
        load_base(tmp_path, 0)


def test_a_skip_where_the_configuration_has_none(tmp_path):
    gemma_scope_2(tmp_path)
    path = tmp_path / "transcoder_all/layer_0_width_12_l0_small/params.safetensors"
    replaced(path, affine_skip_connection=np.zeros((D, D), np.float32))
    with pytest.raises(ValueError, match="unexpected tensor affine_skip_connection"):
        load_base(tmp_path, 0)


def test_another_models_set_and_a_layer_that_is_missing(layout, tmp_path):
    with pytest.raises(ValueError, match=r"d_model 8, the model expects 2304.*another model"):
        load_base(tmp_path, 0, d_model=2304)
    with pytest.raises(ValueError, match=r"no base dictionary of layer 2; its layers: \[0, 1\]"):
        load_base(tmp_path, 2)
    with pytest.raises(ValueError, match=r"has 12 features, expected 13|nothing of width 13"):
        load_base(tmp_path, 0, width=13)


def with_another_member(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.removesuffix(".npy"), content[8:])


def with_compressed_garbage(path: Path) -> None:
    with np.load(path) as archive:
        np.savez_compressed(path, **archive)
    content = bytearray(path.read_bytes())
    content[120:160] = bytes(40)
    path.write_bytes(content)


def with_a_flag(offset: int, value: int) -> Callable[[Path], None]:
    """In the header of every member, here and in the archive's directory."""

    def edit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        for header, start in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
            at = content.find(header)
            while at >= 0:
                content[at + start] = value
                at = content.find(header, at + 1)
        path.write_bytes(content)

    return edit


@pytest.mark.parametrize(
    "edit",
    [with_another_member, with_compressed_garbage, with_a_flag(6, 1), with_a_flag(8, 97)],
    ids=["no .npy", "garbage", "encrypted", "another compression"],
)
def test_an_archive_with_members_that_are_none(tmp_path, edit):
    gemma_scope(tmp_path)
    path = tmp_path / "layer_0/width_12/average_l0_5/params.npz"
    edit(path)
    with pytest.raises(ValueError, match=r"params.npz: \w+ cannot be read as a plain array: "):
        load_base(tmp_path, 0)


def test_a_set_without_features(tmp_path):
    circuit_tracer(tmp_path)
    path = tmp_path / "layer_0.safetensors"
    none = {"W_enc": (0, D), "b_enc": (0,), "W_dec": (0, D)}
    replaced(path, **{name: np.zeros(shape, np.float32) for name, shape in none.items()})
    with pytest.raises(ValueError, match=r"b_enc has shape \[0\], expected a vector that is not"):
        load_base(tmp_path, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_input_hook": "ln1.hook_out"}, "config.yaml: reads at 'ln1.hook_out', expected"),
        ({"feature_output_hook": "hook_z"}, "config.yaml: writes at 'hook_z', expected one of"),
        ({"model_kind": "cross_layer_transcoder"}, "model_kind is 'cross_layer_transcoder'"),
        ({"activation": "gelu"}, "activation is 'gelu', expected one of relu, topk"),
        ({"activation": "topk"}, "activation is topk and k is missing; write `k: NUMBER`"),
        ({"activation": "topk", "k": 13}, "k is 13, expected a whole number from 1 to 12"),
        ({"activation": "topk", "k": 0}, "k is 0, expected a whole number from 1 to 12"),
        ({"activation": "topk", "k": "3"}, "k is '3', expected a whole number"),
        ({"activation": "topk", "k": 3.0}, r"k is 3\.0, expected a whole number"),
        ({"k": 3}, "k is 3, and activation 'relu' has none"),
        ({"activation": ["topk"]}, r"activation is \['topk'\], expected one of"),
        ({"feature_input_hook": ["mlp.hook_in"]}, r"reads at \['mlp.hook_in'\], expected one of"),
        ({"feature_output_hook": None}, "writes at None, expected one of"),
        ({"activation": "jumprelu"}, "activation_function.threshold is missing"),
        ({"transcoders": ["hf://a/b/c.safetensors"]}, "lists hf://a/b/c.safetensors; download"),
    ],
)
def test_a_circuit_tracer_set_that_we_cannot_mean(tmp_path, changes, message):
    circuit_tracer(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_base(tmp_path, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": False}, "transcode is False, expected true: an autoencoder"),
        ({"activation": "groupmax"}, "activation is 'groupmax', expected 'topk'"),
        ({"signed": True}, "signed is True, expected False"),
        ({"n_targets": 2}, "n_targets is 2, expected 0"),
        ({"k": None}, "k is missing"),
        ({"k": 13}, "k is 13, expected a whole number from 1 to 12"),
        ({"k": "3"}, "k is '3', expected a whole number"),
        ({"skip_connection": True}, "W_skip is missing"),
        ({"normalize_io": True}, "in_norm is missing or not one positive number"),
        ({"normalize_io": "false"}, "normalize_io is 'false', expected true or false"),
        ({"skip_connection": 0}, "skip_connection is 0, expected true or false"),
    ],
)
def test_a_sparsify_set_that_we_cannot_mean(tmp_path, changes, message):
    sparsify(tmp_path)
    path = tmp_path / "model.layers.0.mlp/cfg.json"
    write_json(path, json.loads(path.read_text()) | changes)
    with pytest.raises(ValueError, match=message):
        load_base(tmp_path, 0)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_norm_that_is_no_scale(tmp_path, norm):
    sparsify(tmp_path, norms=(2.5, norm))
    with pytest.raises(ValueError, match="out_norm is missing or not one positive number"):
        load_base(tmp_path, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topk"}, "architecture is 'topk', expected 'jump_relu'"),
        ({"hf_hook_point_in": "model.layers.0.input"}, "reads at 'input', expected one of"),
        ({"hf_hook_point_in": ["x"]}, "reads at .*x.*, expected one of"),
        ({"hf_hook_point_out": None}, "writes at None, expected one of"),
        ({"hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output"}, "layers.1.pre"),
        ({"l0": "small"}, "l0 is 'small', expected a number"),
        ({"l0": float("nan")}, "l0 is nan, expected a number from 0 on"),
        ({"l0": float("inf")}, "l0 is inf, expected a number from 0 on"),
        ({"l0": -1}, "l0 is -1, expected a number from 0 on"),
        ({"type": "sae"}, "type is 'sae', expected 'transcoder'"),
        ({"width": 99}, "width is 99, and .*params.safetensors has 12 features"),
        ({"affine_connection": True}, "affine_skip_connection is missing"),
        ({"affine_connection": "false"}, "affine_connection is 'false', expected true or false"),
    ],
)
def test_a_gemma_scope_2_set_that_we_cannot_mean(tmp_path, changes, message):
    gemma_scope_2(tmp_path)
    path = tmp_path / "transcoder_all/layer_0_width_12_l0_small/config.json"
    write_json(path, json.loads(path.read_text()) | changes)
    with pytest.raises(ValueError, match=message) as error:
        load_base(tmp_path, 0)
    assert str(path.parent) in str(error.value)


def test_a_negative_threshold_acts_as_the_relu_before_it(tmp_path):
    """Gemma Scope 2 multiplies ReLU's output by the gate: nothing negative passes."""
    gemma_scope_2(tmp_path)
    path = tmp_path / "transcoder_all/layer_0_width_12_l0_small/params.safetensors"
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(0))
    replaced(path, threshold=np.zeros(F, np.float32))
    expected = load_base(tmp_path, 0)[0](x)
    replaced(path, threshold=np.full(F, -1, np.float32))
    assert torch.equal(load_base(tmp_path, 0)[0](x), expected)


def test_scales_are_only_in_files_that_say_so(tmp_path):
    sparsify(tmp_path, norms=(1.0, 1.0))
    path = tmp_path / "model.layers.0.mlp/cfg.json"
    write_json(path, json.loads(path.read_text()) | {"normalize_io": False})
    with pytest.raises(ValueError, match=r"unexpected tensor (in|out)_norm"):
        load_base(tmp_path, 0)


def test_saelens_s_own_name_of_gemma_scope_2_s_input_is_not_believed(tmp_path):
    saelens(tmp_path, "jumprelu_transcoder", ("hook_mlp_in", "hook_mlp_out"))
    assert load_base(tmp_path, 0)[1].hook_site == "residual"
    path = tmp_path / "layer_0/cfg.json"
    config = json.loads(path.read_text())
    norm = "model.layers.0.%s_feedforward_layernorm.output"
    config["metadata"] |= {"hf_hook_name": norm % "pre", "hf_hook_name_out": norm % "post"}
    write_json(path, config)
    assert load_base(tmp_path, 0)[1].hook_site == "after_gain"


def test_two_layouts_in_one_folder(tmp_path):
    circuit_tracer(tmp_path)
    sparsify(tmp_path)
    with pytest.raises(ValueError, match=r"several layouts: circuit-tracer .layer_0.*sparsify"):
        load_base(tmp_path, 0)


def test_one_layer_twice(tmp_path):
    circuit_tracer(tmp_path)
    (tmp_path / "layer_00.safetensors").write_bytes((tmp_path / "layer_0.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"layer 0 is there as layer_0\..* and as layer_00\."):
        load_base(tmp_path, 0)
    saelens(tmp_path / "other", "transcoder", ("mlp.hook_in", "hook_mlp_out"))
    (tmp_path / "other/layer_0").rename(tmp_path / "other/blocks.1.mlp")
    with pytest.raises(
        ValueError, match=r"layer 1 is there as blocks\.\*\.mlp, layer_\*; say which"
    ):
        load_base(tmp_path / "other", 1)
    assert load_base(tmp_path / "other", 1, files="layer_*")[1].file.startswith("layer_1/")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- model_kind: transcoder_set\n", "config.yaml holds a list, expected `key: value` pairs"),
        ("", "config.yaml holds a NoneType, expected `key: value` pairs"),
        ("a: b: c\n", "config.yaml is not YAML: mapping values are not allowed here in .* line 1"),
    ],
)
def test_a_configuration_that_is_none(tmp_path, text, message):
    circuit_tracer(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_base(tmp_path, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "config"), [("sparsify", "cfg.json"), ("saelens", "cfg.json")])
def test_a_json_configuration_that_is_none(tmp_path, name, config):
    WRITERS[name](tmp_path)
    path = (tmp_path / FIRST[name]).with_name(config)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="is damaged, it holds a list and no dict"):
        load_base(tmp_path, 0)


def test_another_tool_s_configuration_beside_a_set(tmp_path):
    gemma_scope(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert load_base(tmp_path, 0)[1].layer == 0
    (tmp_path / "config.yaml").write_text("model_kind: cross_layer_transcoder\n")
    with pytest.raises(ValueError, match="model_kind is 'cross_layer_transcoder', expected"):
        load_base(tmp_path, 0)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("sparse_coder/checkpoints/final.safetensors", "is of Llama Scope, whose transcoders cut"),
        ("L3/hyperparams.json", "is of Llama Scope"),
        ("gpt2-small_L0.pt", r"gpt2-small_L0.pt is a pickle, .*GPT-2"),
        (
            "layer_0/notes.txt",
            r"expected layer_L/width_W/average_l0_K/params.npz .Gemma Scope., trans",
        ),
    ],
)
def test_what_no_reader_is_there_for(tmp_path, file, message):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"holds no dictionaries: .*{message}"):
        load_base(tmp_path, 0)


def test_a_set_without_its_configuration(tmp_path):
    circuit_tracer(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.yaml does not exist"):
        load_base(tmp_path, 0)
    # Of Gemma Scope 2 some repositories hold none.
    scope = tmp_path / "scope"
    gemma_scope_2(scope)
    for path in scope.rglob("config.json"):
        path.unlink()
    found = load_base(scope, 0)[1]
    assert (found.hook_site, found.average_l0, found.leading) == ("after_gain", None, 1)


def test_a_listed_file_that_is_not_there(tmp_path):
    circuit_tracer(tmp_path, transcoders=["layer_0.safetensors", "gone.safetensors"])
    assert load_base(tmp_path, 0)[1].layer == 0
    with pytest.raises(FileNotFoundError, match=r"gone.safetensors does not exist"):
        load_base(tmp_path, 1)
