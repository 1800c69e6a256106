"""Random states of several processes, through one checkpoint."""

import os
import random

import numpy as np
import pytest
import torch

from callbacks.rng_state import RngState


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def _process(rank: int, folder) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(10 + rank)
    saved = RngState().state_dict()
    expected = draws()
    if rank == 0:  # the checkpoint is the first process's
        torch.save(saved, folder / "state.ckpt")
    torch.distributed.barrier()
    resumed = RngState()
    resumed.load_state_dict(torch.load(folder / "state.ckpt", weights_only=True))
    resumed.on_train_start(None, None)
    assert draws() == expected
    everyone = [None, None]
    torch.distributed.all_gather_object(everyone, expected)
    assert everyone[0] != everyone[1]
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_each_process_goes_on_with_its_own_draws(tmp_path, monkeypatch, pytestconfig):
    # The new processes import this module by its name from the root of the repository.
    monkeypatch.syspath_prepend(pytestconfig.rootpath)
    torch.multiprocessing.spawn(_process, args=(tmp_path,), nprocs=2)


def test_another_number_of_processes_warns_and_draws_anew():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = RngState().state_dict()
        resumed = RngState()
        resumed.load_state_dict({"by_rank": state["by_rank"] * 2})
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        with pytest.warns(match="states of 2 processes, this run has 1"):
            resumed.on_train_start(None, None)
        assert torch.equal(torch.rand(3), expected)
