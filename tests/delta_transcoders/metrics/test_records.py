"""Records of single answers: gathered from all processes, each once, in order."""

import copy
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch

from delta_transcoders.metrics.records import Records

KEY = ("column", "example")


def record(column: int, example: int) -> dict:
    """With everything that JSON can hold, and nan."""
    return {
        "column": column,
        "example": example,
        "subset": "café \u2028 \x85 🙂",
        "nll": 0.1 + example / 3,
        "kl": math.nan if example == 2 else -math.inf,
        "text": f"{example}\n\r\t\x1c",
        "measures": {"right": None, "called": example % 2 == 0},
        "active": {"delta": [0.5, 3]},
    }


WHOLE = [record(column, example) for column in (0, 1) for example in range(5)]
# Five and eight of the ten: samplers that even out processes repeat rows.
ROWS_OF_RANK = ([9, 0, 4, 6, 2], [1, 3, 5, 7, 8, 0, 9, 9])


def same(ours: list[dict], theirs: list[dict]) -> bool:
    """Equal to the bit: nan is not equal to itself."""
    return repr(ours) == repr(theirs)


def test_records_come_back_as_they_were_each_once_and_sorted():
    records = Records(KEY)
    for part in ([9, 4, 0], [3, 4, 1], [2, 5, 6, 7, 8]):
        records.update([WHOLE[i] for i in part])
    assert same(records.compute(), WHOLE)
    assert same(records.compute(), WHOLE)


def test_keys_are_compared_as_values_and_not_as_texts():
    records = Records(("n",))
    records.update([{"n": 10}, {"n": 9}])
    assert records.compute() == [{"n": 9}, {"n": 10}]


def test_reset_forgets():
    records = Records(KEY)
    records.update(WHOLE)
    records.reset()
    records.update(WHOLE[:1])
    assert same(records.compute(), WHOLE[:1])


def test_half_precision_modules_and_copies_keep_every_character():
    module = torch.nn.ModuleDict({"records": Records(KEY), "linear": torch.nn.Linear(1, 1)})
    module["records"].update(WHOLE)
    module.half()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same(other["records"].compute(), WHOLE)


def _process(rank: int, folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(ROWS_OF_RANK)
    )
    records = Records(KEY)
    for i in ROWS_OF_RANK[rank]:
        records.update([WHOLE[i]])
    torch.save(records.compute(), folder / f"{rank}.pt")
    # Afterwards the state is this process's part again.
    own = sorted({(WHOLE[i]["column"], WHOLE[i]["example"]) for i in ROWS_OF_RANK[rank]})
    held = b"".join(part.numpy().tobytes() for part in records.encoded).decode().splitlines()
    assert sorted({tuple(json.loads(line)[name] for name in KEY) for line in held}) == own
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_equal_one(tmp_path, monkeypatch, pytestconfig):
    # The new processes import this module by its name from the root of the repository.
    monkeypatch.syspath_prepend(pytestconfig.rootpath)
    torch.multiprocessing.spawn(_process, args=(tmp_path,), nprocs=len(ROWS_OF_RANK))
    for rank in range(len(ROWS_OF_RANK)):
        assert same(torch.load(tmp_path / f"{rank}.pt"), WHOLE)
