"""SAELens 6: one folder per dictionary, as its `SAE.load_from_disk` reads it.

layer_{L}/cfg.json                  architecture jumprelu_transcoder, sizes, hook points
layer_{L}/sae_weights.safetensors   W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out],
                                    b_dec [d_out], threshold [d_sae]
"""

import re
from pathlib import Path
from typing import Any

from delta_transcoders.dictionaries.files.tensors import (
    check_d_model,
    check_tensors,
    dictionary_shapes,
    to_transcoder,
)
from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder
from delta_transcoders.families.sites import GEMMA_SCOPE, HookSite
from delta_transcoders.files import read_json, write_json
from delta_transcoders.tensor_files import load_tensors, save_tensors

CONFIG_NAME, WEIGHTS_NAME = "cfg.json", "sae_weights.safetensors"
# Without a version of 6 or later its reader takes the file for an older one and drops the metadata.
VERSION = "6.54.12"
# What it would do to inputs and outputs otherwise, silently.
REQUIRED = {
    "architecture": "jumprelu_transcoder",
    "apply_b_dec_to_input": False,
    "normalize_activations": "none",
    "reshape_activations": "none",
}


def save_layer(
    folder: Path,
    layer: int,
    dictionary: JumpReLUTranscoder,
    site: HookSite,
    model: str,
    prepend_bos: bool,
) -> Path:
    """Write one layer's folder below `folder`, and return it.

    Args:
        dictionary: float32, for plain tensors at the site's hook points.
        model: name or folder of the language model.
        prepend_bos: whether its tokenizer puts BOS before a text.
    """
    hook_in, hook_out = site.hook_points(layer)
    config = {
        **REQUIRED,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "d_out": dictionary.d_out,
        "dtype": "float32",
        "device": "cpu",
        "metadata": {
            "sae_lens_version": VERSION,
            "model_name": model,
            "hook_name": hook_in,
            "hook_name_out": hook_out,
            "hook_head_index": None,
            "prepend_bos": prepend_bos,
        },
    }
    folder = folder / f"layer_{layer}"
    save_tensors(folder / WEIGHTS_NAME, dictionary.state_dict())
    write_json(folder / CONFIG_NAME, config)
    return folder


def held_layers(folder: Path) -> list[int]:
    found = (re.fullmatch(r"layer_(\d+)", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def load_layer(
    folder: Path, layer: int, d_model: int | None = None, site: HookSite = GEMMA_SCOPE
) -> JumpReLUTranscoder:
    """Read one dictionary.

    Args:
        site: the hook site that it must be for; Gemma Scope's files, which name none, are for theirs.

    Raises:
        FileNotFoundError: the layer's folder lacks a file.
        ValueError: another architecture, hook site or d_model, a transformation that we do not do, or
            tensors that do not fit the configuration; names what was found and expected.
    """
    path = folder / f"layer_{layer}" / CONFIG_NAME
    config = _read_config(path)
    hooks = dict(zip(("hook_name", "hook_name_out"), site.hook_points(layer), strict=True))
    for name, wanted in hooks.items():
        found = config["metadata"].get(name)
        if found != wanted:
            raise ValueError(f"{path}: metadata.{name} is {found!r}, expected {wanted!r}")
    for name in ("d_in", "d_out"):
        check_d_model(path, name, config[name], d_model)

    shapes = dictionary_shapes(config["d_in"], config["d_sae"], config["d_out"])
    weights = path.parent / WEIGHTS_NAME
    tensors = load_tensors(weights)
    check_tensors(weights, tensors, shapes, f"by the sizes in {CONFIG_NAME}")
    return to_transcoder(weights, tensors)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config.get("metadata"), dict):
        raise ValueError(f"{path}: expected an object that holds another, `metadata`")
    for name, wanted in REQUIRED.items():
        # The last two may be left out there, and mean none.
        found = config.get(name, "none" if wanted == "none" else None)
        if found != wanted:
            raise ValueError(f"{path}: {name} is {found!r}, expected {wanted!r}")
    for name in ("d_in", "d_sae", "d_out"):
        if type(config.get(name)) is not int or config[name] < 1:
            raise ValueError(f"{path}: {name} is {config.get(name)!r}, expected a positive integer")
    return config
