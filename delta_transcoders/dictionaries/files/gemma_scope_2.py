"""Gemma Scope 2's transcoder files.

Layout: `transcoder_all/layer_{L}_width_{W}_l0_{small,big}[_affine]/{config.json,params.safetensors}` for all
layers, `transcoder/…` at four depths with more widths and `medium`. Tensors, float32: `w_enc`
[d_in, n_features], `b_enc` [n_features], `w_dec` [n_features, d_out], `b_dec` [d_out], `threshold`
[n_features], with `_affine` also `affine_skip_connection` [d_in, d_out]. JumpReLU transcoders from after
the norm's gain to the MLP's output after the post-norm. Sets of instruction-tuned models were not trained on
a text's first four tokens. `config.json` names the two ends by Gemma's modules in transformers; the size word
goes by the L0, 10 to 20 for `small` and 60 to 120 for `big` in the sets of all layers.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from delta_transcoders.dictionaries.files.gemma_scope import width_name, width_number
from delta_transcoders.dictionaries.files.listing import Entry, Files
from delta_transcoders.dictionaries.files.tensors import (
    check_writable,
    dictionary_shapes,
    identify,
    site_of,
    to_transcoder,
    vector_lengths,
)
from delta_transcoders.dictionaries.identity import L0, BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import AFTER_GAIN, GEMMA_MODULES
from delta_transcoders.files import write_json
from delta_transcoders.tensor_files import load_tensors, save_tensors

# The other folders of its repositories hold autoencoders, under the same names below them.
_PARAMS = re.compile(
    r"((?:transcoder(?:_all)?/)?)layer_(\d+)_width_(\d+[km]?)_l0_(small|medium|big)((?:_affine)?)"
    r"/params\.safetensors"
)
_NAMES = {"W_enc": "w_enc", "W_dec": "w_dec", "W_skip": "affine_skip_connection"}
# Size and kind of a model, as in configurations (some say v3), and in the names of repositories.
_MODEL = re.compile(r"(?:google/)?gemma-v?3-(\d+[mb](?:-pt|-it)?)")
_REPOSITORY = re.compile(r"gemma-scope-2-(\d+[mb]-(?:pt|it))(?:/|$)")
ARCHITECTURE = "jump_relu"
BIG_FROM = 40


def params_path(layer: int, width: int, average_l0: L0, affine: bool) -> str:
    """Path of one dictionary below its folder.

    >>> params_path(3, 16384, 12.5, affine=True)
    'transcoder_all/layer_3_width_16k_l0_small_affine/params.safetensors'
    """
    size = "small" if average_l0 < BIG_FROM else "big"
    name = f"layer_{layer}_width_{width_name(width)}_l0_{size}{'_affine' if affine else ''}"
    return f"transcoder_all/{name}/params.safetensors"


def save_layer(
    folder: Path, layer: int, dictionary: Transcoder, average_l0: L0, model: str
) -> Path:
    """Write one layer's two files below `folder`, and return that of the tensors.

    Args:
        dictionary: float32 JumpReLU from after the norm's gain to the MLP's output.
        model: that it explains; SAELens reads no file without.

    Raises:
        ValueError: this layout cannot say it.
    """
    check_writable(layer, dictionary, "Gemma Scope 2's layout")
    affine = dictionary.W_skip is not None
    path = folder / params_path(layer, dictionary.n_features, average_l0, affine)
    tensors = dictionary.state_dict()
    save_tensors(path, {_NAMES.get(name, name): tensor for name, tensor in tensors.items()})
    hook_in, hook_out = (f"model.layers.{layer}.{module}" for module in GEMMA_MODULES)
    config = {
        "hf_hook_point_in": hook_in,
        "hf_hook_point_out": hook_out,
        "width": dictionary.n_features,
        "model_name": model,
        "architecture": ARCHITECTURE,
        "l0": average_l0,
        "affine_connection": affine,
        "type": "transcoder",
    }
    write_json(path.with_name("config.json"), config)
    return path


def find(files: Files) -> list[Entry]:
    matches = [match for path in files.paths if (match := _PARAMS.fullmatch(path))]
    return [
        Entry(
            layer=int(match[2]),
            path=match[0],
            kind=f"{match[1]}layer_*_width_{match[3]}_l0_*{match[5]}",
            width=width_number(match[3]),
            l0=match[4],
        )
        for match in matches
    ]


def load(files: Files, entry: Entry) -> tuple[Transcoder, BaseId]:
    """
    Raises:
        ValueError: no transcoder but an autoencoder, other hook points, or tensors that do not fit; names
            what was found and expected.
    """
    path = files.get(entry.path)
    config_path = entry.path.replace("params.safetensors", "config.json")
    config = files.json(config_path) if config_path in files.paths else {}
    layer = rf"^(?:model\.)?(?:language_model\.)?layers\.{entry.layer}\."
    hooks = [config.get(f"hf_hook_point_{end}") for end in ("in", "out")]
    site = AFTER_GAIN  # what every published transcoder's configuration says; some repositories hold none
    if config:
        where = path.with_name("config.json")
        site = site_of(where, *(hook and re.sub(layer, "", str(hook)) for hook in hooks))
        _check(where, config)
    tensors = load_tensors(path)
    n_features, d_model = vector_lengths(path, tensors, "b_enc", "b_dec")
    if config.get("width", n_features) != n_features:
        raise ValueError(
            f"{where}: width is {config['width']!r}, and {path} has {n_features} features"
        )
    affine = config.get("affine_connection", entry.kind.endswith("_affine"))
    transcoder = to_transcoder(
        path,
        tensors,
        dictionary_shapes(d_model, n_features, d_model, skip=affine),
        "by the lengths of b_enc and b_dec",
        names=_NAMES,
    )
    return transcoder, identify(
        files,
        entry,
        transcoder,
        site,
        average_l0=config.get("l0"),
        base_model=_model_of(config.get("model_name"), files.source),
    )


def _model_of(named: Any, source: str) -> Any:
    """The hub id of a set's model where its configuration names one, or else its repository's name does."""
    if named:
        match = _MODEL.fullmatch(str(named))
        return f"google/gemma-3-{match[1]}" if match else named
    kinds = _REPOSITORY.findall(str(Path(source).absolute()))
    return f"google/gemma-3-{kinds[-1]}" if kinds else None


def _check(path: Path, config: dict[str, Any]) -> None:
    if config.get("architecture", ARCHITECTURE) != ARCHITECTURE:
        raise ValueError(
            f"{path}: architecture is {config['architecture']!r}, expected {ARCHITECTURE!r}"
        )
    if config.get("type", "transcoder") != "transcoder":
        raise ValueError(f"{path}: type is {config['type']!r}, expected 'transcoder'")
    l0, affine = config.get("l0"), config.get("affine_connection", False)
    if l0 is not None and not (type(l0) in (int, float) and 0 <= l0 < math.inf):
        raise ValueError(f"{path}: l0 is {l0!r}, expected a number from 0 on")
    if type(affine) is not bool:
        raise ValueError(f"{path}: affine_connection is {affine!r}, expected true or false")
