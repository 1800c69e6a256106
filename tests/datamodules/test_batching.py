import itertools
import random

import pytest
import torch

from datamodules import batching
from datamodules.batching import (
    BucketedBatchSampler,
    ResumableData,
    ShardedBatchSampler,
    collate_tokens,
    sharded_loader,
)
from delta_transcoders.language_models import IGNORE


@pytest.fixture
def as_rank(monkeypatch):
    def become(rank: int, world_size: int) -> None:
        monkeypatch.setattr(batching, "rank_and_world_size", lambda: (rank, world_size))

    return become


def lengths(n: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(5, 60) for _ in range(n)]


def rows_of_length(sizes: list[int]) -> list[dict]:
    """Row i repeats the token i + 1."""
    return [{"input_ids": [i + 1] * n, "labels": [i + 1] * n} for i, n in enumerate(sizes)]


def collate(rows: list[dict]) -> dict:
    return collate_tokens(rows, pad_token_id=0)


def rows_in(batch: dict) -> list[int]:
    return [int(row[0]) - 1 for row in batch["input_ids"]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("n", "batch_size"), [(103, 8), (64, 8), (5, 100), (7, 1)])
def test_evaluation_gives_every_row_once_over_all_ranks(as_rank, n, batch_size, world_size):
    sizes = lengths(n)
    seen = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        sampler = ShardedBatchSampler(sizes, batch_size)
        batches = list(sampler)
        assert len(sampler) == len(batches) > 0, "a rank without a batch would hang the others"
        assert all(0 < len(batch) <= batch_size for batch in batches)
        assert list(sampler) == batches
        seen += itertools.chain(*batches)
    assert sorted(seen) == list(range(n))


def test_fewer_rows_than_processes_is_an_error(as_rank):
    as_rank(0, 4)
    with pytest.raises(ValueError, match="3 rows are too few for 4 processes"):
        ShardedBatchSampler([5, 6, 7], 8)


def test_evaluation_batches_hold_rows_of_similar_length(as_rank):
    as_rank(0, 1)
    sizes = lengths(100)
    flat = [sizes[i] for batch in ShardedBatchSampler(sizes, 8) for i in batch]
    assert flat == sorted(sizes)


def test_lengths_may_be_pairs_that_keep_subsets_together(as_rank):
    as_rank(0, 1)
    pairs = [(subset, n) for subset in range(3) for n in lengths(13, seed=subset)]
    batches = list(ShardedBatchSampler(pairs, 5))
    flat = [pairs[i] for batch in batches for i in batch]
    assert flat == sorted(pairs)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_gives_every_rank_the_same_number_of_batches(as_rank, world_size):
    sizes, size = lengths(103), 8  # 13 batches
    samplers = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        samplers.append(BucketedBatchSampler(sizes, size, seed=0))
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        per_rank = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in per_rank} == {13 // world_size}
        assert {len(sampler) for sampler in samplers} == {13 // world_size}
        seen = [i for batches in per_rank for batch in batches for i in batch]
        assert len(set(seen)) == len(seen)
        assert len(seen) >= 103 - size * (world_size - 1)


def test_the_ranks_share_out_the_batches_of_one_process(as_rank):
    sizes = lengths(96)
    as_rank(0, 1)
    alone = list(BucketedBatchSampler(sizes, 8, seed=5))
    as_rank(0, 2)
    first = list(BucketedBatchSampler(sizes, 8, seed=5))
    as_rank(1, 2)
    second = list(BucketedBatchSampler(sizes, 8, seed=5))
    assert [batch for pair in zip(first, second, strict=True) for batch in pair] == alone


def test_the_order_depends_on_seed_and_epoch_alone():
    sizes = lengths(200)

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = BucketedBatchSampler(sizes, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    random.seed(1)
    torch.manual_seed(1)
    reference = order(0, 0)
    random.seed(2)
    torch.manual_seed(2)
    assert order(0, 0) == reference
    assert order(0, 1) != reference
    assert order(1, 0) != reference
    assert sorted(itertools.chain(*order(0, 1))) == sorted(itertools.chain(*reference))


def test_training_batches_hold_rows_of_similar_length():
    sizes = lengths(400)
    for batch in BucketedBatchSampler(sizes, 8, seed=0):
        assert max(sizes[i] for i in batch) - min(sizes[i] for i in batch) <= 6
    shuffled = [sizes[batch[0]] for batch in BucketedBatchSampler(sizes, 8, seed=0)]
    assert shuffled != sorted(shuffled)


def test_too_few_training_rows_for_the_processes(as_rank):
    as_rank(0, 3)
    with pytest.raises(ValueError, match="16 training rows make 2 batches of 8, too few for 3"):
        BucketedBatchSampler(lengths(16), 8, seed=0)


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_loader_resumes_where_it_stopped(taken):
    rows = rows_of_length(lengths(45))
    whole = [rows_in(batch) for batch in ResumableData().bucketed_loader(rows, 8, 0, collate)]
    assert len(whole) == 6
    loader = ResumableData().bucketed_loader(rows, 8, 0, collate)
    iterator = iter(loader)
    before = [rows_in(next(iterator)) for _ in range(taken)]
    state = loader.state_dict()

    resumed = ResumableData().bucketed_loader(rows, 8, 0, collate)
    resumed.load_state_dict(state)
    assert len(resumed) == len(whole)
    assert before + [rows_in(batch) for batch in resumed] == whole
    assert resumed.state_dict() == {"position": 6}
    # The next epoch starts at its beginning again.
    resumed.sampler.set_epoch(1)
    loader.sampler.set_epoch(1)
    assert [rows_in(b) for b in resumed] == [rows_in(b) for b in loader]
    assert len(list(resumed)) == 6


def test_a_second_stop_in_a_resumed_epoch_counts_from_the_start():
    rows = rows_of_length(lengths(45))
    whole = [rows_in(batch) for batch in ResumableData().bucketed_loader(rows, 8, 0, collate)]
    position = 0
    for n in (2, 3):
        loader = ResumableData().bucketed_loader(rows, 8, 0, collate)
        loader.load_state_dict({"position": position})
        taken = [rows_in(batch) for batch in itertools.islice(loader, n)]
        assert taken == whole[position : position + n]
        position = loader.state_dict()["position"]
    assert position == 5


def test_a_finished_epoch_resumes_at_the_next():
    rows = rows_of_length(lengths(45))
    loader = ResumableData().bucketed_loader(rows, 8, 0, collate)
    assert len(list(loader)) == 6
    resumed = ResumableData().bucketed_loader(rows, 8, 0, collate)
    resumed.load_state_dict(loader.state_dict())
    assert len(list(resumed)) == 6


def test_reading_batches_draws_nothing_from_the_global_generator():
    """Dropout would otherwise differ between an uninterrupted and a resumed run."""
    rows = rows_of_length(lengths(20))
    for loader in (
        ResumableData().bucketed_loader(rows, 8, 0, collate),
        sharded_loader(rows, lengths(20), 8, collate),
    ):
        before = torch.get_rng_state()
        assert len(list(loader)) == 3
        assert torch.equal(torch.get_rng_state(), before)


def test_collated_batches_are_padded_on_the_right():
    rows = [{"input_ids": [1, 2, 3], "labels": [IGNORE, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = collate_tokens(rows, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 2, 3], [4, IGNORE, IGNORE]]
