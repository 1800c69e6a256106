"""EleutherAI's sparsify: one folder per module, as its `SparseCoder.load_from_disk` reads it.

    {module}/cfg.json           k, transcode, skip_connection, normalize_io; module as `model.layers.18.mlp`
    {module}/sae.safetensors    encoder.weight [n_features, d] (transposed), encoder.bias [n_features],
                                W_dec [n_features, d], b_dec [d], W_skip [d, d] (transposed),
                                in_norm [1], out_norm [1]

ReLU, then the k largest. The module's own input and output are what it maps between. With `normalize_io`, as
in the sets of SmolLM2, inputs are multiplied by √d / in_norm and outputs by out_norm / √d. Nothing was left
out in training, the first token included.
"""

from __future__ import annotations

import math
import re

from delta_transcoders.dictionaries.files.listing import Entry, Files
from delta_transcoders.dictionaries.files.tensors import (
    dictionary_shapes,
    identify,
    to_transcoder,
    vector_lengths,
)
from delta_transcoders.dictionaries.identity import BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import AFTER_GAIN
from delta_transcoders.tensor_files import load_tensors

CONFIG_NAME, WEIGHTS_NAME = "cfg.json", "sae.safetensors"
# What each of these must be in cfg.json; those that are left out are so.
REQUIRED = {"activation": "topk", "signed": False, "n_targets": 0, "n_sources": 0}


def find(files: Files) -> list[Entry]:
    matches = [
        re.fullmatch(rf"((?:.*\.)?(?:layers|h)\.)(\d+)(\.mlp)/{re.escape(WEIGHTS_NAME)}", path)
        for path in files.paths
    ]
    return [Entry(int(match[2]), match[0], f"{match[1]}*{match[3]}") for match in matches if match]


def load(files: Files, entry: Entry) -> tuple[Transcoder, BaseId]:
    """
    Raises:
        FileNotFoundError: the module's folder lacks a file.
        ValueError: an autoencoder, another activation, TopK without k, or tensors that do not fit; names what
            was found and expected.
    """
    config_path = entry.path.replace(WEIGHTS_NAME, CONFIG_NAME)
    where, config = files.get(config_path), files.json(config_path)
    if config.get("transcode") is not True:
        raise ValueError(
            f"{where}: transcode is {config.get('transcode')!r}, expected true: an autoencoder stands for "
            "no MLP"
        )
    for name, wanted in REQUIRED.items():
        if config.get(name, wanted) != wanted:
            raise ValueError(f"{where}: {name} is {config[name]!r}, expected {wanted!r}")
    for name in ("skip_connection", "normalize_io"):
        if type(config.get(name, False)) is not bool:
            raise ValueError(f"{where}: {name} is {config[name]!r}, expected true or false")
    if config.get("k") is None:
        raise ValueError(f"{where}: k is missing, the number of features that TopK keeps")
    path = files.get(entry.path)
    tensors = load_tensors(path)
    n_features, d_model = vector_lengths(path, tensors, "encoder.bias", "b_dec")
    norms = {}
    if config.get("normalize_io"):
        norms = {name: tensors.pop(name, None) for name in ("in_norm", "out_norm")}
        for name, norm in norms.items():
            if norm is None or norm.numel() != 1 or not 0 < norm.float().item() < math.inf:
                raise ValueError(f"{path}: {name} is missing or not one positive number")
    root = math.sqrt(d_model)
    transcoder = to_transcoder(
        path,
        tensors,
        dictionary_shapes(
            d_model, n_features, d_model, False, config.get("skip_connection", False)
        ),
        "by the lengths of encoder.bias and b_dec",
        names={"W_enc": "encoder.weight", "b_enc": "encoder.bias"},
        transposed=("W_enc", "W_skip"),
        activation="relu_topk",
        k=config["k"],
        scale_in=root / norms["in_norm"].float().item() if norms else 1.0,
        scale_out=norms["out_norm"].float().item() / root if norms else 1.0,
    )
    return transcoder, identify(
        files, entry, transcoder, AFTER_GAIN, average_l0=config["k"], leading=0
    )
