"""How much memory does training from a cache take, and does it grow with the cache?

    OMP_NUM_THREADS=1 python benchmarks/cache_memory.py [--most 1.2]

Trains deltas on random caches of one and of four times the loader's buffer, each in a process of its own,
and prints the peak of the process's anonymous memory above what it was before (Linux: RssAnon of
/proc/self/status, read at every batch). Pages of the files that are read do not count: the system takes
them back when it needs them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH, BUFFER_TOKENS, BATCH_TOKENS, D_NEW = 512, 16384, 2048, 64
MIB = 2**20


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (found,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(found.split()[1]) * 1024


def write_cache(folder: str, tokens: int) -> None:
    import torch

    from delta_transcoders.activations.layout import CacheMeta
    from delta_transcoders.activations.writing import CacheWriter, finish_cache
    from delta_transcoders.families.sites import GEMMA_SCOPE

    examples = tokens // BATCH_TOKENS
    meta = CacheMeta(
        layers=(0, 1),
        d_in=WIDTH,
        d_out=WIDTH,
        dtype="float32",
        hook_site=GEMMA_SCOPE,
        text_policy="prompt_target_eos",
        model_fingerprint="random",
        model_dtype="float32",
        tokenizer_fingerprint="random",
        subsets=("tool",),
        n_examples={"train": examples, "validation": 0},
        texts_sha256={"train": "random", "validation": "none"},
        token_policy="all",
    )
    shutil.rmtree(folder, ignore_errors=True)
    writer = CacheWriter(folder, meta)
    for example in range(examples):
        drawn = {
            layer: (torch.randn(BATCH_TOKENS, WIDTH), torch.randn(BATCH_TOKENS, WIDTH))
            for layer in meta.layers
        }
        columns = {name: torch.zeros(BATCH_TOKENS) for name in ("token_ids", "subset_ids")}
        columns["positions"] = torch.arange(BATCH_TOKENS)
        columns["example_ids"] = torch.full((BATCH_TOKENS,), example)
        writer.add("train", drawn, **columns)
    writer.finish()
    finish_cache(folder, meta, command="python benchmarks/cache_memory.py")


def train(folder: str) -> None:
    """Print the bytes that a pass of training has added at its peak."""
    import torch

    from delta_transcoders.activations.cache import ActivationCache
    from delta_transcoders.dictionaries.sparsity import SparsityConfig
    from delta_transcoders.dictionaries.stack import DictionaryStack, Variant

    stack = DictionaryStack(
        [Variant(key=f"layer_{layer}", layer=layer, target=layer, l0=8) for layer in (0, 1)],
        d_in=WIDTH,
        d_out=WIDTH,
        n_features=D_NEW,
        sparsity=SparsityConfig(mode="batch_topk"),
        seed=0,
    )
    adam = torch.optim.Adam(stack.parameters(), fused=True)
    before = peak = anonymous_bytes()
    batches = ActivationCache(folder).stream(
        "train",
        [0, 1],
        ["y"],
        batch_tokens=BATCH_TOKENS,
        buffer_tokens=BUFFER_TOKENS,
        seed=0,
        epoch=0,
    )
    for step, batch in enumerate(batches):
        if not step:
            stack.calibrate(batch.x_LBI, batch.targets_TBD)
        loss = stack.training_loss(batch.x_LBI, batch.targets_TBD)
        adam.zero_grad()
        loss.total.backward()
        stack.prepare_gradients(max_norm=1.0)
        adam.step()
        stack.finish_step()
        peak = max(peak, anonymous_bytes())
    print(peak - before)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=float, default=1.2, help="fail above this ratio (1.2)")
    parser.add_argument("--train", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train)
        return 0
    token_bytes = 2 * 2 * WIDTH * 4  # x and y of two layers
    print(f"buffer: {BUFFER_TOKENS} tokens, {BUFFER_TOKENS * token_bytes / MIB:.0f} MiB")
    peaks = []
    for times in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            write_cache(folder, times * BUFFER_TOKENS)
            command = [sys.executable, __file__, "--train", folder]
            shown = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(shown.stdout))
        size = times * BUFFER_TOKENS * token_bytes / MIB
        print(f"cache {size:4.0f} MiB: peak {peaks[-1] / MIB:.0f} MiB")
    ratio = peaks[1] / peaks[0]
    print(f"ratio of the peaks {ratio:.2f}")
    return 1 if ratio > arguments.most else 0


if __name__ == "__main__":
    sys.exit(main())
