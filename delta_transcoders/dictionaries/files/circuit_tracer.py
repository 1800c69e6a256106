"""circuit-tracer 0.5: a folder that its `load_transcoder_from_hub` reads, by absolute path or from the hub.

    config.yaml                 model_kind transcoder_set, hook points, scan
    layer_{L}.safetensors       W_enc [d_transcoder, d_model] (transposed), b_enc [d_transcoder],
                                W_dec [d_transcoder, d_model], b_dec [d_model],
                                activation_function.threshold [d_transcoder]
    model/                      the language model, as transformers 4.57 reads it

Layers run from 0 without a gap and are equally wide. The configuration lists no paths: they would be
taken relative to the reader's working directory, and without a list the layers are found by name.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from delta_transcoders.dictionaries.files.tensors import (
    check_d_model,
    check_tensors,
    dictionary_shapes,
    to_transcoder,
)
from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder
from delta_transcoders.families.sites import GEMMA_SCOPE, HookSite
from delta_transcoders.files import write_text
from delta_transcoders.tensor_files import load_tensors, save_tensors

CONFIG_NAME, MODEL_FOLDER = "config.yaml", "model"
THRESHOLD = "activation_function.threshold"


def layer_file(layer: int) -> str:
    return f"layer_{layer}.safetensors"


def save_layer(folder: Path, layer: int, dictionary: JumpReLUTranscoder) -> Path:
    """Write one layer's file and return it.

    Args:
        dictionary: float32, for plain tensors at the site's hook points.
    """
    tensors = dictionary.state_dict()
    tensors[THRESHOLD] = tensors.pop("threshold")
    path = folder / layer_file(layer)
    save_tensors(path, tensors | {"W_enc": tensors["W_enc"].T})
    return path


def save_config(folder: Path, site: HookSite, model: str, scan: str) -> None:
    """Write `config.yaml`.

    Args:
        model: name or folder of the language model.
        scan: what the reader calls this set of dictionaries.
    """
    config = {
        "model_name": model,
        "model_kind": "transcoder_set",
        **_hooks(site),
        "scan": scan,
    }
    write_text(folder / CONFIG_NAME, yaml.safe_dump(config, sort_keys=False))


def held_layers(folder: Path) -> list[int]:
    return sorted(_layer_paths(folder, _read_config(folder / CONFIG_NAME)))


def load_layer(
    folder: Path, layer: int, d_model: int | None = None, site: HookSite = GEMMA_SCOPE
) -> JumpReLUTranscoder:
    """Read one dictionary.

    Args:
        site: the hook site that it must be for; Gemma Scope's files, which name none, are for theirs.

    Raises:
        FileNotFoundError: no configuration, or no file of this layer.
        ValueError: another kind of set, hook site or d_model, or tensors that do not fit each other;
            names what was found and expected.
    """
    config = _read_config(folder / CONFIG_NAME)
    expected = {"model_kind": "transcoder_set", **_hooks(site)}
    for name, wanted in expected.items():
        if config.get(name) != wanted:
            raise ValueError(
                f"{folder / CONFIG_NAME}: {name} is {config.get(name)!r}, expected {wanted!r}"
            )
    path = _layer_paths(folder, config).get(layer, folder / layer_file(layer))
    tensors = load_tensors(path)
    if THRESHOLD not in tensors:
        raise ValueError(
            f"{path}: {THRESHOLD} is missing (circuit-tracer would silently read ReLU); the file holds "
            f"{sorted(tensors)}"
        )
    for name in ("b_enc", "b_dec"):
        if name not in tensors or tensors[name].ndim != 1:
            raise ValueError(f"{path}: {name} is missing or not a vector")
    n_features, d = len(tensors["b_enc"]), len(tensors["b_dec"])
    check_d_model(path, "b_dec", d, d_model)
    shapes = dictionary_shapes(d, n_features, d) | {"W_enc": (n_features, d)}
    shapes[THRESHOLD] = shapes.pop("threshold")
    check_tensors(path, tensors, shapes, "by the lengths of b_enc and b_dec")
    if (tensors[THRESHOLD] < 0).any():
        raise ValueError(
            f"{path}: {THRESHOLD} holds negative values, expected none: circuit-tracer lets negative "
            "activations through there, a JumpReLU transcoder does not"
        )
    tensors["threshold"] = tensors.pop(THRESHOLD)
    return to_transcoder(path, tensors | {"W_enc": tensors["W_enc"].T})


def _hooks(site: HookSite) -> dict[str, str]:
    hook_in, hook_out = (name.removeprefix("blocks.0.") for name in site.hook_points(0))
    hook_in = hook_in.replace(
        "ln2.hook_out", "mlp.hook_in"
    )  # the same tensor, by the name that sets have
    return {"feature_input_hook": hook_in, "feature_output_hook": hook_out}


def _layer_paths(folder: Path, config: dict[str, Any]) -> dict[int, Path]:
    """By layer: the files that the configuration lists, from this folder on, else those named so."""
    if "transcoders" not in config:
        found = (re.fullmatch(r"layer_(\d+)\.safetensors", path.name) for path in folder.iterdir())
        return {int(match[1]): folder / match[0] for match in found if match}
    listed = config["transcoders"]
    if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
        raise ValueError(
            f"{folder / CONFIG_NAME}: transcoders is {listed!r}, expected a list of files"
        )
    for path in listed:
        if "://" in path:
            raise ValueError(
                f"{folder / CONFIG_NAME}: transcoders lists {path}; download it and list the file"
            )
    return {layer: folder / path for layer, path in enumerate(listed)}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected `key: value` pairs")
    return config
