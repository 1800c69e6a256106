"""The original study's checkpoints: `layer_{L}_dnew_{d_new}_pctl_{p}/best_model.pt`.

A state dict with the five tensors of `base_transcoder.*` and of `delta_features.*` (names and orientation
as in Gemma Scope's files). Input and target of its training were the residual stream before the norm and
the MLP's output, both divided by √d_model: hook site `original`. The file also holds the base, all 300 MB
of it; it only serves to tell which base it was.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.delta import DeltaConfig
from delta_transcoders.dictionaries.files.gemma_scope import KEYS
from delta_transcoders.dictionaries.files.tensors import (
    dictionary_shapes,
    to_transcoder,
    vector_lengths,
)
from delta_transcoders.dictionaries.sparsity import SparsityConfig
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import ORIGINAL
from delta_transcoders.fingerprints import check_hash

CHECKPOINT_NAME = "best_model.pt"
_FOLDER = re.compile(r"layer_(\d+)_dnew_(\d+)_pctl_(\d+(?:\.\d+)?)")
SPARSITY = SparsityConfig(
    mode="l1", l1_weight=1e-3, l1_warmup_steps=1000, l1_threshold=1e-3, unit_rows=True
)
SEED = 42


def checkpoints(folder: Path) -> dict[int, tuple[Path, float]]:
    """Checkpoint and percentile by layer, of one configuration.

    Raises:
        FileNotFoundError: no checkpoint in the folder.
        ValueError: several d_new or percentiles; names them.
    """
    found = {}
    for path in sorted(folder.glob(f"*/{CHECKPOINT_NAME}")):
        if match := _FOLDER.fullmatch(path.parent.name):
            found[path] = int(match[1]), int(match[2]), float(match[3])
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no layer_L_dnew_D_pctl_P/{CHECKPOINT_NAME}, as the original study names them"
        )
    kinds = sorted({(d_new, percentile) for _, d_new, percentile in found.values()})
    if len(kinds) > 1:
        listed = ", ".join(f"dnew {d_new} pctl {percentile:g}" for d_new, percentile in kinds)
        raise ValueError(
            f"{folder} holds several configurations ({listed}): give each its own folder"
        )
    return {
        layer: (path, percentile)
        for path, (layer, _, percentile) in sorted(found.items(), key=lambda item: item[1])
    }


def load_checkpoint(path: Path) -> tuple[Transcoder, Transcoder]:
    """Base and delta of one checkpoint, float32.

    Raises:
        ValueError: not a checkpoint of tensors alone, in which case nothing of it was executed, or not the
            tensors that were expected; names them.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files end in a dozen kinds of them
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is not a checkpoint of tensors alone (unpickling anything else could run its code; "
            f"nothing of it was executed): {type(error).__name__}: {first_line}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict of tensors")
    parts = "base_transcoder", "delta_features"
    expected = {f"{part}.{key}" for part in parts for key in KEYS}
    for name in expected ^ state.keys():
        found = "missing" if name in expected else "unexpected"
        raise ValueError(f"{path}: {name} is {found}; expected are {sorted(expected)}")
    base, delta = (_part(path, state, part) for part in parts)
    if (base.d_in, base.d_out) != (delta.d_in, delta.d_out):
        raise ValueError(
            f"{path}: delta_features has [d_in, d_out] = {[delta.d_in, delta.d_out]}, expected the base's "
            f"{[base.d_in, base.d_out]}"
        )
    return base, delta


def import_checkpoint(
    path: Path, layer: int, percentile: float, base_transcoders: str, fingerprint: str
) -> tuple[Transcoder, DeltaConfig]:
    """The delta of one checkpoint and the configuration that it lacks.

    Args:
        base_transcoders: folder or hub id of the bases.
        fingerprint: of the finetuned model it was trained on, which the file does not say.

    Raises:
        ValueError: its base is not the one that the source has at this percentile; names both hashes.
    """
    own_base, delta = load_checkpoint(path)
    _, base_id = load_base(
        base_transcoders,
        layer,
        width=own_base.n_features,
        percentile=percentile,
        d_model=own_base.d_in,
    )
    problem = f"{path}: base_transcoder is another base dictionary"
    check_hash(problem, own_base.fingerprint(), base_id.path, base_id.hash)
    hook_in, hook_out = ORIGINAL.names(layer)
    return delta, DeltaConfig(
        layer=layer,
        d_in=delta.d_in,
        d_out=delta.d_out,
        d_new=delta.n_features,
        base_id=base_id.path,
        base_file=base_id.file,
        base_hash=base_id.hash,
        model_fingerprint=fingerprint,
        hook_site=ORIGINAL.name,
        hook_in=hook_in,
        hook_out=hook_out,
        sparsity=asdict(SPARSITY),
        target="residual",
        percentile=percentile,
        average_l0_base=base_id.average_l0,
        seed=SEED,
        measured={},
    )


def _part(path: Path, state: Mapping[str, Tensor], part: str) -> Transcoder:
    tensors = {f"{part}.{key}": state[f"{part}.{key}"].float() for key in KEYS}
    n_features, d_model = vector_lengths(path, tensors, f"{part}.b_enc", f"{part}.b_dec")
    shapes = dictionary_shapes(d_model, n_features, d_model)
    names = {key: f"{part}.{key}" for key in KEYS}
    return to_transcoder(path, tensors, shapes, "by the lengths of b_enc and b_dec", names=names)
