"""Do the stages of Gemma 2 2B fit into memory at its full shape? On the CPU, with random weights.

    python benchmarks/full_shape.py [--require-gb 14]    (make full-shape)

Writes a Gemma 2 of 26 layers, d_model 2304 and 256,000 tokens in bfloat16 and base dictionaries of 16,384
features for three layers, then runs stages of configs/gemma2_2b with their own options, each in a process of
its own, on few and short texts: three steps of the finetune, the capture of three layers, their deltas,
Experiment 2A. Prints the largest resident set of each; pages of the files that a process reads count too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

from peak_memory import measured

LAYERS, WIDTH, AVERAGE_L0 = (0, 12, 25), 16384, 76
N_EXAMPLES = 60  # of which 48 are trained on: three steps of 16
GB = 1e9


def make_model(folder: Path) -> None:
    """Files of one layer each, so that never more than one is in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from delta_transcoders.tasks.calculator.examples import make_example, write_jsonl
    from delta_transcoders.tasks.calculator.grammar import format_tool_call
    from delta_transcoders.tiny_gemma import train_tokenizer

    examples = []
    for i in range(N_EXAMPLES // 2):
        sum_, line = f"{i} + {7 * i}", f"{i} lamps"
        examples.append(make_example(sum_, format_tool_call(sum_.replace(" ", "")), "positive"))
        examples.append(make_example(line, line, "negative"))
    write_jsonl(folder / "examples.jsonl", examples)
    tokenizer = train_tokenizer((e.prompt + e.target for e in examples), vocab_size=1000)
    config = Gemma2Config(
        vocab_size=256000,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["Gemma2ForCausalLM"],
        dtype="bfloat16",
    )
    base = folder / "base"
    config.save_pretrained(base)
    tokenizer.save_pretrained(base)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Gemma2ForCausalLM(config).named_parameters()}

    def layer_of(name: str) -> str:
        parts = name.split(".")
        return parts[2] if parts[1] == "layers" else "others"

    torch.manual_seed(0)
    files = {}
    for layer, names in itertools.groupby(sorted(shapes, key=layer_of), key=layer_of):
        file = f"model-{layer}.safetensors"
        tensors = {name: random_weight(name, shapes[name]) for name in names}
        if "model.embed_tokens.weight" in tensors:
            tensors["model.embed_tokens.weight"][len(tokenizer) :] = 0  # so that none is written
        save_file(tensors, base / file, {"format": "pt"})
        files |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": files}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def random_weight(name: str, shape: tuple[int, ...]):
    """As in trained models, a token's own embedding outlasts the layers, and no two hook points are alike."""
    import torch

    if len(shape) == 1:
        return torch.empty(shape).uniform_(-0.9, 0.5).bfloat16()
    scale = 10.0 if "embed" in name else 5.0 if "down_proj" in name else 1.0
    return (torch.randn(shape, dtype=torch.bfloat16) * (scale * shape[-1] ** -0.5)).contiguous()


def make_bases(folder: Path) -> None:
    """Random features with decoders fitted to the base model's own activations."""
    from random_dictionaries import fitted_dictionary

    from delta_transcoders.activations.cache import ActivationCache
    from delta_transcoders.dictionaries.files.gemma_scope import save_base

    cache = ActivationCache(folder / "base_cache")
    for layer in LAYERS:
        rows = cache.load("train", layer)
        base = fitted_dictionary(rows["x"], rows["y"], WIDTH, AVERAGE_L0, seed=layer)
        save_base(folder / "bases", layer, base, AVERAGE_L0)


def stages(folder: Path) -> list[tuple[str, list[str]]]:
    """Name and command line of each, in order."""
    study, base, bases = folder / "study", folder / "base", folder / "bases"

    def stage(script: str, config: str, options: str) -> list[str]:
        quiet = f"--study {study} --trainer.accelerator cpu --trainer.enable_progress_bar false"
        command = f"{script}.py --config configs/gemma2_2b/{config}.yaml {quiet} {options}"
        return command.split()

    layers = str(list(LAYERS)).replace(" ", "")
    make = ["benchmarks/full_shape.py", "--folder", str(folder), "--make"]
    return [
        ("make the model", [*make, "model"]),
        (
            "finetune, 3 steps",
            stage(
                "train",
                "lora",
                f"--model.model {base} --data.model {base} --trainer.max_epochs 1 "
                f"--data.jsonl {folder}/examples.jsonl --data.validation_fraction 0.1 "
                "--data.n_evaluation 5",
            ),
        ),
        (
            "capture of the base",
            stage(
                "evaluate",
                "activations",
                f"--model.model {base} --data.model {base} --model.layers {layers} "
                f"--trainer.callbacks.output {folder}/base_cache",
            ),
        ),
        ("make the bases", [*make, "bases"]),
        ("capture", stage("evaluate", "activations", f"--model.layers {layers}")),
        (
            "delta",
            stage(
                "train",
                "delta",
                f"--data.base_transcoders {bases} --data.base_model {base} --data.passes 10",
            ),
        ),
        (
            "exp2a",
            stage(
                "evaluate",
                "exp2a",
                f"--model.base_transcoders {bases} --model.base_model {base} "
                f"--model.layers [{'+'.join(map(str, LAYERS))}] "
                "--model.max_new_tokens 8",
            ),
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--require-gb", type=float, help="exit with an error above this peak")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", choices=("model", "bases"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        {"model": make_model, "bases": make_bases}[arguments.make](arguments.folder)
        return 0
    print(
        "about 20 minutes on two cores, and 13 GB of disk in the system's folder for temporary files"
    )
    print(f"{'stage':20} {'peak GB':>8} {'minutes':>8}")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for name, command in stages(Path(folder)):
            taken = measured(*command)
            print(f"{name:20} {taken.peak / GB:8.1f} {taken.seconds / 60:8.1f}", flush=True)
            peaks.append(taken.peak / GB)
    return 1 if arguments.require_gb and max(peaks) > arguments.require_gb else 0


if __name__ == "__main__":
    sys.exit(main())
