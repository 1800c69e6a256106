"""The processes of a distributed run; alone, one of one."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: Any) -> list:
    """One picklable value of every process, in rank order; every process must call it."""
    _, world_size = rank_and_world_size()
    values = [value] * world_size
    if world_size > 1:
        dist.all_gather_object(values, value)
    return values
