"""Export a study in every format, and write what our own code makes of the same activations.

    python -m interop.prepare STUDY OUT

OUT gets one folder per format and case, and `expected/{case}.safetensors`: x.L [N, d_model] on held-out
tokens, a.L [N, n_features] and y.L [N, d_model], from base and delta apart; tokens of which a feature is at
its threshold are left out. `expected/graph.safetensors` is one request in the finetuned model, as
`replacement.expected` says.
"""

import sys
from pathlib import Path

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.dictionaries.delta import load_base_of, load_deltas
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.export import export
from delta_transcoders.families.sites import GEMMA_SCOPE
from delta_transcoders.tasks.calculator.examples import read_jsonl
from delta_transcoders.tensor_files import save_tensors
from interop import prepare_published
from interop.replacement import activations, expected

FORMATS = ("gemma_scope", "saelens", "circuit_tracer")
EXPORTS = {"full": {}, "half": {"alpha": 0.5}, "delta": {"delta_only": True}}
N_TOKENS = 512

Dictionaries = dict[int, Transcoder]
"""By layer."""


def load_dictionaries(study: Path) -> tuple[Dictionaries, Dictionaries]:
    """Bases and deltas."""
    bases, deltas = {}, {}
    for layer, (path, delta, config) in load_deltas(study / "delta").items():
        bases[layer] = load_base_of(path, config, str(study / "base_transcoders"))[0]
        deltas[layer] = delta
    return bases, deltas


def case(
    cache: ActivationCache, bases: Dictionaries, deltas: Dictionaries, alpha=1.0, delta_only=False
):
    tensors = {}
    for layer, base in bases.items():
        delta = deltas[layer]
        used = (delta,) if delta_only else (base, delta)
        x = cache.load("validation", layer, ["x"])["x"][: 2 * N_TOKENS].float()
        a, tie = activations(x, *used)
        keep = (~tie.any(dim=1)).nonzero()[:N_TOKENS, 0]
        y = alpha * delta(x) if delta_only else base(x) + alpha * delta(x)
        tensors |= {f"x.{layer}": x[keep], f"a.{layer}": a[keep], f"y.{layer}": y[keep]}
    return tensors


def main(study: Path, out: Path) -> None:
    bases, deltas = load_dictionaries(study)
    cache = ActivationCache(study / "activations")
    for name, options in EXPORTS.items():
        for format in FORMATS:
            contexts = format == "circuit_tracer" and name == "full"
            export(study, format, out / format / name, with_contexts=contexts, **options)
        tensors = case(cache, bases, deltas, **options)
        save_tensors(out / "expected" / f"{name}.safetensors", tensors)
    merged = str(study / "finetune" / "merged")
    examples = read_jsonl(study / "finetune" / "data" / "evaluation.jsonl").values()
    prompt = next(example.prompt for example in examples if example.subset == "tool")
    tensors = expected(merged, prompt, GEMMA_SCOPE, bases, deltas)
    save_tensors(out / "expected" / "graph.safetensors", tensors)
    prepare_published.main(merged, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
