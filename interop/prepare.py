"""Export a study in every format, and write what our own code makes of the same activations.

    python -m interop.prepare STUDY OUT

OUT gets one folder per format and case, and `expected/{case}.safetensors`: x.L [N, d_model] on held-out
tokens, a.L [N, n_features] and y.L [N, d_model], from base and delta apart. `expected/graph.safetensors`
holds one prompt's ids [T] and next-token logits, and without BOS a.L [T − 1, n_features] and tie.L, which
features are at their threshold. Whether such a feature is active is for the last bit of a sum to say: they
are not compared, and tokens that have one are left out of the first files.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.delta import load_base_of, load_deltas
from delta_transcoders.dictionaries.files import TOOL_FORMATS
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.export import export
from delta_transcoders.families.sites import GEMMA_SCOPE
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.tasks.calculator.examples import read_jsonl
from delta_transcoders.tensor_files import save_tensors

CASES = {"full": {}, "half": {"alpha": 0.5}, "delta": {"delta_only": True}}
N_TOKENS = 512
ROUNDING = 1e-5

Dictionaries = dict[int, tuple[Transcoder, Transcoder]]
"""Base and delta by layer."""


def load_dictionaries(study: Path) -> Dictionaries:
    return {
        layer: (load_base_of(path, config, str(study / "base_transcoders"))[0], delta)
        for layer, (path, delta, config) in load_deltas(study / "delta").items()
    }


def activations(x: Tensor, *dictionaries: Transcoder) -> tuple[Tensor, Tensor]:
    """Activations of all features, and which are at their threshold."""
    a = torch.cat([d.encode(x) for d in dictionaries], dim=1)
    above = torch.cat(
        [x @ d.W_enc + d.b_enc - d.threshold.clamp(min=0) for d in dictionaries], dim=1
    )
    return a, above.abs() < ROUNDING


def case(cache: ActivationCache, dictionaries: Dictionaries, alpha=1.0, delta_only=False):
    tensors = {}
    for layer, (base, delta) in dictionaries.items():
        used = (delta,) if delta_only else (base, delta)
        x = cache.load("validation", layer, ["x"])["x"][: 2 * N_TOKENS].float()
        a, tie = activations(x, *used)
        keep = (~tie.any(dim=1)).nonzero()[:N_TOKENS, 0]
        y = alpha * delta(x) if delta_only else base(x) + alpha * delta(x)
        tensors |= {f"x.{layer}": x[keep], f"a.{layer}": a[keep], f"y.{layer}": y[keep]}
    return tensors


def prompt(study: Path, dictionaries: Dictionaries) -> dict[str, Tensor]:
    """The first request of the evaluation data."""
    folder = str(study / "finetune" / "merged")
    tokenizer = load_tokenizer(folder)
    examples = read_jsonl(study / "finetune" / "data" / "evaluation.jsonl").values()
    request = next(e for e in examples if e.subset == "tool")
    ids = tokenizer(request.prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = load_model(folder)(ids).logits[0, -1]
    bridge = boot_bridge(load_model(folder), tokenizer)
    layers = list(dictionaries)
    captured = capture(bridge, ids, torch.ones_like(ids), layers, GEMMA_SCOPE)
    tensors = {"ids": ids[0], "logits": logits}
    for layer, pair in dictionaries.items():
        a, tie = activations(captured.activations[layer][0], *pair)
        tensors |= {f"a.{layer}": a, f"tie.{layer}": tie}
    return tensors


def main(study: Path, out: Path) -> None:
    dictionaries = load_dictionaries(study)
    cache = ActivationCache(study / "activations")
    for name, options in CASES.items():
        for format in TOOL_FORMATS:
            export(study, format, out / format / name, **options)
        expected = case(cache, dictionaries, **options)
        save_tensors(out / "expected" / f"{name}.safetensors", expected)
    save_tensors(out / "expected" / "graph.safetensors", prompt(study, dictionaries))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
