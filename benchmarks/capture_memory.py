"""Does the memory that a capture takes grow with the number of texts?

    OMP_NUM_THREADS=1 python benchmarks/capture_memory.py [--require 1.1]

Captures the tiny study's kind of text with a random Gemma 2 as wide as Gemma 2 2B (two layers, small MLPs):
as many texts as make a cache of 1 GB, and four times as many, in one process and in two (DDP). Prints the
largest resident set of all processes of each capture together; `--require` is about the ratio of the two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

from peak_memory import measured

WIDTH, N_LAYERS, N_TEXTS, TIMES = 2304, 2, 1300, 4
GB = 1e9


def save_model(folder: str) -> None:
    import torch

    from delta_transcoders.tasks.calculator.base_text import base_documents
    from delta_transcoders.tiny_gemma import build_tiny_gemma, train_tokenizer

    texts = [f"{line}\n{rest}" for line, rest in itertools.islice(base_documents(0), 500)]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    torch.manual_seed(0)
    build_tiny_gemma(tokenizer, WIDTH, N_LAYERS, n_heads=36, d_mlp=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def capture(folder: Path, n_texts: int, processes: int) -> tuple[float, float, float]:
    """GB of the cache, GB at the peak, minutes; the cache is removed."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        taken = measured(
            "evaluate.py",
            *("--config", "configs/tiny/base_activations.yaml"),
            *("--model.model", str(folder), "--data.model", str(folder)),
            *("--data.n_train", str(n_texts), "--data.n_validation", "64"),
            *("--trainer.default_root_dir", f"{cache}/logs"),
            *("--trainer.callbacks.output", f"{cache}/cache"),
            *("--trainer.callbacks.dtype", "bfloat16", "--trainer.enable_progress_bar", "false"),
            *("--trainer.devices", str(processes)),
            *(("--trainer.strategy", "ddp") if processes > 1 else ()),
        )
        splits = json.loads(Path(cache, "cache", "manifest.json").read_text())["splits"].values()
        sizes = [size for s in splits for shard in s["shards"] for size in shard["bytes"].values()]
    return sum(sizes) / GB, taken.peak / GB, taken.seconds / 60


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--require", type=float, help="exit with an error above this ratio")
    arguments = parser.parse_args()
    print("5 to 10 minutes, and 5 GB of disk in the system's folder for temporary files")
    print(f"{'processes':>9} {'texts':>6} {'cache GB':>8} {'peak GB':>8} {'minutes':>7}")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        for processes in (1, 2):
            peaks = []
            for n_texts in (N_TEXTS, TIMES * N_TEXTS):
                size, peak, minutes = capture(Path(folder), n_texts, processes)
                print(f"{processes:9} {n_texts:6} {size:8.2f} {peak:8.2f} {minutes:7.1f}")
                peaks.append(peak)
            ratios.append(peaks[1] / peaks[0])
            print(f"{processes:9} ratio of the peaks {ratios[-1]:.3f}")
    return 1 if arguments.require and max(ratios) > arguments.require else 0


if __name__ == "__main__":
    sys.exit(main())
