"""Capture and training of deltas by two real processes."""

import os
import subprocess
import sys

import pytest
import torch

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.dictionaries.delta import load_delta


@pytest.fixture(scope="module")
def two(dictionaries, arguments, delta_options, pytestconfig, tmp_path_factory):
    """A folder with `activations` and `delta` of the study, by two processes."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    folder = tmp_path_factory.mktemp("two")
    ddp = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    cache = ddp | {"trainer.callbacks.output": folder / "activations"}
    delta = delta_options | ddp | {"data.cache": folder / "activations", "data.batch_tokens": 64}
    delta |= {"model.output": folder / "delta", "trainer.default_root_dir": folder}
    delta |= {"trainer.logger": "false", "trainer.callbacks": "[]"}
    delta |= {"trainer.enable_checkpointing": "false"}
    stages = [
        ("evaluate", arguments("tiny/activations.yaml", dictionaries, cache)),
        ("train", arguments("tiny/delta.yaml", dictionaries, delta)),
    ]
    script = folder / "two_stages.py"  # Lightning starts it again for the second process
    script.write_text("".join(f"import {name}\n{name}.main({args})\n" for name, args in stages))
    subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return folder


def in_order(cache, split):
    """Rows of a split by example and position, and their columns of the index."""
    index = cache.index(split)
    key = index["example_ids"].long() * 10_000 + index["positions"]
    order = key.argsort()
    return order, {name: column[order] for name, column in index.items()}


@pytest.mark.slow
def test_two_processes_capture_what_one_does_each_token_once(two, dictionaries):
    ours, alone = (ActivationCache(f / "activations") for f in (two, dictionaries))
    assert ours.meta == alone.meta
    assert {span.shard.split("-")[0] for span in ours.shards("train")} == {"r0", "r1"}
    for split in ("train", "validation"):
        assert ours.n_tokens(split) == alone.n_tokens(split)
        (order, index), (order_alone, index_alone) = (in_order(c, split) for c in (ours, alone))
        for name, column in index.items():
            assert torch.equal(column, index_alone[name]), name
        for layer in (0, 1):
            pair, pair_alone = (c.load(split, layer) for c in (ours, alone))
            for name in "xy":
                # Other rows share a batch: matrix products round otherwise, in float16's last place.
                torch.testing.assert_close(
                    pair[name][order], pair_alone[name][order_alone], rtol=2e-3, atol=1e-4
                )


@pytest.mark.slow
def test_two_processes_train_deltas_as_good_as_one(two, dictionaries):
    for layer in (0, 1):
        ours, alone = (
            load_delta(f / "delta" / f"layer_{layer}")[1].measured for f in (two, dictionaries)
        )
        assert ours["fvu_base"] == pytest.approx(alone["fvu_base"], rel=1e-3)
        # Each process keeps the largest of its own half of the tokens.
        assert ours["fvu_full"] == pytest.approx(alone["fvu_full"], rel=0.05)
