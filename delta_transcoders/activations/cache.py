"""Reading a cache: checks on opening, whole columns, and a shuffled stream of bounded memory.

Shapes: n rows (tokens), B of a batch, L layers, T targets of all layers, I = d_in, D = d_out.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from delta_transcoders.activations.layout import (
    FORMAT_VERSION,
    INDEX_DTYPES,
    MANIFEST_NAME,
    SPLITS,
    CacheMeta,
    check_finite,
    index_path,
    shard_path,
)
from delta_transcoders.files import locked, read_json, write_json

CHUNKS_PER_BUFFER = 32


class Batch(NamedTuple):
    """The same B tokens for all layers, in the cache's dtype, on the CPU."""

    x_LBI: Tensor
    targets_TBD: Tensor
    """Layer-major: all targets of the first layer, then all of the next."""
    rows_B: Tensor
    """int64, row of the split (as in `ActivationCache.index`)."""


class Span(NamedTuple):
    """Consecutive rows of a shard."""

    shard: str
    start: int
    stop: int
    row: int
    """Row of the split that `start` is."""


class ActivationCache:
    """A finished cache.

    Attributes:
        folder: where it lies
        meta: what it was made from
        rebuild_command: the command that made it, for errors to name

    Raises:
        FileNotFoundError: there is no finished cache in the folder.
        ValueError: another format version, or a file that is missing or of another size than when
            it was written; names the file.
    """

    # Until the manifest says it, which another version's need not.
    rebuild_command = "python evaluate.py --config …/activations.yaml"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / MANIFEST_NAME
        problem = (
            f"no finished activation cache there; make it with the study's `{self.rebuild_command}`"
        )
        self._manifest = read_json(path, problem)
        try:
            version = self._manifest["format_version"]
            if version != FORMAT_VERSION:
                raise self._refusal("format_version", version, FORMAT_VERSION)
            self.rebuild_command = self._manifest["command"]
            self.meta = CacheMeta.from_json(self._manifest["meta"])
            self._check_sizes()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {error}): {problem}"
            ) from error

    def expect(self, **fields: Any) -> None:
        """Refuse a cache made from something else: fields of `CacheMeta` and the values wanted.

        Raises:
            ValueError: names the first field that differs, both values and the rebuild command.
        """
        for name, wanted in fields.items():
            found = getattr(self.meta, name)
            if found != wanted:
                raise self._refusal(name, found, wanted)

    def n_tokens(self, split: str) -> int:
        return self._manifest["splits"][split]["n_tokens"]

    def index(self, split: str) -> dict[str, Tensor]:
        """token_ids, positions, example_ids, subset_ids of all rows of a split, [n_tokens] each."""
        return {name: self._column(split, None, name) for name in INDEX_DTYPES}

    def load(self, split: str, layer: int, names: Sequence[str] = ("x", "y")) -> dict[str, Tensor]:
        """All rows of a split, [n_tokens, d]: x, y or targets by name. They must fit into memory.

        Raises:
            ValueError: a layer or target that the cache lacks; NaN or infinite values read.
        """
        self.check_layers([layer])
        self._check_targets([layer], names)
        return {name: self._column(split, layer, name) for name in names}

    def n_batches(self, split: str, batch_tokens: int, world_size: int = 1) -> int:
        """Batches per process and epoch of `stream`: the same number in every process."""
        per_process = -(-self.n_tokens(split) // world_size)
        return -(-per_process // batch_tokens)

    def stream(
        self,
        split: str,
        layers: Sequence[int],
        targets: Sequence[str],
        *,
        batch_tokens: int,
        buffer_tokens: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> Iterator[Batch]:
        """One epoch in random order: every row of the split once, over all processes together.

        Chunks of consecutive rows, drawn from the whole split, fill a buffer that is then read in
        random order; one buffer and one batch are all that is held. The batches of an epoch have
        equally many rows to within one, at most `batch_tokens`, so that none is too small to learn
        from. The order is a function of the arguments and the sizes of the shards.

        Args:
            targets: names, the same for every layer: `y` or targets (`residual-…`).
            batch_tokens: rows of a batch, in each process.
            buffer_tokens: rows of the buffer, in each process.
            start_batch: batches to leave out at the start, unread.

        Raises:
            ValueError: a layer or target that the cache lacks; NaN or infinite values read.
        """
        if not 0 < batch_tokens <= buffer_tokens:
            raise ValueError(
                f"batch_tokens is {batch_tokens}, expected 1 to buffer_tokens = {buffer_tokens}"
            )
        self.check_layers(layers)
        self._check_targets(layers, targets)
        n, n_batches = self.n_tokens(split), self.n_batches(split, batch_tokens, world_size)
        if n_batches * world_size > n:
            raise ValueError(
                f"{self.folder}: {n} {split} tokens are too few for {n_batches} batches in each of "
                f"{world_size} processes"
            )
        # Every process lays the chunks in the same order and takes its stretch of them.
        first, last = n * rank // world_size, n * (rank + 1) // world_size
        chunks = self.spans(split, max(1, buffer_tokens // CHUNKS_PER_BUFFER))
        order = torch.randperm(len(chunks), generator=_generator(seed, epoch, "chunks")).tolist()
        chunks = [chunks[i] for i in order]

        size, dtype = min(buffer_tokens, last - first), getattr(torch, self.meta.dtype)
        x_LNI = torch.empty(len(layers), size, self.meta.d_in, dtype=dtype)
        targets_TND = torch.empty(len(layers) * len(targets), size, self.meta.d_out, dtype=dtype)
        rows_N = torch.empty(size, dtype=torch.int64)
        filled = None
        for b in range(start_batch, n_batches):
            at, end = ((last - first) * i // n_batches for i in (b, b + 1))
            pieces = []
            while at < end:
                number, offset = divmod(at, buffer_tokens)
                start = first + number * buffer_tokens
                stop = min(start + buffer_tokens, last)
                if number != filled:
                    filling = 0
                    for span in _between(chunks, start, stop):
                        here = slice(filling, filling + span.stop - span.start)
                        for i, layer in enumerate(layers):
                            x_LNI[i, here] = self.rows(split, layer, "x", span)
                            for t, name in enumerate(targets, start=i * len(targets)):
                                targets_TND[t, here] = self.rows(split, layer, name, span)
                        rows_N[here] = torch.arange(span.row, span.row + span.stop - span.start)
                        filling = here.stop
                    generator = _generator(seed, epoch, f"rank {rank} of {world_size}, {number}")
                    order_N = torch.randperm(stop - start, generator=generator)
                    filled = number
                take_B = order_N[offset : offset + end - at]
                columns = ((x_LNI, 1), (targets_TND, 1), (rows_N, 0))
                pieces.append([column.index_select(dim, take_B) for column, dim in columns])
                at += len(take_B)
            if len(pieces) == 1:
                yield Batch(*pieces[0])
            else:
                x, target, rows = zip(*pieces, strict=True)
                yield Batch(torch.cat(x, 1), torch.cat(target, 1), torch.cat(rows))

    def shards(self, split: str) -> list[Span]:
        """All rows of a split, a span per shard."""
        spans, before = [], 0
        for shard in self._manifest["splits"][split]["shards"]:
            spans.append(Span(shard["name"], 0, shard["rows"], before))
            before += shard["rows"]
        return spans

    def spans(self, split: str, rows: int) -> list[Span]:
        """All rows of a split in order, in spans of at most so many rows."""
        return [
            Span(shard.shard, start, min(start + rows, shard.stop), shard.row + start)
            for shard in self.shards(split)
            for start in range(0, shard.stop, rows)
        ]

    def rows(self, split: str, layer: int | None, name: str, span: Span) -> Tensor:
        """Rows of one column, [n, d], or with layer None [n] of the index; nothing else is read.

        Raises:
            ValueError: NaN or infinite values; names layer and shard.
        """
        if layer is None:
            path = index_path(split, span.shard)
        else:
            path = shard_path(split, layer, "xy" if name in ("x", "y") else name, span.shard)
        key = name if name in ("x", "y", *INDEX_DTYPES) else "target"
        try:
            with safe_open(self.folder / path, "pt") as file:
                rows = file.get_slice(key)[span.start : span.stop]
        except SafetensorError as error:
            raise ValueError(
                f"{self.folder / path} is damaged ({error}); rebuild the cache with "
                f"`{self.rebuild_command}`"
            ) from error
        if layer is not None:
            check_finite(rows, f"{self.folder}: layer {layer}, shard {split}/{span.shard}: {name}")
        return rows

    def target(self, name: str, layer: int) -> dict[str, Any] | None:
        """The manifest's entry: `identity`, `fit` by split, `bytes` by file; None where absent."""
        return self._manifest["targets"].get(name, {}).get(str(layer))

    def set_target(self, name: str, layer: int, entry: dict[str, Any] | None) -> None:
        """Record a target, or with None withdraw it, in one step."""
        path = self.folder / MANIFEST_NAME
        # Another process may be adding a target to the same cache. (`write_json` locks the folder itself.)
        with locked(self.folder / SPLITS[0]):
            self._manifest = read_json(path)
            by_layer = self._manifest["targets"].setdefault(name, {})
            by_layer.pop(str(layer), None)
            if entry is not None:
                by_layer[str(layer)] = entry
            write_json(path, self._manifest)

    def check_layers(self, layers: Sequence[int]) -> None:
        """
        Raises:
            ValueError: a layer that was not captured.
        """
        for layer in layers:
            if layer not in self.meta.layers:
                raise self._refusal("layers", self.meta.layers, f"layer {layer} among them")

    def _check_targets(self, layers: Sequence[int], names: Sequence[str]) -> None:
        for layer, name in itertools.product(layers, names):
            if name not in ("x", "y") and self.target(name, layer) is None:
                have = [n for n, at in self._manifest["targets"].items() if str(layer) in at]
                raise ValueError(
                    f"{self.folder}: layer {layer} has no target {name!r}, only {have}; add it with "
                    f"`{self.rebuild_command}`"
                )

    def _check_sizes(self) -> None:
        sizes: dict[str, int] = {}
        for split in self._manifest["splits"].values():
            for shard in split["shards"]:
                sizes |= shard["bytes"]
        for by_layer in self._manifest["targets"].values():
            for entry in by_layer.values():
                sizes |= entry["bytes"]
        for path, size in sizes.items():
            file = self.folder / path
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise ValueError(f"{file} {state}; rebuild the cache with `{self.rebuild_command}`")

    def _column(self, split: str, layer: int | None, name: str) -> Tensor:
        return torch.cat([self.rows(split, layer, name, span) for span in self.shards(split)])

    def _refusal(self, field: str, found: Any, wanted: Any) -> ValueError:
        return ValueError(
            f"the activation cache {self.folder} has {field} = {found!r}, expected {wanted!r}; "
            f"rebuild it with `{self.rebuild_command}`"
        )


def _between(chunks: Sequence[Span], start: int, stop: int) -> list[Span]:
    """The pieces of the chunks, laid end to end, between two positions.

    >>> _between([Span("a", 4, 8, 4), Span("b", 0, 4, 10)], 3, 6)
    [Span(shard='a', start=7, stop=8, row=7), Span(shard='b', start=0, stop=2, row=10)]
    """
    spans, before = [], 0
    for shard, chunk_start, chunk_stop, row in chunks:
        length = chunk_stop - chunk_start
        skip, end = max(start - before, 0), min(stop - before, length)
        if skip < end:
            spans.append(Span(shard, chunk_start + skip, chunk_start + end, row + skip))
        before += length
    return spans


def _generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
