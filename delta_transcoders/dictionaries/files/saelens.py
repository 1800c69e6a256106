"""SAELens 6: one folder per dictionary, as its `SAE.load_from_disk` reads it.

layer_{L}/cfg.json                  architecture (`ARCHITECTURES`), sizes, hook points
layer_{L}/sae_weights.safetensors   W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out],
                                    b_dec [d_out], threshold [d_sae] of JumpReLU,
                                    W_skip [d_out, d_in] (transposed) of the skip variants

Any folder whose name tells the layer will do, as in `blocks.3.mlp` or `layer_3_width_16k`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from delta_transcoders.dictionaries.files.listing import Entry, Files
from delta_transcoders.dictionaries.files.tensors import (
    check_writable,
    dictionary_shapes,
    identify,
    site_of,
    to_transcoder,
)
from delta_transcoders.dictionaries.identity import BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HookSite
from delta_transcoders.files import write_json
from delta_transcoders.tensor_files import load_tensors, save_tensors

CONFIG_NAME, WEIGHTS_NAME = "cfg.json", "sae_weights.safetensors"
# Without a version of 6 or later its reader takes the file for an older one and drops the metadata.
VERSION = "6.54.12"
# Activation and whether there is a skip.
ARCHITECTURES = {
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
    "transcoder": ("relu", False),
    "skip_transcoder": ("relu", True),
}
# What it would do to inputs and outputs otherwise, silently.
REQUIRED = {
    "apply_b_dec_to_input": False,
    "normalize_activations": "none",
    "reshape_activations": "none",
}


def save_layer(
    folder: Path,
    layer: int,
    dictionary: Transcoder,
    site: HookSite,
    base_model: str | None,
    finetuned_model: str,
    prepend_bos: bool | None,
) -> Path:
    """Write one layer's folder below `folder`, and return it.

    Args:
        dictionary: JumpReLU or ReLU, in float32 or rounded, for plain tensors at the site's hook points.
        base_model: what tools boot by `model_name`: a name that they know, not that of a finetune.
        finetuned_model: whose MLPs the dictionary stands for.
        prepend_bos: whether its tokenizer puts BOS before a text; None: not known, and left out.

    Raises:
        ValueError: these files cannot say it.
    """
    check_writable(layer, dictionary, "SAELens's transcoder folder", relu=True)
    hook_in, hook_out = site.hook_points(layer)
    kind = (dictionary.activation, dictionary.W_skip is not None)
    config = {
        "architecture": next(name for name, known in ARCHITECTURES.items() if known == kind),
        **REQUIRED,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "d_out": dictionary.d_out,
        "dtype": "float32",  # which its reader computes in, whatever the tensors are stored in
        "device": "cpu",
        "metadata": {
            "sae_lens_version": VERSION,
            "model_name": base_model,
            "finetuned_model": finetuned_model,
            "hook_name": hook_in,
            "hook_name_out": hook_out,
            "hook_head_index": None,
            **({} if prepend_bos is None else {"prepend_bos": prepend_bos}),
        },
    }
    tensors = dictionary.state_dict()
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T
    folder = folder / f"layer_{layer}"
    save_tensors(folder / WEIGHTS_NAME, tensors)
    write_json(folder / CONFIG_NAME, config)
    return folder


def find(files: Files) -> list[Entry]:
    found = []
    for path in files.paths:
        folder, _, name = path.rpartition("/")
        layer = re.search(r"(?:layers?|blocks)[._]?(\d+)", folder)
        if layer and name == WEIGHTS_NAME:
            kind = f"{folder[: layer.start(1)]}*{folder[layer.end(1) :]}"
            found.append(Entry(int(layer[1]), path, kind))
    return found


def load(files: Files, entry: Entry) -> tuple[Transcoder, BaseId]:
    """
    Raises:
        FileNotFoundError: the layer's folder lacks a file.
        ValueError: another architecture, unknown hook points, a transformation that we do not do, or tensors
            that do not fit the configuration; names what was found and expected.
    """
    config_path = entry.path.replace(WEIGHTS_NAME, CONFIG_NAME)
    path, config = files.get(config_path), _checked(files.get(config_path), files.json(config_path))
    metadata = config["metadata"]
    # Its own name for the input of Gemma Scope 2 is that of another tensor; Hugging Face's is right.
    hooks = [
        metadata.get(f"hf_{name}") or metadata.get(name) for name in ("hook_name", "hook_name_out")
    ]
    layer = rf"^(?:blocks|(?:model\.)?(?:language_model\.)?layers)\.{entry.layer}\."
    site = site_of(path, *(hook and re.sub(layer, "", str(hook)) for hook in hooks))
    activation, skip = ARCHITECTURES[config["architecture"]]
    weights = files.get(entry.path)
    transcoder = to_transcoder(
        weights,
        load_tensors(weights),
        dictionary_shapes(
            config["d_in"], config["d_sae"], config["d_out"], activation == "jumprelu", skip
        ),
        f"by the sizes in {CONFIG_NAME}",
        transposed=("W_skip",),
        activation=activation,
    )
    return transcoder, identify(
        files, entry, transcoder, site, base_model=metadata.get("model_name")
    )


def _checked(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("metadata"), dict):
        raise ValueError(f"{path}: expected an object that holds another, `metadata`")
    if config.get("architecture") not in [*ARCHITECTURES]:  # it may be anything, a list too
        raise ValueError(
            f"{path}: architecture is {config.get('architecture')!r}, expected one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    for name, wanted in REQUIRED.items():
        # The last two may be left out there, and mean none.
        found = config.get(name, "none" if wanted == "none" else None)
        if found != wanted:
            raise ValueError(f"{path}: {name} is {found!r}, expected {wanted!r}")
    for name in ("d_in", "d_sae", "d_out"):
        if type(config.get(name)) is not int or config[name] < 1:
            raise ValueError(f"{path}: {name} is {config.get(name)!r}, expected a positive integer")
    return config
