"""Do the widest public dictionaries fit into memory? On the CPU, with random weights.

    python benchmarks/wide_bases.py [--require-gb 6]

Writes a Qwen 3 of 28 layers and d_model 1,024 in bfloat16 and, as circuit-tracer's sets are published, ReLU
transcoders of 163,840 features for every layer: one layer's bfloat16 file of 672 MB, hard-linked. Then runs
stages of configs/tiny on three of its layers, each in a process of its own, on few and short texts: capture,
deltas, Experiment 2A. Prints the largest resident set of each; pages of the files that a process reads count
too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from peak_memory import measured

N_LAYERS, D_MODEL, N_FEATURES, LAYERS = 28, 1024, 163_840, (0, 13, 27)
ACTIVE = 50  # features per token, about
N_EXAMPLES = 60
GB = 1e9


def make_model(folder: Path) -> None:
    """A base model, and a "finetuned" one with other weights in its MLPs; examples and a tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from delta_transcoders.tasks.calculator.examples import make_example, write_jsonl
    from delta_transcoders.tasks.calculator.grammar import format_tool_call
    from delta_transcoders.tiny_gemma import train_tokenizer

    examples = []
    for i in range(N_EXAMPLES // 2):
        sum_, line = f"{i} + {7 * i}", f"{i} lamps"
        examples.append(make_example(sum_, format_tool_call(sum_.replace(" ", "")), "positive"))
        examples.append(make_example(line, line, "negative"))
    data = folder / "study/finetune/data"
    data.mkdir(parents=True)
    parts = {"train": examples[:40], "validation": examples[40:50], "evaluation": examples[50:]}
    for split, part in parts.items():
        write_jsonl(data / f"{split}.jsonl", part)
    tokenizer = train_tokenizer((e.prompt + e.target for e in examples), vocab_size=1000)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=3072,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).bfloat16()
    for name in ("study/base_model", "study/finetune/merged"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        for layer in LAYERS:
            model.model.layers[layer].mlp.down_proj.weight.data *= 1.5


def make_bases(folder: Path) -> None:
    """Random features of which some fire, and a decoder that writes little."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    W_enc = torch.randn(N_FEATURES, D_MODEL, dtype=torch.bfloat16) / D_MODEL**0.5
    share = torch.tensor(1 - ACTIVE / N_FEATURES)
    # Inputs after the gain have norm √d_model, so pre-activations are drawn from a standard normal.
    below = torch.distributions.Normal(0, 1).icdf(share)
    tensors = {
        "W_enc": W_enc,
        "b_enc": -below * torch.ones(N_FEATURES, dtype=torch.bfloat16),
        "W_dec": 1e-3 * torch.randn(N_FEATURES, D_MODEL, dtype=torch.bfloat16),
        "b_dec": torch.zeros(D_MODEL, dtype=torch.bfloat16),
    }
    bases = folder / "bases"
    bases.mkdir()
    save_file({n: t.bfloat16() for n, t in tensors.items()}, bases / "layer_0.safetensors")
    for layer in range(1, N_LAYERS):
        os.link(bases / "layer_0.safetensors", bases / f"layer_{layer}.safetensors")
    (bases / "config.yaml").write_text(
        "model_name: random\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
        "feature_output_hook: mlp.hook_out\n",
        encoding="utf-8",
    )


def stages(folder: Path) -> list[tuple[str, list[str]]]:
    """Name and command line of each, in order."""
    study, layers = folder / "study", str(list(LAYERS)).replace(" ", "")

    def stage(script: str, config: str, options: str) -> list[str]:
        quiet = f"--study {study} --trainer.enable_progress_bar false"
        return f"{script}.py --config configs/tiny/{config}.yaml {quiet} {options}".split()

    make = ["benchmarks/wide_bases.py", "--folder", str(folder), "--make"]
    bases = f"{folder}/bases"
    return [
        ("make the model", [*make, "model"]),
        ("make the bases", [*make, "bases"]),
        (
            "capture",
            stage("evaluate", "activations", f"--model.layers {layers} --model.dtype bfloat16"),
        ),
        (
            "delta",
            stage(
                "train",
                "delta",
                f"--data.base_transcoders {bases} --data.model_dtype bfloat16 --data.n_check_examples 8",
            ),
        ),
        (
            "exp2a",
            stage(
                "evaluate",
                "exp2a",
                f"--model.base_transcoders {bases} --model.dtype bfloat16 "
                f"--model.layers [{'+'.join(map(str, LAYERS))}] --model.conditions [no_delta,full] "
                "--data.subsets [tool,copy] --model.max_new_tokens 8",
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
    print(f"{'stage':20} {'peak GB':>8} {'minutes':>8}")
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in stages(Path(folder)):
            taken = measured(*command)
            print(f"{name:20} {taken.peak / GB:8.1f} {taken.seconds / 60:8.1f}", flush=True)
            peaks[name] = taken.peak / GB
    highest = max(peaks[name] for name in ("delta", "exp2a"))
    return 1 if arguments.require_gb and highest > arguments.require_gb else 0


if __name__ == "__main__":
    sys.exit(main())
