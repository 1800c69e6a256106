"""How long do feature statistics of a wide delta take, and how much memory? On the CPU, with random weights.

    python benchmarks/wide_features.py [--tokens 1000000] [--layers 26] [--require-minutes 10 --require-gb 4]

Writes a cache of 1,000,000 tokens of d_model 2,304 in bfloat16, one layer's files (4.6 GB; outputs, which
are not read, have width 1), and hard-links them for all 26 layers, which would take 120 GB: each layer reads
all of its inputs from disk again, as the page cache is told to drop them after each. 128 random features a
layer, 7.5 of them active on a token. Then counts, and writes contexts, as the stage does: all but the model's
own passes on held-out prompts and its unembedding. Prints seconds of each part and the largest resident set;
pages of the files count too. Files go into a folder that is removed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

D_MODEL, N_FEATURES, ACTIVE = 2304, 128, 7.5
LENGTH = 32  # tokens of a text, beside BOS
VOCABULARY = 50_000
SHARD = 16_384
GB = 1e9


def make_cache(folder: Path, n_texts: int, n_layers: int) -> None:
    import torch

    from delta_transcoders.activations.layout import CacheMeta
    from delta_transcoders.activations.writing import CacheWriter, finish_cache
    from delta_transcoders.families.sites import GEMMA_SCOPE

    meta = CacheMeta(
        layers=(0,),
        d_in=D_MODEL,
        d_out=1,
        dtype="bfloat16",
        hook_site=GEMMA_SCOPE,
        text_policy="prompt_target_eos",
        model_fingerprint="0" * 64,
        model_dtype="bfloat16",
        tokenizer_fingerprint="0" * 64,
        subsets=("ask", "echo"),
        n_examples={"train": n_texts, "validation": 1},
        texts_sha256={"train": "", "validation": ""},
        token_policy="",
    )
    torch.manual_seed(0)
    writer = CacheWriter(folder, meta, shard_rows=SHARD)
    per_part = SHARD // LENGTH
    for split, n in (("train", n_texts), ("validation", 1)):
        for first in range(0, n, per_part):
            texts = torch.arange(first, min(first + per_part, n))
            rows = len(texts) * LENGTH
            x = torch.randn(rows, D_MODEL).bfloat16()
            writer.add(
                split,
                {0: (x, torch.zeros(rows, 1))},
                token_ids=torch.zeros(rows, dtype=torch.int64),
                positions=torch.arange(1, LENGTH + 1).repeat(len(texts)),
                example_ids=texts.repeat_interleave(LENGTH),
                subset_ids=texts.repeat_interleave(LENGTH) % 2,
            )
    writer.finish()
    finish_cache(folder, meta, command="")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["meta"]["layers"] = list(range(n_layers))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for split in ("train", "validation"):
        for layer in range(1, n_layers):
            (folder / split / f"layer_{layer}").mkdir()
            for path in (folder / split / "layer_0").iterdir():
                os.link(path, folder / split / f"layer_{layer}" / path.name)


def drop_pages(folder: Path) -> None:
    """Let the next layer read the same file from disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def random_delta(layer: int):
    import torch

    from delta_transcoders.dictionaries.transcoder import Transcoder

    generator = torch.Generator().manual_seed(layer)
    W_enc = torch.randn(D_MODEL, N_FEATURES, generator=generator)
    share = torch.tensor(1 - ACTIVE / N_FEATURES)
    threshold = torch.distributions.Normal(0, 1).icdf(share)  # of inputs that are normal too
    return Transcoder(
        W_enc=W_enc / W_enc.norm(dim=0),
        b_enc=torch.zeros(N_FEATURES),
        W_dec=torch.randn(N_FEATURES, D_MODEL, generator=generator),
        b_dec=torch.zeros(D_MODEL),
        threshold=threshold.expand(N_FEATURES).clone(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--require-minutes", type=float, default=float("inf"))
    parser.add_argument("--require-gb", type=float, default=float("inf"))
    args = parser.parse_args()
    n_texts = args.tokens // LENGTH
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache"
        cache.mkdir()
        # In a process of its own, whose memory does not count.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_cache, args=(cache, n_texts, args.layers)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit("the cache could not be made")
        seconds = count(cache, n_texts, args.layers, Path(temporary) / "features")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for part, took in seconds.items():
        print(f"{part}: {took:.0f} s")
    total = sum(seconds.values())
    print(f"in all {total / 60:.1f} minutes, largest resident set {peak / GB:.2f} GB")
    if total / 60 > args.require_minutes or peak / GB > args.require_gb:
        sys.exit(f"more than {args.require_minutes} minutes or {args.require_gb} GB")


def count(folder: Path, n_texts: int, n_layers: int, output: Path) -> dict[str, float]:
    """Seconds of each part."""
    import numpy as np
    import torch

    from delta_transcoders.activations.cache import ActivationCache
    from delta_transcoders.features.contexts import ContextChooser
    from delta_transcoders.features.files import write_features
    from delta_transcoders.features.firing import Firing, read_cache
    from delta_transcoders.features.statistics import Look, features_of
    from delta_transcoders.features.texts import Subset, TextRow, Texts

    cache, generator = ActivationCache(folder), np.random.default_rng(0)
    ids = generator.integers(1, VOCABULARY, (n_texts, LENGTH)).tolist()
    rows = [TextRow([0, *ids[i]], LENGTH // 2, i % 2, str(i)) for i in range(n_texts)]
    began = time.monotonic()
    texts = Texts(rows, [Subset("ask", False), Subset("echo", False)])
    index = {name: of.numpy() for name, of in cache.index("train").items()}
    places_N = texts.places(index["example_ids"], index["positions"])
    firings = {}
    with torch.inference_mode():
        for layer in range(n_layers):
            firing, delta = Firing(N_FEATURES), random_delta(layer)
            for row, a_NF in read_cache(cache, layer, delta):
                firing.add(places_N[row : row + len(a_NF)], a_NF)
            firing.finish()
            firings[layer] = firing
            drop_pages(folder / "train" / f"layer_{layer}")
    read = time.monotonic()
    chooser = ContextChooser(texts, [f" {i}w" for i in range(VOCABULARY)], {0})
    looks = {layer: [Look((), (), ())] * N_FEATURES for layer in firings}
    write_features(output, features_of(firings, looks, chooser), {"delta": ""})
    return {
        "one pass over the cache": read - began,
        "counts and contexts": time.monotonic() - read,
    }


if __name__ == "__main__":
    main()
