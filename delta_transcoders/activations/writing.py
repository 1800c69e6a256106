"""Writing a cache: each process its shards, then one of them the manifest."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.layout import (
    FORMAT_VERSION,
    INDEX_DTYPES,
    MANIFEST_NAME,
    SPLITS,
    CacheMeta,
    check_finite,
    index_path,
    part_path,
    progress_path,
    shard_path,
)
from delta_transcoders.files import read_json, write_json
from delta_transcoders.tensor_files import save_tensors


class CacheWriter:
    """Writes one process's share of a cache, shard by shard; holds at most a shard per split.

    A later one in the same folder goes on after the last shard, if it is given the same batches again: those
    for which `skip` is true need not be computed.

    Args:
        folder: empty, or with other processes' shards, or this process's of an earlier run.
        rank: number of this process.
        shard_rows: tokens per shard.
    """

    def __init__(self, folder: str | Path, meta: CacheMeta, rank: int = 0, shard_rows: int = 4096):
        self.folder = Path(folder)
        self.meta = meta
        self.rank = rank
        self.shard_rows = shard_rows
        self._dtype = getattr(torch, meta.dtype)
        self._buffers: dict[str, list[dict[str, Tensor]]] = {split: [] for split in SPLITS}
        path = progress_path(self.folder, rank)
        # Shards; batches of which all rows are in them, and rows of the next one that are.
        self._progress: dict[str, dict[str, Any]] = (
            read_json(path)
            if path.is_file()
            else {
                "shards": {split: [] for split in SPLITS},
                "batches": dict.fromkeys(SPLITS, 0),
                "rows": dict.fromkeys(SPLITS, 0),
            }
        )
        self._shards = self._progress["shards"]
        self._earlier = {key: dict(self._progress[key]) for key in ("batches", "rows")}
        self._batches = dict.fromkeys(SPLITS, 0)
        self._last_rows = dict.fromkeys(SPLITS, 0)

    @property
    def n_written(self) -> int:
        """Tokens that are in shards."""
        return sum(shard["rows"] for shards in self._shards.values() for shard in shards)

    def skip(self, split: str) -> bool:
        """Whether an earlier run has written the next batch of a split, which must then not be added."""
        is_written = self._batches[split] < self._earlier["batches"][split]
        self._batches[split] += is_written
        return is_written

    def add(
        self,
        split: str,
        activations: Mapping[int, tuple[Tensor, Tensor]],
        *,
        token_ids: Tensor,
        positions: Tensor,
        example_ids: Tensor,
        subset_ids: Tensor,
    ) -> None:
        """Append tokens.

        Args:
            split: train or validation.
            activations: layer -> (x [n, d_in], y [n, d_out]), any float dtype and device.
            token_ids, positions, example_ids, subset_ids: integers [n].

        Raises:
            ValueError: layers or widths other than the metadata's; NaN or infinite values.
        """
        if set(activations) != set(self.meta.layers):
            raise ValueError(
                f"activations of layers {sorted(activations)}, the cache is for "
                f"{sorted(self.meta.layers)}"
            )
        index = {
            "token_ids": token_ids,
            "positions": positions,
            "example_ids": example_ids,
            "subset_ids": subset_ids,
        }
        is_begun = self._batches[split] == self._earlier["batches"][split]
        start = self._earlier["rows"][split] if is_begun else 0
        self._batches[split] += 1
        self._last_rows[split] = len(token_ids)
        rows = {name: index[name].to("cpu", dtype) for name, dtype in INDEX_DTYPES.items()}
        for layer, pair in activations.items():
            for name, tensor, width in zip(
                "xy", pair, (self.meta.d_in, self.meta.d_out), strict=True
            ):
                if tensor.shape != (len(token_ids), width):
                    raise ValueError(
                        f"layer {layer}: {name} has shape {list(tensor.shape)}, expected "
                        f"{[len(token_ids), width]}"
                    )
                rows[f"{layer}/{name}"] = tensor.detach().to("cpu", self._dtype)
        self._buffers[split].append({name: column[start:] for name, column in rows.items()})
        while self._buffered(split) >= self.shard_rows:
            self._write_shard(split)

    def finish(self) -> None:
        """Write what is left, and this process's list of shards."""
        for split in SPLITS:
            while self._buffered(split):
                self._write_shard(split)
        write_json(part_path(self.folder, self.rank), self._shards)

    def _buffered(self, split: str) -> int:
        return sum(len(rows["token_ids"]) for rows in self._buffers[split])

    def _write_shard(self, split: str) -> None:
        """The first rows of the buffer, which lets go of them file by file: no layer is copied but one."""
        parts, self._buffers[split] = self._buffers[split], []
        n_rows = sum(len(part["token_ids"]) for part in parts)
        if n_rows > self.shard_rows:  # the last part alone reaches beyond the shard
            keep = len(parts[-1]["token_ids"]) - (n_rows - self.shard_rows)
            self._buffers[split] = [{k: v[keep:].clone() for k, v in parts[-1].items()}]
            parts[-1] = {k: v[:keep] for k, v in parts[-1].items()}
            n_rows = self.shard_rows

        def column(name: str) -> Tensor:
            return torch.cat([part.pop(name) for part in parts])

        shard = f"r{self.rank}-{len(self._shards[split]):05d}"
        path = index_path(split, shard)
        index = {name: column(name) for name in INDEX_DTYPES}
        sizes = {path: save_tensors(self.folder / path, index)}
        for layer in self.meta.layers:
            pair = {name: column(f"{layer}/{name}") for name in "xy"}
            for name, tensor in pair.items():
                check_finite(tensor, f"layer {layer}, shard {split}/{shard}: {name}")
            path = shard_path(split, layer, "xy", shard)
            sizes[path] = save_tensors(self.folder / path, pair)
        self._shards[split].append({"name": shard, "rows": n_rows, "bytes": sizes})
        left = self._buffered(split)  # of the last batch alone
        done, begun = self._progress["batches"], self._progress["rows"]
        done[split] = self._batches[split] - (left > 0)
        begun[split] = self._last_rows[split] - left if left else 0
        write_json(progress_path(self.folder, self.rank), self._progress)


def finish_cache(
    folder: str | Path, meta: CacheMeta, world_size: int = 1, *, command: str
) -> ActivationCache:
    """Gather what all processes wrote, check that every example is there once, write the manifest.

    Args:
        command: that makes this cache, for errors to name.

    Raises:
        ValueError: a process did not finish; an example is missing or was captured twice.
    """
    folder = Path(folder)
    parts = [part_path(folder, rank) for rank in range(world_size)]
    for rank, part in enumerate(parts):
        if not part.is_file():
            raise ValueError(f"{folder}: process {rank} of {world_size} has not finished writing")
    written = [read_json(part) for part in parts]
    splits = {}
    for split in SPLITS:
        shards = list(itertools.chain.from_iterable(part[split] for part in written))
        _check_examples(folder, split, [shard["name"] for shard in shards], meta.n_examples[split])
        splits[split] = {"n_tokens": sum(shard["rows"] for shard in shards), "shards": shards}
    manifest = {
        "format_version": FORMAT_VERSION,
        "command": command,
        "meta": asdict(meta),
        "splits": splits,
        "targets": {},
    }
    write_json(folder / MANIFEST_NAME, manifest)
    for rank, part in enumerate(parts):
        part.unlink()
        progress_path(folder, rank).unlink(missing_ok=True)
    return ActivationCache(folder)


def _check_examples(folder: Path, split: str, shards: Sequence[str], n_examples: int) -> None:
    # 8 bytes of every token at once: nothing beside the 9 KB that it takes on disk, a layer of Gemma 2 2B.
    tokens = [torch.empty(0, dtype=torch.int64)]
    for shard in shards:
        with safe_open(folder / index_path(split, shard), "pt") as file:
            example_ids, positions = (file.get_tensor(k) for k in ("example_ids", "positions"))
        tokens.append((example_ids.long() << 32) + positions)
    keys, counts = torch.cat(tokens).unique(return_counts=True)
    found = set((keys >> 32).unique().tolist())
    for problem, ids in (
        ("were captured twice", (keys[counts > 1] >> 32).unique().tolist()),
        ("are missing", sorted(set(range(n_examples)) - found)),
        ("were not asked for", sorted(found - set(range(n_examples)))),
    ):
        if ids:
            raise ValueError(
                f"{folder}: {len(ids)} of {n_examples} {split} examples {problem}, "
                f"example_ids {ids[:5]}{' …' if len(ids) > 5 else ''}"
            )
