"""Length-bucketed batches, shared out over ranks, and a loader that resumes in mid-epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from delta_transcoders.language_models import IGNORE, pad
from delta_transcoders.processes import rank_and_world_size


class BucketedBatchSampler(Sampler[list[int]]):
    """Batches of row indices of similar length, in random order, the same number on every rank.

    Each epoch shuffles the rows, sorts them by length with a little noise, cuts them into batches and
    shuffles the batches; the order depends on `seed` and `epoch` alone. Batches left over when they are
    dealt to the ranks are dropped for that epoch.

    Args:
        lengths: tokens of each row.
        batch_size: rows per batch and rank.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0
        self.rank, self.world_size = rank_and_world_size()
        n_batches = -(-len(self.lengths) // batch_size)
        if n_batches < self.world_size:
            raise ValueError(
                f"{len(self.lengths)} training rows make {n_batches} batches of {batch_size}, "
                f"too few for {self.world_size} processes"
            )
        self.n_batches = n_batches // self.world_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(f"batches {self.seed} {self.epoch}")
        noise = [rng.uniform(0, 3) for _ in self.lengths]
        order = sorted(range(len(self.lengths)), key=lambda i: (self.lengths[i] + noise[i], i))
        size = self.batch_size
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        rng.shuffle(batches)
        mine = batches[self.rank :: self.world_size][: self.n_batches]
        start, self.start = self.start, 0
        yield from mine[start:]


class ShardedBatchSampler(Sampler[list[int]]):
    """Every row exactly once over all ranks, in batches of similar length.

    Lightning's own distributed samplers repeat rows to even out the ranks, which falsifies results.
    Batches shrink where there would be none for some rank: it would not take part in reductions, and the
    others would wait for it.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int) -> None:
        rank, world_size = rank_and_world_size()
        if len(lengths) < world_size:
            raise ValueError(f"{len(lengths)} rows are too few for {world_size} processes")
        batch_size = min(batch_size, len(lengths) // world_size)
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class BatchDataset(Dataset):
    """Rows addressed by lists of indices; each list becomes one collated batch."""

    def __init__(self, rows: Sequence, collate: Callable[[list], dict[str, Tensor]]) -> None:
        self.rows = rows
        self.collate = collate

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        return self.collate([self.rows[i] for i in indices])


class ResumableDataLoader(DataLoader):
    """A loader whose position in the epoch is part of checkpoints.

    Lightning stores `state_dict` of a loader that has one and calls `load_state_dict` before the first
    batch. A finished epoch resumes at the start of the next. The generator of its own keeps the loader
    from drawing a seed (for workers) from the global one, which a resumed run would do in mid-epoch.

    Args:
        dataset: yields whole batches, addressed by a sampler or by itself.
        source: what decides the order, sampler or dataset; its `start` is the number of batches to leave
            out at the next iteration, its length that of an epoch.
    """

    def __init__(self, dataset: Dataset, source: Sampler | IterableDataset) -> None:
        sampler = source if isinstance(source, Sampler) else None
        super().__init__(dataset, sampler=sampler, batch_size=None, generator=torch.Generator())
        self.source = source
        self.position = 0

    def __iter__(self) -> Iterator:
        self.position = self.source.start
        for batch in super().__iter__():
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.source.start = state["position"] % len(self.source)


def row_lengths(rows: Sequence[dict]) -> list[int]:
    return [len(row["input_ids"]) for row in rows]


def collate_tokens(rows: list[dict], pad_token_id: int) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels` [B, T]."""
    return {
        "input_ids": pad([row["input_ids"] for row in rows], pad_token_id, "right"),
        "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0, "right"),
        "labels": pad([row["labels"] for row in rows], IGNORE, "right"),
    }


class ResumableData(LightningDataModule):
    """Data whose position in the epoch is part of checkpoints.

    Lightning's own restoring of loaders comes too late where the optimizer's schedule has asked for the
    number of batches before: the data's state is restored first of all.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loader: ResumableDataLoader | None = None
        self._position = 0

    def training_loader(
        self, dataset: Dataset, source: Sampler | IterableDataset
    ) -> ResumableDataLoader:
        """The loader of `train_dataloader`, at the position of the checkpoint if there is one."""
        source.start = self._position % len(source)
        self._loader = ResumableDataLoader(dataset, source)
        return self._loader

    def bucketed_loader(
        self,
        rows: Sequence[dict],
        batch_size: int,
        seed: int,
        collate: Callable[[list], dict[str, Tensor]],
    ) -> ResumableDataLoader:
        """A shuffled, length-bucketed loader over rows with `input_ids`."""
        sampler = BucketedBatchSampler(row_lengths(rows), batch_size, seed)
        return self.training_loader(BatchDataset(rows, collate), sampler)

    def state_dict(self) -> dict[str, int]:
        return {"position": self._loader.position if self._loader is not None else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position = state["position"]


def sharded_loader(
    rows: Sequence,
    lengths: Sequence[int],
    batch_size: int,
    collate: Callable[[list], dict[str, Tensor]],
) -> DataLoader:
    """A loader for evaluation: each row once over all ranks."""
    sampler = ShardedBatchSampler(lengths, batch_size)
    dataset = BatchDataset(rows, collate)
    return DataLoader(dataset, sampler=sampler, batch_size=None, generator=torch.Generator())
