"""What every model did with every example, as one torchmetric: the source of all rates and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Records(Metric):
    """Records of single answers, gathered over processes, each once.

    A record is a mapping that JSON can hold. Two with the same values of `key` are one: samplers that even
    out processes repeat rows.

    As input to `update`:
        records.

    As output of `compute`:
        a list of the records of all processes, sorted by `key`.

    The state `encoded` is the records' text, as bytes: what torchmetrics knows how to gather.

    Args:
        key: names of the values that tell records apart.

    >>> records = Records(key=("condition", "example"))
    >>> records.update([{"condition": 1, "example": 0}, {"condition": 0, "example": 7}])
    >>> records.update([{"condition": 1, "example": 0}])
    >>> records.compute()
    [{'condition': 0, 'example': 7}, {'condition': 1, 'example': 0}]
    """

    full_state_update = False
    encoded: list[Tensor]

    def __init__(self, key: Sequence[str]) -> None:
        super().__init__()
        self.key = tuple(key)
        self.add_state("encoded", default=[], dist_reduce_fx="cat")

    def update(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records."""
        lines = "".join(json.dumps(record) + "\n" for record in records)
        text = torch.frombuffer(bytearray(lines.encode()), dtype=torch.uint8)
        self.encoded.append(text.to(self.device))

    def compute(self) -> list[dict[str, Any]]:
        """All records, sorted by their key."""
        lines = dim_zero_cat(self.encoded).cpu().numpy().tobytes().decode().splitlines()
        by_key = {}
        for record in map(json.loads, lines):
            by_key[tuple(record[name] for name in self.key)] = record
        return [record for _, record in sorted(by_key.items())]
