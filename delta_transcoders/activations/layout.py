"""The cache on disk: inputs, outputs and targets of each layer, token by token.

    manifest.json                                  written last: a folder without one is unfinished
    {split}/index-{shard}.safetensors              token_ids, positions, example_ids [n] int32,
                                                   subset_ids [n] uint8
    {split}/layer_{L}/xy-{shard}.safetensors       x [n, d_in], y [n, d_out]
    {split}/layer_{L}/{target}-{shard}.safetensors target [n, d_out], added afterwards

Row i of a shard is the same token in all of its files. Shards are named after the process that
wrote them (`r0-00003`), so several can write at once. x and y are in the unit of the hook site, all
of them and the targets in the cache's dtype; which tokens there are is for the model's family to say.

To write: each process has a `CacheWriter` for the same empty folder, to the end of `finish`; then one
calls `finish_cache`, and `add_residuals` layer by layer. To read: `ActivationCache`.

Shapes: n rows (tokens) of a shard, B of a batch, L layers, T targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from delta_transcoders.families.sites import HookSite

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "validation")
INDEX_DTYPES = {
    "token_ids": torch.int32,
    "positions": torch.int32,
    "example_ids": torch.int32,
    "subset_ids": torch.uint8,
}

DType = Literal["float32", "bfloat16", "float16"]
TextPolicy = Literal["prompt_target_eos", "prompt_only"]


@dataclass(frozen=True)
class CacheMeta:
    """What a cache was made from; two caches with equal metadata hold the same tokens."""

    layers: tuple[int, ...]
    d_in: int
    d_out: int
    dtype: DType
    """Of the stored activations."""
    hook_site: HookSite
    text_policy: TextPolicy
    model_fingerprint: str
    model_dtype: str
    """Of the weights: the fingerprint is that of these weights in this dtype."""
    tokenizer_fingerprint: str
    subsets: tuple[str, ...]
    """Names that `subset_ids` index."""
    n_examples: dict[str, int]
    """By split; `example_ids` run from 0."""
    texts_sha256: dict[str, str]
    """By split: `fingerprints.hash_texts` of the texts in order."""
    token_policy: str
    """`ModelFamily.tokens.name`"""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "CacheMeta":
        return cls(
            **{
                **raw,
                "layers": tuple(raw["layers"]),
                "subsets": tuple(raw["subsets"]),
                "hook_site": HookSite(**raw["hook_site"]),
            }
        )


def disk_bytes(
    n_tokens: int, n_layers: int, d_in: int, d_out: int, dtype: DType, n_targets: int
) -> int:
    """Bytes that a cache with so many targets per layer takes, but for file headers.

    >>> disk_bytes(1000, 26, 2304, 2304, "bfloat16", 1) // 1000
    359437
    """
    index = sum(dtype.itemsize for dtype in INDEX_DTYPES.values())
    row = (d_in + d_out * (1 + n_targets)) * getattr(torch, dtype).itemsize
    return n_tokens * (index + n_layers * row)


def index_path(split: str, shard: str) -> str:
    return f"{split}/index-{shard}.safetensors"


def shard_path(split: str, layer: int, name: str, shard: str) -> str:
    return f"{split}/layer_{layer}/{name}-{shard}.safetensors"


def part_path(folder: Path, rank: int) -> Path:
    return folder / f"part-r{rank}.json"


def progress_path(folder: Path, rank: int) -> Path:
    return folder / f"progress-r{rank}.json"


def check_finite(tensor: Tensor, what: str) -> None:
    # aminmax propagates NaN, and takes a tenth of the time of isfinite on every element.
    if not torch.stack(tensor.aminmax()).isfinite().all():
        raise ValueError(f"{what} holds NaN or infinite values (dtype {tensor.dtype})")
