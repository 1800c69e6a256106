"""Rows from all ranks."""

from __future__ import annotations

from delta_transcoders.processes import gather


def gather_records(records: list[dict]) -> list[dict]:
    """The records of every rank, in rank order."""
    return [record for part in gather(records) for record in part]
