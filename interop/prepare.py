"""Export a study in every format, and write what our own code makes of the same activations.

    python -m interop.prepare STUDY OUT [--dtype bfloat16]

OUT gets one folder per format and case, and `expected/{case}.safetensors`: x.L [N, d_model] on held-out
tokens, a.L [N, n_features] and y.L [N, d_model], from base and delta apart; tokens of which a feature is at
its threshold are left out. `expected/{case}, one request.safetensors` is the task's example in the finetuned
model, as `replacement.expected` says. Where the study's feature statistics are of another delta than
`STUDY/delta`, that is exported alone too, as the case `features`.
"""

import argparse
from pathlib import Path
from typing import get_args

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.dictionaries.delta import ON_DICTIONARIES, load_base_of, load_deltas
from delta_transcoders.dictionaries.files import DType
from delta_transcoders.dictionaries.files.rounding import rounded
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.export import export
from delta_transcoders.families.sites import GEMMA_SCOPE, HOOK_SITES
from delta_transcoders.features.files import read_features
from delta_transcoders.hub import split_layer
from delta_transcoders.report.shared_study import read_study
from delta_transcoders.tensor_files import save_tensors
from interop.replacement import activations, expected

JOINED = {"full": {}, "half": {"alpha": 0.5}}
ALONE = {"delta": {"delta_only": True}}
N_TOKENS = 512

Dictionaries = dict[int, Transcoder]
"""By layer."""


def load_dictionaries(folder: Path, dtype: DType) -> tuple[Dictionaries, Dictionaries]:
    """Bases, as far as the deltas correct any, and deltas, as an export in this dtype holds them."""
    bases, deltas = {}, {}
    for layer, (path, delta, config) in load_deltas(folder).items():
        if config.target in ON_DICTIONARIES:
            source = split_layer(config.base_id, config.base_file)[0]
            bases[layer] = rounded(load_base_of(path, config, source)[0], dtype).float()
        deltas[layer] = rounded(delta, dtype).float()
    return bases, deltas


def case(
    cache: ActivationCache, bases: Dictionaries, deltas: Dictionaries, alpha=1.0, delta_only=False
):
    tensors = {}
    for layer, delta in deltas.items():
        used = (delta,) if delta_only else (bases[layer], delta)
        x = cache.load("validation", layer, ["x"])["x"][: 2 * N_TOKENS].float()
        a, tie = activations(x, *used)
        keep = (~tie.any(dim=1)).nonzero()[:N_TOKENS, 0]
        y = alpha * delta(x) if delta_only else bases[layer](x) + alpha * delta(x)
        tensors |= {f"x.{layer}": x[keep], f"a.{layer}": a[keep], f"y.{layer}": y[keep]}
    return tensors


def prepare(
    study: Path, out: Path, folder: Path, exports: dict[str, dict], dtype: DType, graph: str
) -> None:
    """Export the deltas of a folder, and write what is expected.

    Args:
        exports: options of each case.
        graph: the case that one request is tried with.
    """
    config = next(iter(load_deltas(folder).values()))[2]
    site = HOOK_SITES[config.hook_site]
    formats = (["gemma_scope"] if (site, dtype) == (GEMMA_SCOPE, "float32") else []) + [
        "saelens",
        "circuit_tracer",
    ]
    bases, deltas = load_dictionaries(folder, dtype)
    cache = ActivationCache(study / "activations")
    of_features = _described(study).resolve() == folder.resolve()
    for name, options in exports.items():
        for format in formats:
            contexts = format == "circuit_tracer" and name == graph and of_features
            given = options | {"deltas": folder, "dtype": dtype, "with_contexts": contexts}
            export(study, format, out / format / name, **given)
        save_tensors(
            out / "expected" / f"{name}.safetensors", case(cache, bases, deltas, **options)
        )
    merged = str(study / "finetune" / "merged")
    prompt = read_study(study, folder, None).task.prompt
    joined = {} if exports[graph].get("delta_only") else bases
    tensors = expected(merged, prompt, site, joined, deltas)
    save_tensors(out / "expected" / f"{graph}, one request.safetensors", tensors)


def _described(study: Path) -> Path:
    """The deltas that the study's feature statistics are of."""
    return Path(read_features(study / "features", rankings=()).info.get("delta", study / "delta"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a study, and what is expected of readers.")
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="float32", choices=get_args(DType))
    args = parser.parse_args()
    own, described = args.study / "delta", _described(args.study)
    config = next(iter(load_deltas(own).values()))[2]
    exports = (JOINED if config.target in ON_DICTIONARIES else {}) | ALONE
    prepare(args.study, args.out, own, exports, args.dtype, next(iter(exports)))
    if described.resolve() != own.resolve():
        exports = {"features": {"delta_only": True}}
        prepare(args.study, args.out, described, exports, args.dtype, "features")


if __name__ == "__main__":
    main()
