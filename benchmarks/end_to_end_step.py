"""What does a step of an end-to-end delta cost beside a plain LoRA step of the same model?

    OMP_NUM_THREADS=1 python benchmarks/end_to_end_step.py [--shapes tiny layers vocabulary features]

Three kinds of step, each in a process of its own, forward, backward and Adam included, on one random batch of
64 rows of 40 tokens, 15 of them targets, with a random Gemma 2 of the tiny study's shape in float32:
  lora:  cross-entropy, rank 16 on all linear layers;
  kl:    a transplant, KL to the finetuned model online;
  nmse:  the same with the residual stream's error, which takes a pass of the base model more.
The other shapes have more layers, a larger vocabulary, or more features. Times are those that the main thread
computes (with one thread: the wall time of an idle machine), medians of several steps; memory is the largest
resident set above that of the imports, models included (the two of a transplant, the one of LoRA).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

TINY = {"layers": 4, "vocabulary": 1024, "d_new": 32}
SHAPES = {
    "tiny": [{}],
    "layers": [{"layers": 8}, {"layers": 16}],
    "vocabulary": [{"vocabulary": 16_384}, {"vocabulary": 131_072}],
    "features": [{"d_new": 128}, {"d_new": 512}],
}
KINDS = ("lora", "kl", "nmse")
ROWS, PROMPT, TARGET = 64, 25, 15
STEPS, WARMUP = 5, 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a kind and a shape, as JSON
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return 0
    head = ("layers", "vocabulary", "features", "step", "tokens/s", "× LoRA", "MB", "× LoRA")
    print("".join(f"{name:>12}" for name in head))
    for shape in itertools.chain.from_iterable(SHAPES[name] for name in arguments.shapes):
        shape = TINY | shape
        found = {kind: in_a_process(kind, shape) for kind in KINDS}
        lora = found["lora"]
        for kind, (seconds, megabytes) in found.items():
            cells = [shape["layers"], shape["vocabulary"], shape["layers"] * shape["d_new"], kind]
            cells += [f"{ROWS * (PROMPT + TARGET) / seconds:,.0f}", f"{seconds / lora[0]:.2f}"]
            cells += [f"{megabytes:,.0f}", f"{megabytes / lora[1]:.2f}"]
            print("".join(f"{cell!s:>12}" for cell in cells), flush=True)
    return 0


def in_a_process(kind: str, shape: dict[str, int]) -> tuple[float, float]:
    """Seconds of a step, and megabytes."""
    one = json.dumps({"kind": kind, **shape})
    command = [sys.executable, __file__, "--one", one]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def measure(kind: str, layers: int, vocabulary: int, d_new: int) -> tuple[float, float]:
    """As `in_a_process`, in this one."""
    import torch

    from delta_transcoders.language_models import TokenizedExample, scored_batch
    from delta_transcoders.tasks.calculator.base_text import base_documents
    from delta_transcoders.tiny_gemma import build_tiny_gemma, train_tokenizer

    texts = [f"{line}\n{rest}" for line, rest in itertools.islice(base_documents(0), 500)]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    with tempfile.TemporaryDirectory() as folder:  # TransformerLens wants one that was loaded
        tokenizer.save_pretrained(folder)
        tokenizer = type(tokenizer).from_pretrained(folder)
    step_of = {"lora": lora_step, "kl": delta_step, "nmse": delta_step}[kind]

    def build() -> Any:
        model = build_tiny_gemma(tokenizer, n_layers=layers)
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        return model.eval()

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 400, (ROWS, PROMPT + TARGET), generator=generator).tolist()
    rows = [
        TokenizedExample((tokenizer.bos_token_id, *r[1:PROMPT]), tuple(r[PROMPT:]), None)
        for r in ids
    ]
    batch = scored_batch(rows, tokenizer.pad_token_id)
    before = peak_megabytes()
    step = step_of(build, tokenizer, batch, d_new=d_new, with_streams=kind == "nmse")
    times = []
    for _ in range(WARMUP + STEPS):
        start = time.thread_time()
        step()
        times.append(time.thread_time() - start)
    return statistics.median(times[WARMUP:]), peak_megabytes() - before


def peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def lora_step(build: Callable, tokenizer: Any, batch: dict, **_: Any) -> Callable[[], None]:
    import torch
    from peft import LoraConfig, get_peft_model

    from delta_transcoders.families import family_of
    from delta_transcoders.language_models import token_nll

    model = build()
    targets = list(family_of(model.config).lora_targets)
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, fused=True)

    def step() -> None:
        adam.zero_grad()
        token_nll(adapted.get_base_model(), *batch.values()).mean().backward()
        adam.step()

    return step


def delta_step(
    build: Callable, tokenizer: Any, batch: dict, d_new: int, with_streams: bool
) -> Callable[[], None]:
    import torch

    from delta_transcoders.end_to_end.losses import nmse
    from delta_transcoders.end_to_end.student import Student
    from delta_transcoders.end_to_end.trained import TrainedTranscoder, from_scratch
    from delta_transcoders.families.sites import GEMMA_SCOPE
    from delta_transcoders.interventions.sources import DictionarySource

    finetuned, base = build(), build()
    deltas = {
        layer: DictionarySource(TrainedTranscoder(from_scratch(96, d_new, layer, seed=0)))
        for layer in range(base.config.num_hidden_layers)
    }
    student = Student("transplant", finetuned, base, tokenizer, deltas, {}, GEMMA_SCOPE)
    trained = [p for source in deltas.values() for p in source.parameters()]
    adam = torch.optim.Adam(trained, betas=(0.9, 0.99), fused=True)

    def step() -> None:
        reference = student.reference(batch, with_streams)
        with student.applied(ROWS):
            losses = student.losses(batch, reference)
            loss = losses.kl_N.mean()
            if with_streams:
                loss = loss + nmse(losses.error_L, reference.change_L).mean()
            adam.zero_grad()
            loss.backward()
        adam.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
