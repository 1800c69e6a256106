"""Rows from all ranks."""

from __future__ import annotations

import torch.distributed as dist


def gather_records(records: list[dict]) -> list[dict]:
    """The records of every rank, in rank order."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(records)
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, records)
    return [record for part in parts for record in part]
