"""Public sets of every layout, written here from their description and by nothing of ours.

Shapes: N tokens, D = 8 d_model, F = 12 features.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

from delta_transcoders.dictionaries import files as layouts
from delta_transcoders.dictionaries.bases import held, load_base
from delta_transcoders.dictionaries.files import listing
from delta_transcoders.dictionaries.identity import BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.interventions.sources import DictionarySource

D, F, LAYERS, K = 8, 12, (0, 1), 3


def drawn(layer: int) -> dict[str, np.ndarray]:
    """Tensors under our names and in our orientation, float32."""
    rng = np.random.default_rng(layer)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "W_skip": (D, D)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"threshold": rng.uniform(0, 1, F).astype(np.float32)}


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def gemma_scope(folder: Path) -> None:
    for layer in LAYERS:
        path = folder / f"layer_{layer}/width_12/average_l0_5/params.npz"
        path.parent.mkdir(parents=True)
        t = drawn(layer)
        t.pop("W_skip")
        np.savez(path, **t)


def gemma_scope_2(folder: Path, affine: bool = False, parent: str = "transcoder_all/") -> None:
    for layer in LAYERS:
        t = drawn(layer)
        tensors = {"w_enc": t["W_enc"], "w_dec": t["W_dec"]}
        tensors |= {name: t[name] for name in ("b_enc", "b_dec", "threshold")}
        if affine:
            tensors["affine_skip_connection"] = t["W_skip"]
        name = f"{parent}layer_{layer}_width_12_l0_small{'_affine' if affine else ''}"
        write(folder / name / "params.safetensors", tensors)
        norm = f"model.layers.{layer}.%s_feedforward_layernorm.output"
        config = {
            "hf_hook_point_in": norm % "pre",
            "hf_hook_point_out": norm % "post",
            "width": F,
            "model_name": "google/gemma-3-1b-it",
            "architecture": "jump_relu",
            "l0": 20,
            "affine_connection": affine,
            "type": "transcoder",
        }
        write_json(folder / name / "config.json", config)


def circuit_tracer(folder: Path, skip: bool = False, threshold: bool = False, **config) -> None:
    for layer in LAYERS:
        t = drawn(layer)
        tensors = {"W_enc": t["W_enc"].T} | {name: t[name] for name in ("b_enc", "W_dec", "b_dec")}
        if skip:
            tensors["W_skip"] = t["W_skip"].T
        if threshold:
            tensors["activation_function.threshold"] = t["threshold"]
        write(folder / f"layer_{layer}.safetensors", tensors)
    described = {
        "model_name": "Qwen/Qwen3-0.6B",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(described | config))


def sparsify(folder: Path, skip: bool = False, norms: tuple[float, float] | None = None) -> None:
    for layer in LAYERS:
        t = drawn(layer)
        tensors = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"]}
        tensors |= {"W_dec": t["W_dec"], "b_dec": t["b_dec"]}
        if skip:
            tensors["W_skip"] = t["W_skip"].T
        for name, norm in zip(("in_norm", "out_norm"), norms or (), strict=False):
            tensors[name] = np.array([norm], dtype=np.float32)
        module = folder / f"model.layers.{layer}.mlp"
        write(module / "sae.safetensors", tensors)
        config = {"activation": "topk", "k": K, "d_in": D, "num_latents": F, "transcode": True}
        config |= {"skip_connection": skip, "normalize_io": norms is not None}
        write_json(module / "cfg.json", config)


def saelens(folder: Path, architecture: str, hooks: tuple[str, str]) -> None:
    for layer in LAYERS:
        t = drawn(layer)
        tensors = {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if "jumprelu" in architecture:
            tensors["threshold"] = t["threshold"]
        if "skip" in architecture:
            tensors["W_skip"] = t["W_skip"].T
        write(folder / f"layer_{layer}/sae_weights.safetensors", tensors)
        config = {
            "architecture": architecture,
            "d_in": D,
            "d_sae": F,
            "d_out": D,
            "dtype": "float32",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "model_name": "m",
                "hook_name": f"blocks.{layer}.{hooks[0]}",
                "hook_name_out": f"blocks.{layer}.{hooks[1]}",
            },
        }
        write_json(folder / f"layer_{layer}/cfg.json", config)


def formula(
    x_ND: np.ndarray, layer: int, activation: str, skip: bool, scales: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Activations [N, F] and output [N, D], in float64 and token by token where it is TopK."""
    t = {name: tensor.astype(np.float64) for name, tensor in drawn(layer).items()}
    x_ND = x_ND.astype(np.float64) * scales[0]
    z_NF = x_ND @ t["W_enc"] + t["b_enc"]
    if activation == "jumprelu":
        a_NF = np.where(z_NF > t["threshold"], z_NF, 0)
    else:
        a_NF = z_NF if activation == "topk" else np.maximum(z_NF, 0)
        if "topk" in activation:
            for a_F in a_NF:
                a_F[np.argsort(a_F)[:-K]] = 0
    y_ND = a_NF @ t["W_dec"] + t["b_dec"] + (x_ND @ t["W_skip"] if skip else 0)
    return a_NF, y_ND * scales[1]


@dataclass(frozen=True)
class Case:
    name: str
    write: Callable[[Path], None]
    activation: str
    site: str | None
    skip: bool = False
    scales: tuple[float, float] = (1.0, 1.0)
    average_l0: float | None = None
    leading: int = 1
    base_model: str | None = None


QWEN = "Qwen/Qwen3-0.6B"
CASES = [
    Case("Gemma Scope", gemma_scope, "jumprelu", None, average_l0=5),
    Case(
        "Gemma Scope 2",
        gemma_scope_2,
        "jumprelu",
        "after_gain",
        average_l0=20,
        leading=4,
        base_model="google/gemma-3-1b-it",
    ),
    Case(
        "Gemma Scope 2, affine",
        lambda folder: gemma_scope_2(folder, affine=True),
        "jumprelu",
        "after_gain",
        skip=True,
        average_l0=20,
        leading=4,
        base_model="google/gemma-3-1b-it",
    ),
    Case("Qwen 3", circuit_tracer, "relu", "after_gain", base_model=QWEN),
    Case(
        "Llama 3.2 1B",
        lambda folder: circuit_tracer(
            folder,
            skip=True,
            feature_input_hook="hook_resid_mid",
            feature_output_hook="hook_mlp_out",
        ),
        "relu",
        "residual",
        skip=True,
        base_model=QWEN,
    ),
    Case(
        "Llama 3.1 8B",
        lambda folder: circuit_tracer(folder, activation="topk", k=K),
        "topk",
        "after_gain",
        average_l0=K,
        base_model=QWEN,
    ),
    Case(
        "circuit-tracer, JumpReLU",
        lambda folder: circuit_tracer(
            folder, threshold=True, feature_input_hook="ln2.hook_normalized"
        ),
        "jumprelu",
        "gemma_scope",
        base_model=QWEN,
    ),
    Case("sparsify", sparsify, "relu_topk", "after_gain", average_l0=K, leading=0),
    Case(
        "sparsify, SmolLM2",
        lambda folder: sparsify(folder, skip=True, norms=(2.5, 7.0)),
        "relu_topk",
        "after_gain",
        skip=True,
        scales=(D**0.5 / 2.5, 7.0 / D**0.5),
        average_l0=K,
        leading=0,
    ),
    *(
        Case(
            f"SAELens {architecture}",
            lambda folder, architecture=architecture, hook=hook: saelens(
                folder, architecture, (hook, "hook_mlp_out")
            ),
            "jumprelu" if "jumprelu" in architecture else "relu",
            site,
            skip="skip" in architecture,
            base_model="m",
        )
        for architecture, hook, site in (
            ("jumprelu_transcoder", "ln2.hook_normalized", "gemma_scope"),
            ("jumprelu_skip_transcoder", "ln2.hook_out", "after_gain"),
            ("transcoder", "hook_resid_mid", "residual"),
            ("skip_transcoder", "mlp.hook_in", "after_gain"),
        )
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def x_ND() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(40, D)).astype(np.float32)


def test_a_set_is_the_function_that_was_published(case, x_ND, tmp_path):
    case.write(tmp_path)
    assert sorted({entry.layer for entry in held(tmp_path)}) == list(LAYERS)
    x = torch.from_numpy(x_ND)
    for layer in LAYERS:
        base, found = load_base(tmp_path, layer, d_model=D)
        a_NF, y_ND = formula(x_ND, layer, case.activation, case.skip, case.scales)
        close = {"rtol": 1e-6, "atol": 1e-6 * float(np.abs(y_ND).max()), "check_dtype": False}
        torch.testing.assert_close(base.encode(x), torch.from_numpy(a_NF), **close)
        torch.testing.assert_close(base(x), torch.from_numpy(y_ND), **close)
        y, n_active = base.reconstruct(x)
        assert torch.equal(y, base(x))
        assert n_active == (a_NF != 0).sum()

        assert (found.layer, found.width, found.average_l0) == (layer, F, case.average_l0)
        assert (found.activation, found.skip) == (case.activation, case.skip)
        assert found.k == (K if "topk" in case.activation else None)
        assert (found.hook_site, found.leading) == (case.site, case.leading)
        assert found.base_model == case.base_model
        assert found.hash == base.fingerprint()
        assert found.path == str(tmp_path / found.file)
        assert Path(found.path).is_file()


def write_again(folder: Path, base: Transcoder, found: BaseId) -> None:
    """By our writers, in the layout that it was read from."""
    layer, model, site = found.layer, found.base_model, HOOK_SITES.get(found.hook_site)
    if found.file.endswith("params.npz"):
        layouts.gemma_scope.save_base(folder, layer, base, found.average_l0)
    elif found.file.endswith("params.safetensors"):
        layouts.gemma_scope_2.save_layer(folder, layer, base, found.average_l0, model)
    elif found.file.endswith("sae_weights.safetensors"):
        layouts.saelens.save_layer(folder, layer, base, site, model, "finetuned", True)
    else:
        layouts.circuit_tracer.save_layer(folder, layer, base)
        layouts.circuit_tracer.save_config(folder, site, model, "finetuned", post_norm=False)


def test_what_is_read_and_written_again_holds_the_same(case, tmp_path):
    """Tensor by tensor in the files, whatever wrote them first, and under the same path."""
    case.write(tmp_path / "set")
    read = [load_base(tmp_path / "set", layer) for layer in LAYERS]
    if "topk" in case.activation:
        with pytest.raises(ValueError, match=rf"layer 0: .* without scales, not {case.activation}"):
            write_again(tmp_path, *read[0])
        return
    for name in ("again", "twice"):
        for base, found in read:
            write_again(tmp_path / name, base, found)
    for base, found in read:
        published, again = (tmp_path / name / found.file for name in ("set", "again"))
        load = np.load if published.suffix == ".npz" else load_file
        before, after = (dict(load(path).items()) for path in (published, again))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            np.testing.assert_array_equal(after[name], tensor, strict=True)
        base_again, found_again = load_base(tmp_path / "again", found.layer)
        assert base_again.fingerprint() == base.fingerprint()
        assert found_again == replace(found, source=str(tmp_path / "again"))
    files = sorted(path for path in (tmp_path / "again").rglob("*") if path.is_file())
    for path in files:
        twice = tmp_path / "twice" / path.relative_to(tmp_path / "again")
        assert twice.read_bytes() == path.read_bytes()
    if case.write is gemma_scope_2:
        before, after = (
            json.loads((tmp_path / name / found.file).with_name("config.json").read_text())
            for name in ("set", "again")
        )
        assert after == before


def test_scales_are_not_lost_by_a_writer(tmp_path):
    sparsify(tmp_path, norms=(2.5, 7.0))
    base, _ = load_base(tmp_path, 0)
    scaled = Transcoder(
        **base.state_dict(), threshold=torch.zeros(F), scale_in=base.scale_in, scale_out=2.0
    )
    for save in (
        lambda: layouts.gemma_scope.save_base(tmp_path, 0, scaled, 5),
        lambda: layouts.gemma_scope_2.save_layer(tmp_path, 0, scaled, 5, "m"),
        lambda: layouts.saelens.save_layer(tmp_path, 0, scaled, HOOK_SITES["residual"], "", "", 1),
        lambda: layouts.circuit_tracer.save_layer(tmp_path, 0, scaled),
    ):
        with pytest.raises(ValueError, match=r"scales, not jumprelu with scales"):
            save()


def test_features_are_dropped_and_the_skip_stays(case, x_ND, tmp_path):
    case.write(tmp_path)
    base, _ = load_base(tmp_path, 1)
    x = torch.from_numpy(x_ND)
    nothing, _ = DictionarySource(base)(x, torch.zeros(len(x), F, dtype=torch.bool))
    t = drawn(1)
    expected = t["b_dec"] + (case.scales[0] * x_ND @ t["W_skip"] if case.skip else 0)
    expected = torch.from_numpy(np.broadcast_to(expected * case.scales[1], nothing.shape).copy())
    torch.testing.assert_close(nothing, expected.float(), rtol=1e-5, atol=1e-5)


def test_half_precision_stays_on_disk_and_in_memory(x_ND, tmp_path):
    """Values as published, arithmetic in float32, and only the active rows of the decoder are touched."""
    from safetensors.torch import save_file as save_torch

    circuit_tracer(tmp_path, skip=True)
    path = tmp_path / "layer_1.safetensors"
    halves = {name: torch.from_numpy(t).bfloat16() for name, t in load_file(path).items()}
    save_torch(halves, path)
    base, _ = load_base(tmp_path, 1)
    assert {tensor.dtype for tensor in base.state_dict().values()} == {torch.bfloat16}
    x = torch.from_numpy(x_ND)
    t = {name: tensor.double() for name, tensor in halves.items()}
    a = (x.double() @ t["W_enc"].T + t["b_enc"]).relu()
    y = a @ t["W_dec"] + t["b_dec"] + x.double() @ t["W_skip"].T
    torch.testing.assert_close(base(x), y.float(), rtol=1e-6, atol=1e-5)
    base.W_dec[3:] = torch.nan
    only = torch.zeros(2, F)
    only[1, 2] = 1.5
    expected = torch.stack([base.b_dec.float(), base.b_dec.float() + 1.5 * base.W_dec[2].float()])
    torch.testing.assert_close(base.decode(only, torch.zeros(2, D)), expected)


# Choice


def test_gemma_scope_2_is_chosen_by_size_percentile_width_and_path(tmp_path):
    gemma_scope_2(tmp_path)
    for size in ("medium", "big"):
        for layer in LAYERS:
            small = tmp_path / f"transcoder_all/layer_{layer}_width_12_l0_small"
            copy = Path(str(small).replace("small", size))
            copy.mkdir()
            (copy / "params.safetensors").write_bytes((small / "params.safetensors").read_bytes())
    sizes = [load_base(tmp_path, 0, percentile=p)[1].file for p in (0.0, 0.5, 1.0)]
    assert [path.split("_l0_")[1].split("/")[0] for path in sizes] == ["small", "medium", "big"]
    assert load_base(tmp_path, 1, average_l0="big")[1].file.endswith("l0_big/params.safetensors")
    with pytest.raises(ValueError, match=r"no average_l0 huge; .*\['small', 'medium', 'big'\]"):
        load_base(tmp_path, 1, average_l0="huge")

    gemma_scope_2(tmp_path, affine=True)
    gemma_scope_2(tmp_path, parent="transcoder/")
    with pytest.raises(ValueError, match=r"is there as transcoder/.*, transcoder_all/.*_affine"):
        load_base(tmp_path, 0, average_l0="small")
    for files, file in (
        ("transcoder/*", "transcoder/layer_0_width_12_l0_small"),
        ("transcoder_all/*_affine", "transcoder_all/layer_0_width_12_l0_small_affine"),
        ("transcoder_all/layer_*_width_12_l0_*", "transcoder_all/layer_0_width_12_l0_small"),
        ("transcoder_all/layer_0_width_12_l0_big", "transcoder_all/layer_0_width_12_l0_big"),
    ):
        found = load_base(tmp_path, 0, files=files, percentile=0)[1]
        assert found.file == f"{file}/params.safetensors"
    # The folder of one set is a source of its own.
    assert load_base(tmp_path / "transcoder", 0)[1].average_l0 == 20
    with pytest.raises(ValueError, match=r"layer 0 has nothing of width 16384; it has transcoder/"):
        load_base(tmp_path, 0, width=16384)


def test_autoencoders_beside_the_transcoders_are_no_candidates(tmp_path):
    gemma_scope_2(tmp_path)
    gemma_scope_2(tmp_path, parent="resid_post_all/")
    assert load_base(tmp_path, 0)[1].file.startswith("transcoder_all/")
    config = tmp_path / "resid_post_all/layer_0_width_12_l0_small/config.json"
    output = {"hf_hook_point_in": "model.layers.0.output", "hf_hook_point_out": None}
    write_json(config, json.loads(config.read_text()) | output)
    with pytest.raises(ValueError, match=r"config.json: reads at 'output', expected"):
        load_base(tmp_path / "resid_post_all", 0)


def test_k_of_the_set_that_leaves_it_out(tmp_path):
    folder = tmp_path / "models--facebook--crv-8b-instruct-transcoders"
    folder.mkdir()
    circuit_tracer(folder, activation="topk")
    with pytest.raises(ValueError, match=r"layer_0.safetensors: k is 128, expected .* to 12"):
        load_base(folder, 0)


# Refusals


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is not the file but a Git LFS",
        ),
        (
            pickle.dumps({"W_enc": [1.0]}),
            "not a safetensors file .it may be a pickle, or cut short",
        ),
        (None, "not a safetensors file .it may be a pickle, or cut short"),
    ],
)
def test_a_file_that_is_none(layout, tmp_path, content, message):
    path = layout[1]
    path.write_bytes(content or path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=message) as error:
        load_base(tmp_path, 0)
    assert str(path) in str(error.value)


def test_a_pointer_in_place_of_an_archive(tmp_path):
    gemma_scope(tmp_path)
    path = tmp_path / "layer_0/width_12/average_l0_5/params.npz"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"params.npz is not the file but a Git LFS pointer"):
        load_base(tmp_path, 0)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_input_hook": "ln1.hook_out"}, "config.yaml: reads at 'ln1.hook_out', expected"),
        ({"feature_output_hook": "hook_z"}, "config.yaml: writes at 'hook_z', expected one of"),
        ({"model_kind": "cross_layer_transcoder"}, "model_kind is 'cross_layer_transcoder'"),
        ({"activation": "gelu"}, "activation is 'gelu', expected one of relu, topk"),
        ({"activation": "topk"}, "activation is topk and k is missing; write `k: NUMBER`"),
        ({"activation": "topk", "k": 13}, "k is 13, expected a whole number from 1 to 12"),
        ({"activation": "topk", "k": "3"}, "k is '3', expected a whole number"),
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
        ({"skip_connection": True}, "W_skip is missing"),
        ({"normalize_io": True}, "in_norm is missing or not one positive number"),
    ],
)
def test_a_sparsify_set_that_we_cannot_mean(tmp_path, changes, message):
    sparsify(tmp_path)
    path = tmp_path / "model.layers.0.mlp/cfg.json"
    write_json(path, json.loads(path.read_text()) | changes)
    with pytest.raises(ValueError, match=message):
        load_base(tmp_path, 0)


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


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("sparse_coder/checkpoints/final.safetensors", "is of Llama Scope, whose transcoders cut"),
        ("L3/hyperparams.json", "is of Llama Scope"),
        ("gpt2-small_L0.pt", r"gpt2-small_L0.pt is a pickle, .*GPT-2"),
        ("notes.txt", r"expected layer_L/width_W/average_l0_K/params.npz .Gemma Scope., trans"),
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


def test_a_hub_id_and_a_folder_of_its_repository(tmp_path, monkeypatch):
    gemma_scope_2(tmp_path)
    listed = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: [*listed, "README.md"])
    asked = []

    def download(repo, path):
        asked.append((repo, path))
        return str(tmp_path / path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    listing._hub_listing.cache_clear()
    whole = load_base("google/some-set", 1)[1]
    inside = load_base("google/some-set/transcoder_all", 1)[1]
    listing._hub_listing.cache_clear()
    assert whole.path == inside.path
    assert inside.source == "google/some-set/transcoder_all"
    assert {repo for repo, _ in asked} == {"google/some-set"}
    assert {path for _, path in asked} == {
        f"transcoder_all/layer_1_width_12_l0_small/{n}"
        for n in ("config.json", "params.safetensors")
    }
