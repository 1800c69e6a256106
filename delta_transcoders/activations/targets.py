"""What a delta learns, computed once per token and stored beside x and y."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.layout import SPLITS, check_finite, shard_path
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.metrics.reconstruction import GroupedReconstruction, ReconstructionFit
from delta_transcoders.tensor_files import save_tensors

ROWS_AT_ONCE = 2048  # through a base dictionary: 16,384 float32 activations each are 134 MB


def add_target(
    cache: ActivationCache,
    layer: int,
    name: str,
    identity: Mapping[str, Any],
    reconstruct: Callable[[Tensor], tuple[Tensor, Tensor | int]],
    device: torch.device | str = "cpu",
    whole: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, ReconstructionFit]:
    """Store y − reconstruct(x) beside x and y, and say how good the reconstruction is.

    Nothing is computed where the target is there already with the same `identity["hash"]`; with
    another hash it is withdrawn first and replaced. One process at a time: the manifest changes.

    Args:
        name: of the target, and of its files.
        identity: what `reconstruct` is; JSON, with a `hash`.
        reconstruct: x float32 [n, d_in] on the device to (reconstruction [n, d_out], number of
            active features summed over the n, 0 where it has none).
        whole: x likewise to what stands in y's place [n, d_out].

    Returns:
        By split (those with tokens): the fit of y, or what stands in its place, by reconstruct(x).

    Raises:
        ValueError: a NaN or infinite value; names layer and shard. The rest of the cache is intact.
    """
    assert name not in ("x", "y", "xy"), "these are the cache's own files"
    cache.check_layers([layer])
    identity = dict(identity)
    entry = cache.target(name, layer)
    if entry is None or entry["identity"]["hash"] != identity["hash"]:
        if entry is not None:
            cache.set_target(name, layer, None)
        entry = _write_target(cache, layer, name, identity, reconstruct, device, whole)
        cache.set_target(name, layer, entry)
    elif _described(entry["identity"]) != _described(identity):  # by older code
        entry = entry | {"identity": identity}
        cache.set_target(name, layer, entry)
    return {split: ReconstructionFit(**fit) for split, fit in entry["fit"].items()}


def _described(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What an identity says beside where the dictionary lies, which may be another copy each time."""
    return {key: value for key, value in identity.items() if key not in ("source", "file", "path")}


@torch.inference_mode()
def _write_target(
    cache: ActivationCache,
    layer: int,
    name: str,
    identity: dict[str, Any],
    reconstruct: Callable[[Tensor], tuple[Tensor, Tensor | int]],
    device: torch.device | str,
    whole: Callable[[Tensor], Tensor] | None,
) -> dict[str, Any]:
    sizes, fits = {}, {}
    dtype = getattr(torch, cache.meta.dtype)
    for split in SPLITS:
        metric = GroupedReconstruction(1, cache.meta.d_out).to(device)
        for shard in cache.shards(split):
            pieces = []
            for start in range(0, shard.stop, ROWS_AT_ONCE):
                span = shard._replace(start=start, stop=min(start + ROWS_AT_ONCE, shard.stop))
                x, y = (
                    cache.rows(split, layer, key, span).to(device, torch.float32) for key in "xy"
                )
                if whole is not None:
                    y = whole(x)
                reconstruction, n_active = reconstruct(x)
                metric.update(0, y, reconstruction, n_active)
                pieces.append((y - reconstruction).to("cpu", dtype))
            target = torch.cat(pieces)
            check_finite(
                target, f"{cache.folder}: layer {layer}, shard {split}/{shard.shard}: {name}"
            )
            path = shard_path(split, layer, name, shard.shard)
            sizes[path] = save_tensors(cache.folder / path, {"target": target})
        if cache.n_tokens(split):
            fits[split] = asdict(metric.fit())
    return {"identity": identity, "bytes": sizes, "fit": fits}


def add_residuals(
    cache: ActivationCache,
    layer: int,
    key: str,
    base: Transcoder,
    base_id: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> dict[str, ReconstructionFit]:
    """Store r = y − base(x) as the target `residual-{key}` of a layer (see `add_target`).

    Args:
        base: moved to the device.
        base_id: which base it is, with its `hash` (`asdict` of a `BaseId`).

    Raises:
        ValueError: the base's widths are not the cache's; names both.
    """
    if (base.d_in, base.d_out) != (cache.meta.d_in, cache.meta.d_out):
        raise ValueError(
            f"layer {layer}: the base dictionary has [d_in, d_out] = {[base.d_in, base.d_out]}, "
            f"the cache {cache.folder} {[cache.meta.d_in, cache.meta.d_out]}"
        )
    base = base.to(device)

    return add_target(cache, layer, f"residual-{key}", base_id, base.reconstruct, device)
