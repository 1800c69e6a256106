"""circuit-tracer 0.5: a folder that its `load_transcoder_from_hub` reads, by absolute path or from the hub.

    config.yaml                 model_kind transcoder_set, hook points; activation, k
    layer_{L}.safetensors       W_enc [d_transcoder, d_model] (transposed), b_enc [d_transcoder],
                                W_dec [d_transcoder, d_model], b_dec [d_model],
                                activation_function.threshold [d_transcoder] of JumpReLU,
                                W_skip [d_model, d_model] (transposed) of some
    model/                      the language model, as transformers 4.57 reads it (in ours)
    features/                   what its pages show of each feature, see `features.circuit_tracer` (in ours)

Layers run from 0 without a gap and are equally wide. Our configuration lists no paths: they would be
taken relative to the reader's working directory, and without a list the layers are found by name. Nor has
it `scan`, which would send the viewer to the network for examples: without it the viewer asks the folder
(only `load_transcoders`, given the parsed configuration, wants that key). A set that names no activation is
JumpReLU where it has thresholds, else ReLU: so are the public sets of Qwen 3 and Llama 3.2 1B. `topk` keeps
the k largest pre-activations, without ReLU; from a folder circuit-tracer reads it as ReLU: we write none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from delta_transcoders.dictionaries.files.listing import Entry, Files
from delta_transcoders.dictionaries.files.tensors import (
    check_writable,
    dictionary_shapes,
    identify,
    site_of,
    to_transcoder,
    vector_lengths,
)
from delta_transcoders.dictionaries.identity import BaseId
from delta_transcoders.dictionaries.transcoder import Activation, Transcoder
from delta_transcoders.families.sites import HookSite
from delta_transcoders.files import write_text
from delta_transcoders.tensor_files import load_tensors, save_tensors

CONFIG_NAME, MODEL_FOLDER = "config.yaml", "model"
THRESHOLD = "activation_function.threshold"
# Some revisions of this set of Llama 3.1 8B leave it out.
K_OF = {"crv-8b-instruct-transcoders": 128}


def layer_file(layer: int) -> str:
    return f"layer_{layer}.safetensors"


def save_layer(folder: Path, layer: int, dictionary: Transcoder) -> Path:
    """Write one layer's file and return it.

    Args:
        dictionary: float32 JumpReLU or ReLU, for plain tensors at the site's hook points.

    Raises:
        ValueError: these files cannot say it.
    """
    check_writable(layer, dictionary, "a circuit-tracer set", relu=True)
    tensors = dictionary.state_dict()
    if "threshold" in tensors:
        tensors[THRESHOLD] = tensors.pop("threshold")
    transposed = {name: tensors[name].T for name in ("W_enc", "W_skip") if name in tensors}
    path = folder / layer_file(layer)
    save_tensors(path, tensors | transposed)
    return path


def save_config(
    folder: Path, site: HookSite, base_model: str | None, finetuned_model: str, post_norm: bool
) -> None:
    """Write `config.yaml`.

    Args:
        base_model: what is booted where the reader is given no model: a name that it knows.
        finetuned_model: whose MLPs the set stands for.
        post_norm: whether a norm follows the MLP, as in Gemma. Elsewhere `mlp.hook_out` is the tensor of
            `hook_mlp_out`, and of Qwen 3 the reader's nnsight backend knows only that name.
    """
    hook_in, hook_out = (name.removeprefix("blocks.0.") for name in site.hook_points(0))
    # The same tensor after the gain, by the name that published sets have.
    hook_in = hook_in.replace("ln2.hook_out", "mlp.hook_in")
    config = {
        "model_name": base_model,
        "finetuned_model": finetuned_model,
        "model_kind": "transcoder_set",
        "feature_input_hook": hook_in,
        "feature_output_hook": hook_out if post_norm else "mlp.hook_out",
    }
    write_text(folder / CONFIG_NAME, yaml.safe_dump(config, sort_keys=False))


def find(files: Files) -> list[Entry]:
    """The files that the configuration lists, from this folder on, else those named so.

    Raises:
        FileNotFoundError, ValueError: no configuration, or not one of a set of transcoders.
    """
    named = [re.fullmatch(r"layer_(\d+)\.safetensors", path) for path in files.paths]
    layers = [(int(match[1]), match[0]) for match in named if match]
    if not layers and not _is_of_a_set(files):
        return []
    listed = _read_config(files).get("transcoders")
    if listed is not None:
        if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
            raise ValueError(
                f"{files.source}/{CONFIG_NAME}: transcoders is {listed!r}, expected a list of files"
            )
        layers = list(enumerate(listed))
    for _, path in layers:
        if "://" in path:
            raise ValueError(
                f"{files.source}/{CONFIG_NAME}: transcoders lists {path}; download it and list the file"
            )
    return [Entry(layer, path, "layer_*") for layer, path in sorted(layers)]


def load(files: Files, entry: Entry) -> tuple[Transcoder, BaseId]:
    """
    Raises:
        FileNotFoundError: no configuration, or no file of this layer.
        ValueError: another kind of set, unknown hook points or activation, TopK without k, k without TopK,
            or tensors that do not fit each other; names what was found and expected.
    """
    config, config_path = _read_config(files), files.get(CONFIG_NAME)
    site = site_of(config_path, config.get("feature_input_hook"), config.get("feature_output_hook"))
    path = files.get(entry.path)
    tensors = load_tensors(path)
    n_features, d_model = vector_lengths(path, tensors, "b_enc", "b_dec")
    activation, k = _activation(files, config, THRESHOLD in tensors)
    if activation == "jumprelu" and THRESHOLD in tensors and (tensors[THRESHOLD] < 0).any():
        raise ValueError(
            f"{path}: {THRESHOLD} holds negative values, expected none: circuit-tracer lets negative "
            "activations through there, a JumpReLU transcoder does not"
        )
    transcoder = to_transcoder(
        path,
        tensors,
        dictionary_shapes(
            d_model, n_features, d_model, activation == "jumprelu", "W_skip" in tensors
        ),
        "by the lengths of b_enc and b_dec",
        names={"threshold": THRESHOLD},
        transposed=("W_enc", "W_skip"),
        activation=activation,
        k=k,
    )
    return transcoder, identify(
        files, entry, transcoder, site, average_l0=k, base_model=config.get("model_name")
    )


def _activation(
    files: Files, config: dict[str, Any], has_threshold: bool
) -> tuple[Activation, int | None]:
    path = f"{files.source}/{CONFIG_NAME}"
    named = config.get("activation", "jumprelu" if has_threshold else "relu")
    known = {"relu": "relu", "topk": "topk", "jumprelu": "jumprelu", "jump_relu": "jumprelu"}
    if named not in [*known]:  # it may be anything, a list too
        raise ValueError(f"{path}: activation is {named!r}, expected one of {', '.join(known)}")
    if known[named] != "topk":
        return known[named], config.get("k")  # which a `Transcoder` refuses there
    # The hub's cache has the owner before the name.
    k = config.get("k", K_OF.get(Path(files.source).name.rpartition("--")[2]))
    if k is None:
        raise ValueError(
            f"{path}: activation is topk and k is missing; write `k: NUMBER` there (it is "
            f"{', '.join(f'{k} for {name}' for name, k in K_OF.items())})"
        )
    return "topk", k


def _is_of_a_set(files: Files) -> bool:
    """Other tools have files of this name too."""
    if CONFIG_NAME not in files.paths:
        return False
    config = _read_yaml(files.get(CONFIG_NAME))
    return isinstance(config, dict) and "model_kind" in config


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _read_config(files: Files) -> dict[str, Any]:
    path = files.get(CONFIG_NAME)
    config = _read_yaml(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected `key: value` pairs")
    if config.get("model_kind") != "transcoder_set":
        raise ValueError(
            f"{path}: model_kind is {config.get('model_kind')!r}, expected 'transcoder_set'"
        )
    return config
