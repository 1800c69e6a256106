"""A delta: a small dictionary beside a frozen base, and the folder it is kept in.

`layer_L/delta.safetensors` holds the five tensors of the delta alone (never the base);
`layer_L/config.json` says which base, model and site it belongs to and what was measured.
The config is written last, so a folder that has one is complete.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder, concatenate
from delta_transcoders.families.sites import SiteName

FORMAT_VERSION = 1
TENSORS_NAME = "delta.safetensors"
CONFIG_NAME = "config.json"

Target = Literal["residual", "mlp_difference"]


class DeltaTranscoder(nn.Module):
    """output = base(x) + alpha · delta(x).

    Attributes:
        base: the frozen public dictionary, [d_in] to [d_out]
        delta: the small dictionary with the same d_in and d_out
    """

    def __init__(self, base: JumpReLUTranscoder, delta: JumpReLUTranscoder):
        super().__init__()
        if (base.d_in, base.d_out) != (delta.d_in, delta.d_out):
            raise ValueError(
                f"the delta has [d_in, d_out] = {[delta.d_in, delta.d_out]}, "
                f"its base {[base.d_in, base.d_out]}"
            )
        self.base = base
        self.delta = delta

    def forward(self, x: Tensor, alpha: float = 1.0) -> Tensor:
        """x [..., d_in] to [..., d_out]."""
        return self.base(x) + alpha * self.delta(x)

    def fuse(self, alpha: float = 1.0) -> JumpReLUTranscoder:
        """Base and delta as one dictionary of n_features + d_new features."""
        return concatenate(self.base, self.delta, alpha)


def random_directions(delta: JumpReLUTranscoder, seed: int) -> JumpReLUTranscoder:
    """The control "any delta would do": the same features, each writing in a random direction.

    Encoder, thresholds and the norm of every decoder row stay, so that what is active where (and the
    L0) is the delta's own; the rows' directions are drawn uniformly from the sphere.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_FD = torch.randn(delta.W_dec.shape, generator=generator, device="cpu").to(delta.W_dec)
    norms_F1 = delta.W_dec.norm(dim=1, keepdim=True)
    tensors = delta.state_dict() | {"W_dec": rows_FD / rows_FD.norm(dim=1, keepdim=True) * norms_F1}
    return JumpReLUTranscoder(**tensors)


@dataclass(frozen=True)
class DeltaConfig:
    """What a delta was trained on, against what, and how well it does. All of it is required."""

    layer: int
    d_in: int
    d_out: int
    d_new: int
    base_id: str
    """Folder or hub path of the base's params.npz; of the base model for `mlp_difference`."""
    base_hash: str
    """sha256 of the base's five tensors (`fingerprints.hash_tensors`), or the base model's fingerprint."""
    model_fingerprint: str
    hook_site: SiteName
    hook_in: str
    hook_out: str
    sparsity: dict[str, Any]
    """The `SparsityConfig` and the l0 it was trained with, as a dictionary."""
    target: Target
    """What was learned: y − base(x), or y − (what the base model's MLP writes on x)."""
    percentile: float | None
    average_l0_base: float | None
    seed: int
    measured: dict[str, float]
    """On validation tokens: fvu_base_on_base_model, fvu_base, fvu_full, cosine_base, cosine_full,
    l0_base, l0_delta, dead_fraction."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name, allowed in (("hook_site", get_args(SiteName)), ("target", get_args(Target))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}")
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version is {self.format_version}, this code reads {FORMAT_VERSION}"
            )


def save_delta(folder: str | Path, delta: JumpReLUTranscoder, config: DeltaConfig) -> None:
    """Write `delta.safetensors`, then `config.json`, each atomically."""
    folder = Path(folder)
    _check_shapes(delta, config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / CONFIG_NAME
    # An earlier delta's config must not be left describing the new tensors if we are interrupted.
    config_path.unlink(missing_ok=True)

    tensors_temp = folder / f".{TENSORS_NAME}.{os.getpid()}.tmp"
    save_file({k: v.cpu().contiguous() for k, v in delta.state_dict().items()}, tensors_temp)
    os.replace(tensors_temp, folder / TENSORS_NAME)

    config_temp = folder / f".{CONFIG_NAME}.{os.getpid()}.tmp"
    config_temp.write_text(json.dumps(asdict(config), indent=2) + "\n")
    os.replace(config_temp, config_path)


def load_delta(folder: str | Path) -> tuple[JumpReLUTranscoder, DeltaConfig]:
    """Read a folder written by `save_delta`; anything missing, unknown or unfitting is an error."""
    folder = Path(folder)
    config = _read_config(folder / CONFIG_NAME)
    tensors_path = folder / TENSORS_NAME
    try:
        tensors = load_file(tensors_path)
    except SafetensorError as error:
        raise ValueError(f"{tensors_path} is not a safetensors file: {error}") from error
    wanted = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    if set(tensors) != wanted:
        raise ValueError(f"{tensors_path} holds {sorted(tensors)}, expected {sorted(wanted)}")
    try:
        delta = JumpReLUTranscoder(**tensors)
    except ValueError as error:
        raise ValueError(f"{tensors_path}: {error}") from error
    _check_shapes(delta, config, folder)
    return delta, config


def _read_config(path: Path) -> DeltaConfig:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: no finished delta in this folder")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}, expected an object")
    known = {field.name for field in fields(DeltaConfig)}
    for key in sorted(raw.keys() - known):
        raise ValueError(f"{path}: unknown key {key!r}; known are {sorted(known)}")
    for key in sorted(known - raw.keys()):
        raise ValueError(f"{path}: key {key!r} is missing")
    try:
        return DeltaConfig(**raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_shapes(delta: JumpReLUTranscoder, config: DeltaConfig, folder: Path) -> None:
    found = {"d_in": delta.d_in, "d_out": delta.d_out, "d_new": delta.n_features}
    for name, value in found.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{folder}: the tensors have {name} = {value}, the config {getattr(config, name)}"
            )
