import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from delta_transcoders.metrics.grouped import GroupedMean

N_GROUPS = 6
EMPTY = 4  # a group that no row belongs to
ROWS_OF_RANK = (37, 5)  # uneven on purpose: a mean of means would be wrong


def rows():
    """groups, numerator, denominator: [42] each."""
    generator = torch.Generator().manual_seed(0)
    n = sum(ROWS_OF_RANK)
    groups = torch.randint(0, N_GROUPS - 1, (n,), generator=generator)
    groups[groups == EMPTY] = N_GROUPS - 1
    numerator = torch.randn(n, generator=generator)
    return groups, numerator, torch.randint(1, 50, (n,), generator=generator)


def reference(groups, numerator, denominator):
    means = []
    for group in range(N_GROUPS):
        members = [i for i, g in enumerate(groups.tolist()) if g == group]
        total = sum(float(denominator[i]) for i in members)
        means.append(sum(float(numerator[i]) for i in members) / total if total else torch.nan)
    return torch.tensor(means, dtype=torch.float64)


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_one_process_equals_the_reference_however_batched():
    groups, numerator, denominator = rows()
    expected = reference(groups, numerator, denominator)
    assert expected.isnan().nonzero().flatten().tolist() == [EMPTY]
    for size in (1, 5, 42):
        metric = GroupedMean(N_GROUPS)
        for part in zip(*(t.split(size) for t in rows()), strict=True):
            metric.update(*part)
        same(metric.compute(), expected)
        assert metric.compute().dtype == torch.float64


def test_denominator_is_one_by_default():
    groups, numerator, _ = rows()
    metric = GroupedMean(N_GROUPS)
    metric.update(groups, numerator)
    same(metric.compute(), reference(groups, numerator, torch.ones(len(groups))))


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(ROWS_OF_RANK)
    )
    metric, idle_rank = GroupedMean(N_GROUPS), GroupedMean(N_GROUPS)
    mine = [t.split(ROWS_OF_RANK)[rank] for t in rows()]
    for part in zip(*(t.split(4) for t in mine), strict=True):
        metric.update(*part)
    # One process has no rows at all; both must still take part in `compute`.
    idle_rank.update(*(rows() if rank == 0 else (t[:0] for t in rows())))
    torch.save((metric.compute(), idle_rank.compute()), folder / f"{rank}.pt")
    # Afterwards the state is this process's part again, so that more rows can follow.
    assert metric.denominator.sum() == mine[2].sum()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_equal_one(tmp_path, monkeypatch, pytestconfig):
    # The new processes import this module by its name from the root of the repository.
    monkeypatch.syspath_prepend(pytestconfig.rootpath)
    torch.multiprocessing.spawn(_process, args=(tmp_path,), nprocs=len(ROWS_OF_RANK))
    expected = reference(*rows())
    for rank in range(len(ROWS_OF_RANK)):
        spread, idle_rank = torch.load(tmp_path / f"{rank}.pt")
        same(spread, expected)
        same(idle_rank, expected)


def test_forward_returns_the_batch_and_keeps_the_whole():
    metric = GroupedMean(2)
    first = metric(torch.tensor([0, 1]), torch.tensor([1.0, 4.0]))
    second = metric(torch.tensor([0]), torch.tensor([5.0]))
    same(first, torch.tensor([1.0, 4.0], dtype=torch.float64))
    same(second, torch.tensor([5.0, torch.nan], dtype=torch.float64))
    same(metric.compute(), torch.tensor([3.0, 4.0], dtype=torch.float64))


def test_reset_forgets():
    metric = GroupedMean(2)
    metric.update(torch.tensor([0]), torch.tensor([1.0]))
    metric.reset()
    metric.update(torch.tensor([1]), torch.tensor([2.0]))
    same(metric.compute(), torch.tensor([torch.nan, 2.0], dtype=torch.float64))


def test_a_zero_denominator_is_nan_whatever_the_numerator():
    metric = GroupedMean(3)
    metric.update(torch.tensor([0, 1, 2]), torch.tensor([3.0, 0.0, 3.0]), torch.tensor([0, 0, 2]))
    same(metric.compute(), torch.tensor([torch.nan, torch.nan, 1.5], dtype=torch.float64))


def test_booleans_and_integers_are_counted():
    metric = GroupedMean(2)
    metric.update(torch.tensor([0, 0, 1, 0]), torch.tensor([True, False, True, True]))
    same(metric.compute(), torch.tensor([2 / 3, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("move", [nn.Module.half, lambda m: m.to(torch.bfloat16), nn.Module.float])
def test_states_stay_float64_in_a_half_precision_module(move):
    module = nn.ModuleDict({"metric": GroupedMean(1), "linear": nn.Linear(1, 1)})
    metric = module["metric"]
    metric.update(torch.zeros(100_001, dtype=torch.long), torch.ones(100_001, dtype=torch.bfloat16))
    move(module)
    assert metric.numerator.dtype == metric.denominator.dtype == torch.float64
    metric.update(torch.zeros(2, dtype=torch.long), torch.zeros(2))
    assert metric.denominator.item() == 100_003
    assert metric.compute().item() == 100_001 / 100_003
    metric.reset()
    assert metric.numerator.dtype == torch.float64


def test_works_in_inference_mode_and_without_a_gradient():
    metric = GroupedMean(1)
    with torch.inference_mode():
        metric.update(torch.tensor([0]), torch.tensor([1.0]))
    metric.update(torch.tensor([0]), torch.tensor([3.0], requires_grad=True))
    assert not metric.numerator.requires_grad
    assert metric.compute() == 2.0


def test_survives_pickling():
    metric = GroupedMean(2)
    metric.update(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    same(pickle.loads(pickle.dumps(metric)).compute(), metric.compute())


@pytest.mark.parametrize(
    ("groups", "numerator", "denominator", "message"),
    [
        ([0, 3], [1.0, 1.0], None, r"in 0\.\.2, got \[3\]"),
        ([0, -1, 7, 7], [1.0] * 4, None, r"in 0\.\.2, got \[-1, 7\]"),
        ([0, 1], [1.0], None, r"got \(2,\), \(1,\) and \(1,\)"),
        ([0, 1], [1.0, 1.0], [1.0], r"got \(2,\), \(2,\) and \(1,\)"),
        ([[0, 1]], [[1.0, 1.0]], None, r"got \(1, 2\), \(1, 2\) and \(1, 2\)"),
        ([0.0, 1.0], [1.0, 1.0], None, "int64 indexes, got torch.float32"),
    ],
)
def test_bad_rows_are_named_and_change_nothing(groups, numerator, denominator, message):
    metric = GroupedMean(3)
    denominator = None if denominator is None else torch.tensor(denominator)
    with pytest.raises(ValueError, match=message):
        metric.update(torch.tensor(groups), torch.tensor(numerator), denominator)
    assert metric.denominator.sum() == 0


def test_n_groups_is_checked():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GroupedMean(0)
