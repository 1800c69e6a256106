"""Export a study in every format, and write what our own code makes of the same activations.

    python -m interop.prepare STUDY OUT

OUT gets one folder per format and case, and `expected/{case}.safetensors`: x.L [N, d_model] on held-out
tokens, a.L [N, n_features] and y.L [N, d_model], from base and delta apart. `expected/graph.safetensors`
holds one prompt's ids [T], its next-token logits and a.L [T − 1, n_features], without BOS.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.activations.hook_sites import HOOK_SITES
from delta_transcoders.activations.layout import save_tensors
from delta_transcoders.export import export
from delta_transcoders.formats import FORMATS
from delta_transcoders.interventions.loading import load_base_of, load_deltas
from delta_transcoders.language_models import encode, load_model, load_tokenizer
from delta_transcoders.toolcalls.examples import read_jsonl
from delta_transcoders.transcoders.jumprelu import JumpReLUTranscoder

CASES = {"full": {}, "half": {"alpha": 0.5}, "delta": {"delta_only": True}}
N_TOKENS = 512

Pair = tuple[JumpReLUTranscoder, JumpReLUTranscoder]


def pairs(study: Path) -> dict[int, Pair]:
    """Base and delta by layer."""
    return {
        layer: (load_base_of(path, config, str(study / "base_transcoders"))[0], delta)
        for layer, (path, delta, config) in load_deltas(study / "delta", None).items()
    }


def expected(
    x: Tensor, pair: Pair, alpha: float = 1.0, delta_only: bool = False
) -> dict[str, Tensor]:
    base, delta = pair
    if delta_only:
        return {"x": x, "a": delta.encode(x), "y": alpha * delta(x)}
    a = torch.cat([base.encode(x), delta.encode(x)], dim=1)
    return {"x": x, "a": a, "y": base(x) + alpha * delta(x)}


def prompt(study: Path, dictionaries: dict[int, Pair]) -> dict[str, Tensor]:
    """The first request of the evaluation data."""
    folder = str(study / "finetune" / "merged")
    tokenizer = load_tokenizer(folder)
    examples = read_jsonl(study / "finetune" / "data" / "evaluation.jsonl")
    ids = torch.tensor([encode(tokenizer, next(e for e in examples if e.label == "positive"))[0]])
    with torch.inference_mode():
        logits = load_model(folder)(ids).logits[0, -1]
    bridge = boot_bridge(load_model(folder), tokenizer)
    captured = capture(
        bridge, ids, torch.ones_like(ids), list(dictionaries), HOOK_SITES["gemma_scope"]
    )
    active = {
        f"a.{layer}": expected(captured.activations[layer][0], pair)["a"]
        for layer, pair in dictionaries.items()
    }
    return {"ids": ids[0], "logits": logits} | active


def main(study: Path, out: Path) -> None:
    dictionaries = pairs(study)
    cache = ActivationCache(study / "activations")
    for case, options in CASES.items():
        for format in FORMATS:
            export(study, format, out / format / case, **options)
        tensors = {}
        for layer, pair in dictionaries.items():
            x = cache.load("validation", layer, ["x"])["x"][:N_TOKENS].float()
            of_layer = expected(x, pair, **options)
            tensors |= {f"{name}.{layer}": tensor for name, tensor in of_layer.items()}
        save_tensors(out / "expected" / f"{case}.safetensors", tensors)
    save_tensors(out / "expected" / "graph.safetensors", prompt(study, dictionaries))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
