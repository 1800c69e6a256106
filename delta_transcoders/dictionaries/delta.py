"""A delta: a small dictionary beside a frozen base, and the folder it is kept in.

`layer_L/delta.safetensors` holds the five tensors of the delta alone (never the base);
`layer_L/config.json` says which base, model and site it belongs to and what was measured.
The config is written last, so a folder that has one is complete.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from delta_transcoders.dictionaries.bases import entry_of, load_base
from delta_transcoders.dictionaries.identity import BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import SiteName
from delta_transcoders.files import read_config, write_json
from delta_transcoders.fingerprints import check_hash
from delta_transcoders.hub import local_folder
from delta_transcoders.tensor_files import load_tensors, save_tensors

FORMAT_VERSION = 1
TENSORS_NAME = "delta.safetensors"
CONFIG_NAME = "config.json"

Target = Literal[
    "residual",
    "mlp_difference",
    "dictionary_error",
    "end_to_end_transplant",
    "end_to_end_dictionary",
]
ON_DICTIONARIES: tuple[Target, ...] = ("residual", "dictionary_error", "end_to_end_dictionary")
"""What corrects a base dictionary; the others correct, or are added to, the base model's MLP."""
END_TO_END: tuple[Target, ...] = ("end_to_end_transplant", "end_to_end_dictionary")
"""Trained through the running model, with one number of features over all layers (`n_features` of
`DeltaConfig.sparsity`): `d_new` differs between layers."""


def random_directions(delta: Transcoder, seed: int) -> Transcoder:
    """The control "any delta would do": the same features, each writing in a random direction.

    Encoder, thresholds and the norm of every decoder row stay, so that what is active where (and the
    L0) is the delta's own; the rows' directions are drawn uniformly from the sphere.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_FD = torch.randn(delta.W_dec.shape, generator=generator, device="cpu").to(delta.W_dec)
    norms_F1 = delta.W_dec.norm(dim=1, keepdim=True)
    tensors = delta.state_dict() | {"W_dec": rows_FD / rows_FD.norm(dim=1, keepdim=True) * norms_F1}
    return Transcoder(**tensors)


def permuted_directions(delta: Transcoder, seed: int) -> Transcoder:
    """The control "these features, each doing another's work": as `random_directions`, but the directions are
    the delta's own, dealt out anew among its features."""
    generator = torch.Generator().manual_seed(seed)
    order_F = torch.randperm(delta.n_features, generator=generator, device="cpu")
    norms_F1 = delta.W_dec.norm(dim=1, keepdim=True)
    directions_FD = delta.W_dec / norms_F1.clamp(min=torch.finfo(norms_F1.dtype).tiny)
    rows_FD = directions_FD[order_F.to(directions_FD.device)] * norms_F1
    return Transcoder(**(delta.state_dict() | {"W_dec": rows_FD}))


def with_features(delta: Transcoder, features: Sequence[int]) -> Transcoder:
    """The delta with some of its features alone, in this order; its bias stays."""
    index = torch.tensor(features, dtype=torch.long, device=delta.W_enc.device)
    tensors = delta.state_dict()
    tensors |= {name: tensors[name][index] for name in ("b_enc", "W_dec", "threshold")}
    return Transcoder(**(tensors | {"W_enc": tensors["W_enc"][:, index]}))


@dataclass(frozen=True)
class DeltaConfig:
    """What a delta was trained on, against what, and how well it does. What has no default is required."""

    layer: int
    d_in: int
    d_out: int
    d_new: int
    base_id: str
    """Folder or hub path of the base's file; of the base model where no dictionary is corrected."""
    base_hash: str
    """Of the base's tensors (`Transcoder.fingerprint`), or the base model's fingerprint."""
    model_fingerprint: str
    hook_site: SiteName
    hook_in: str
    hook_out: str
    sparsity: dict[str, Any]
    """The `SparsityConfig` and the l0 it was trained with, as a dictionary; end to end the budget."""
    target: Target
    """What was learned: r = y − base(x), d = y − baseMLP(x), or the part e = r − d = baseMLP(x) − base(x);
    or, end to end, what makes the base model (`transplant`), or the finetuned one on base dictionaries,
    predict as the finetuned one."""
    percentile: float | None
    average_l0_base: float | None
    seed: int
    measured: dict[str, float]
    """On validation tokens: fvu_base_on_base_model, fvu_base, fvu_full, cosine_base, cosine_full,
    l0_base, l0_delta, dead_fraction."""
    base_file: str | None = None
    """What of `base_id` is below its set; None of the base model, and in older files."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name, allowed in (("hook_site", get_args(SiteName)), ("target", get_args(Target))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}")


def save_delta(folder: str | Path, delta: Transcoder, config: DeltaConfig) -> None:
    """Write `delta.safetensors`, then `config.json`, each atomically."""
    folder = Path(folder)
    _check_shapes(delta, config, folder)
    config_path = folder / CONFIG_NAME
    # An earlier delta's config must not be left describing the new tensors if we are interrupted.
    config_path.unlink(missing_ok=True)

    save_tensors(folder / TENSORS_NAME, delta.state_dict())
    write_json(config_path, asdict(config))


def load_delta(folder: str | Path) -> tuple[Transcoder, DeltaConfig]:
    """Read a folder written by `save_delta`; anything missing, unknown or unfitting is an error.

    A delta is small, and held in float32 whatever its file is rounded to.
    """
    folder = Path(folder)
    config = read_config(
        folder / CONFIG_NAME,
        DeltaConfig,
        "no finished delta in this folder",
        remake="train it anew with `python train.py --config …/delta.yaml`",
    )
    tensors_path = folder / TENSORS_NAME
    tensors = load_tensors(tensors_path)
    wanted = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    if set(tensors) != wanted:
        raise ValueError(f"{tensors_path} holds {sorted(tensors)}, expected {sorted(wanted)}")
    try:
        delta = Transcoder(**tensors).float()
    except ValueError as error:
        raise ValueError(f"{tensors_path}: {error}") from error
    _check_shapes(delta, config, folder)
    return delta, config


def _check_shapes(delta: Transcoder, config: DeltaConfig, folder: Path) -> None:
    found = {"d_in": delta.d_in, "d_out": delta.d_out, "d_new": delta.n_features}
    for name, value in found.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{folder}: the tensors have {name} = {value}, the config {getattr(config, name)}"
            )


def load_deltas(
    folder: str | Path, fingerprint: str | None = None
) -> dict[int, tuple[Path, Transcoder, DeltaConfig]]:
    """Path, delta and config of every `layer_L` of a folder or hub id, all of one configuration.

    Args:
        fingerprint: of the model they must have been trained on, where that matters.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `load_delta_set`.
    """
    folder = local_folder(folder, patterns=["layer_*/*"])
    paths = sorted(
        (p for p in folder.glob("layer_*") if p.name.removeprefix("layer_").isdecimal()),
        key=lambda p: int(p.name.removeprefix("layer_")),
    )
    if not paths:
        raise FileNotFoundError(f"{folder} holds no layer_L folders; `train.py` writes deltas")
    deltas = {}
    for path in paths:
        delta, config = load_delta(path)
        if fingerprint is not None:
            problem = f"{path} was trained on another model"
            check_hash(problem, config.model_fingerprint, "this model", fingerprint)
        if path.name != f"layer_{config.layer}":
            raise ValueError(f"{path} holds the delta of layer {config.layer}")
        deltas[config.layer] = (path, delta, config)
    size = "sparsity" if config.target in END_TO_END else "d_new"
    for name in ("model_fingerprint", "hook_site", "percentile", "target", size):
        values = {str(getattr(config, name)) for _, _, config in deltas.values()}
        if len(values) > 1:
            found = ", ".join(sorted(values))
            raise ValueError(f"{folder}: the deltas' {name} differs between layers: {found}")
    return deltas


def load_base_of(
    path: str | Path, config: DeltaConfig, base_transcoders: str
) -> tuple[Transcoder, BaseId]:
    """The base dictionary that the delta of a folder was trained on.

    Raises:
        ValueError: the source holds another one under its name, or none; names both.
    """
    file = entry_of(base_transcoders, config.base_id).path
    base, base_id = load_base(base_transcoders, config.layer, files=file, d_model=config.d_in)
    problem = f"{path} was trained on another base dictionary"
    check_hash(problem, config.base_hash, base_id.path, base_id.hash)
    return base, base_id
