"""Public sets of every layout at tiny size, written from their description and by nothing of ours.

Our tests read them, and `make interop` has other tools read the same files. Every writer takes `tensors` by
layer, under our names and in our orientation, and says the rest of itself: `drawn` where none are given.

Shapes: N tokens, D = 8 d_model, F = 12 features.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

D, F, LAYERS, K = 8, 12, (0, 1), 3


def drawn(layer: int) -> dict[str, np.ndarray]:
    """Random tensors, float32."""
    rng = np.random.default_rng(layer)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "W_skip": (D, D)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"threshold": rng.uniform(0, 1, F).astype(np.float32)}


Tensors = Mapping[int, Mapping[str, np.ndarray]]
DRAWN: Tensors = {layer: drawn(layer) for layer in LAYERS}


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write(path: Path, tensors: Mapping[str, np.ndarray], dtype: torch.dtype | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {n: torch.from_numpy(np.ascontiguousarray(t)).to(dtype) for n, t in tensors.items()}
    save_file(stored, path)


def gemma_scope(folder: Path) -> None:
    for layer, t in DRAWN.items():
        path = folder / f"layer_{layer}/width_12/average_l0_5/params.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, **{name: tensor for name, tensor in t.items() if name != "W_skip"})


def gemma_scope_2(
    folder: Path,
    affine: bool = False,
    parent: str = "transcoder_all/",
    tensors: Tensors = DRAWN,
    name: str = "layer_{}_width_12_l0_small",
    **config,
) -> None:
    for layer, t in tensors.items():
        stored = {"w_enc": t["W_enc"], "w_dec": t["W_dec"]}
        stored |= {name: t[name] for name in ("b_enc", "b_dec", "threshold")}
        if affine:
            stored["affine_skip_connection"] = t["W_skip"]
        inside = folder / f"{parent}{name.format(layer)}{'_affine' if affine else ''}"
        write(inside / "params.safetensors", stored)
        norm = f"model.layers.{layer}.%s_feedforward_layernorm.output"
        described = {
            "hf_hook_point_in": norm % "pre",
            "hf_hook_point_out": norm % "post",
            "width": len(t["b_enc"]),
            "model_name": "google/gemma-3-1b-it",
            "architecture": "jump_relu",
            "l0": 20,
            "affine_connection": affine,
            "type": "transcoder",
        }
        write_json(inside / "config.json", described | config)


def circuit_tracer(
    folder: Path,
    skip: bool = False,
    threshold: bool = False,
    tensors: Tensors = DRAWN,
    dtype: torch.dtype | None = None,
    **config,
) -> None:
    for layer, t in tensors.items():
        stored = {"W_enc": t["W_enc"].T} | {name: t[name] for name in ("b_enc", "W_dec", "b_dec")}
        if skip:
            stored["W_skip"] = t["W_skip"].T
        if threshold:
            stored["activation_function.threshold"] = t["threshold"]
        write(folder / f"layer_{layer}.safetensors", stored, dtype)
        d_feature, d_model = t["W_dec"].shape
    described = {
        "model_name": "Qwen/Qwen3-0.6B",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(described | config))
    # Beside the sets of Qwen 3, where SAELens looks up their sizes.
    sizes = {"d_model": d_model, "d_feature": d_feature, "batch_size": 1}
    said = yaml.safe_dump({name: {"value": size} for name, size in sizes.items()})
    (folder / "wandb-config.yaml").write_text(said)


def sparsify(
    folder: Path,
    skip: bool = False,
    norms: tuple[float, float] | None = None,
    tensors: Tensors = DRAWN,
    k: int = K,
    **config,
) -> None:
    for layer, t in tensors.items():
        stored = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"]}
        stored |= {"W_dec": t["W_dec"], "b_dec": t["b_dec"]}
        if skip:
            stored["W_skip"] = t["W_skip"].T
        for name, norm in zip(("in_norm", "out_norm"), norms or (), strict=False):
            stored[name] = np.array([norm], dtype=np.float32)
        module = folder / f"model.layers.{layer}.mlp"
        write(module / "sae.safetensors", stored)
        n_features, d_in = t["W_dec"].shape
        described = {"activation": "topk", "k": k, "d_in": d_in, "num_latents": n_features}
        described |= {"transcode": True, "skip_connection": skip}
        if norms is not None:  # older configurations have no such key
            described["normalize_io"] = True
        write_json(module / "cfg.json", described | config)


def saelens(
    folder: Path, architecture: str, hooks: tuple[str, str], tensors: Tensors = DRAWN
) -> None:
    for layer, t in tensors.items():
        stored = {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if "jumprelu" in architecture:
            stored["threshold"] = t["threshold"]
        if "skip" in architecture:
            stored["W_skip"] = t["W_skip"].T
        write(folder / f"layer_{layer}/sae_weights.safetensors", stored)
        n_features, d_model = t["W_dec"].shape
        config = {
            "architecture": architecture,
            "d_in": d_model,
            "d_sae": n_features,
            "d_out": d_model,
            "dtype": "float32",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "sae_lens_version": "6.54.12",
                "model_name": "m",
                "hook_name": f"blocks.{layer}.{hooks[0]}",
                "hook_name_out": f"blocks.{layer}.{hooks[1]}",
            },
        }
        write_json(folder / f"layer_{layer}/cfg.json", config)


def formula(
    x_ND: np.ndarray,
    tensors: Mapping[str, np.ndarray],
    activation: str,
    skip: bool,
    scales: tuple[float, float] = (1.0, 1.0),
    k: int = K,
) -> tuple[np.ndarray, np.ndarray]:
    """Activations [N, F] and output [N, D], in float64 and token by token where it is TopK."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x_ND = x_ND.astype(np.float64) * scales[0]
    z_NF = x_ND @ t["W_enc"] + t["b_enc"]
    if activation == "jumprelu":
        a_NF = np.where(z_NF > t["threshold"], z_NF, 0)
    else:
        a_NF = z_NF if activation == "topk" else np.maximum(z_NF, 0)
        if "topk" in activation:
            for a_F in a_NF:
                a_F[np.argsort(a_F)[:-k]] = 0
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
