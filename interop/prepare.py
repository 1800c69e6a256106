"""Export a study in every format, and write what our own code makes of the same activations.

    python -m interop.prepare STUDY OUT [--dtype bfloat16] [--brief]

OUT gets one folder per format and case, and `expected/{case}.safetensors`: x.L [N, d_model] on held-out
tokens, a.L [N, n_features] and y.L [N, d_model], from base and delta apart; tokens of which a feature is at
its threshold are left out. `expected/{case}, one request.safetensors` is the task's example in the finetuned
model, as `replacement.expected` says. Where the study's feature statistics are of another delta than
`STUDY/delta`, that is exported alone too, as the case `features`.
"""

import argparse
from pathlib import Path
from typing import get_args

import torch

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.dictionaries.delta import ON_DICTIONARIES, load_base_of, load_deltas
from delta_transcoders.dictionaries.files import DType
from delta_transcoders.dictionaries.files.rounding import rounded
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.export import export
from delta_transcoders.families.sites import GEMMA_SCOPE, HOOK_SITES
from delta_transcoders.features.files import read_features
from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.hub import split_layer
from delta_transcoders.language_models import load_tokenizer
from delta_transcoders.report.shared_study import TaskDescription, read_study
from delta_transcoders.tensor_files import save_tensors
from interop.replacement import activations, expected

JOINED = {"full": {}, "half": {"alpha": 0.5}}
ALONE = {"delta": {"delta_only": True}}
N_TOKENS = 512

Dictionaries = dict[int, Transcoder]
"""By layer."""


def as_stored(
    folder: Path, dtype: DType, alpha: float = 1.0, delta_only: bool = False
) -> tuple[Dictionaries, Dictionaries]:
    """Bases, without any where they are left out, and deltas, each apart, as an export holds their sum."""
    bases, deltas = {}, {}
    for layer, (path, delta, config) in load_deltas(folder).items():
        stored = delta.state_dict()
        bias = alpha * stored["b_dec"]
        stored |= {"W_dec": alpha * stored["W_dec"], "b_dec": torch.zeros_like(bias)}
        if delta_only:
            stored["b_dec"] = bias
        else:
            source = split_layer(config.base_id, config.base_file)[0]
            base = load_base_of(path, config, source)[0].state_dict()
            base["b_dec"] = base["b_dec"] + bias  # rounded as one
            bases[layer] = rounded(Transcoder(**base), dtype).float()
        deltas[layer] = rounded(Transcoder(**stored), dtype).float()
    return bases, deltas


def case(cache: ActivationCache, bases: Dictionaries, deltas: Dictionaries):
    tensors = {}
    for layer, delta in deltas.items():
        used = [bases[layer], delta] if layer in bases else [delta]
        x = cache.load("validation", layer, ["x"])["x"][: 2 * N_TOKENS].float()
        a, tie = activations(x, *used)
        keep = (~tie.any(dim=1)).nonzero()[:N_TOKENS, 0]
        y = sum(dictionary(x) for dictionary in used)
        tensors |= {f"x.{layer}": x[keep], f"a.{layer}": a[keep], f"y.{layer}": y[keep]}
    return tensors


def request(study: Path, folder: Path, merged: str) -> str:
    """The task's example, or a study's first evaluation prompt where the task names none.

    Behind a special token: circuit-tracer puts one where there is none.
    """
    prompt, tokenizer = read_study(study, folder, None).task.prompt, load_tokenizer(merged)
    path = study / "finetune/data/evaluation.jsonl"
    if prompt == TaskDescription.prompt and path.is_file():
        number, line = next(iter(text_lines(path)))
        row = parse_json(line, f"{path}, line {number}")
        prompt = row.get("prompt") or tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
    begins_special = tokenizer(prompt).input_ids[0] in tokenizer.all_special_ids
    return prompt if begins_special else f"{tokenizer.bos_token}{prompt}"


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
    cache = ActivationCache(study / "activations")
    merged = str(study / "finetune" / "merged")
    prompt = request(study, folder, merged)
    of_features = _described(study).resolve() == folder.resolve()
    for name, options in exports.items():
        for format in formats:
            contexts = format == "circuit_tracer" and name == graph and of_features
            given = options | {"deltas": folder, "dtype": dtype, "with_contexts": contexts}
            export(study, format, out / format / name, prompt=prompt, **given)
        stored = as_stored(folder, dtype, **options)
        save_tensors(out / "expected" / f"{name}.safetensors", case(cache, *stored))
    stored = as_stored(folder, dtype, **exports[graph])
    tensors = expected(merged, prompt, site, *stored)
    save_tensors(out / "expected" / f"{graph}, one request.safetensors", tensors)


def _described(study: Path) -> Path:
    """The deltas that the study's feature statistics are of."""
    return Path(read_features(study / "features", rankings=()).info.get("delta", study / "delta"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a study, and what is expected of readers.")
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="float32", choices=get_args(DType))
    parser.add_argument("--brief", action="store_true", help="only what a request is tried with")
    args = parser.parse_args()
    own, described = args.study / "delta", _described(args.study)
    config = next(iter(load_deltas(own).values()))[2]
    exports = (JOINED if config.target in ON_DICTIONARIES else {}) | ALONE
    graph = next(iter(exports))
    exports = {graph: exports[graph]} if args.brief else exports
    prepare(args.study, args.out, own, exports, args.dtype, graph)
    if described.resolve() != own.resolve():
        exports = {"features": {"delta_only": True}}
        prepare(args.study, args.out, described, exports, args.dtype, "features")


if __name__ == "__main__":
    main()
