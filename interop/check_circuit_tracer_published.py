"""Load public sets with circuit-tracer, alone and in models of their families, and compare.

    .venv-circuit-tracer/bin/python interop/check_circuit_tracer_published.py OUT

TopK sets are not tried: from a folder they are read as ReLU.
"""

import sys
from pathlib import Path

import torch
from circuit_tracer import ReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import TranscoderSet, load_transcoder_set
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from comparison import Comparison
from tracer_model import check_model, versions

CPU = torch.device("cpu")
# Public sets that it reads: by their configuration, or with which of its loaders, from which files.
OWN = ("Qwen 3", "Llama 3.2 1B", "circuit-tracer, JumpReLU")
SIZED = "transcoder_all/layer_{}_width_12_l0_small"
OTHERS = {
    "Gemma Scope": ("gemma-scope", "layer_{}/width_12/average_l0_5/params.npz"),
    "Gemma Scope 2": ("gemma-scope-2", f"{SIZED}/params.safetensors"),
    "Gemma Scope 2, affine": ("gemma-scope-2", f"{SIZED}_affine/params.safetensors"),
}
INPUTS = {"gemma-scope": "ln2.hook_normalized", "gemma-scope-2": "mlp.hook_in"}
MODELS = {"Qwen 3": "qwen3", "Llama 3.2 1B": "llama3", "Gemma Scope 2, affine": "gemma-3-it"}


def load_published(folder: Path) -> TranscoderSet:
    if folder.name in OWN:
        return load_transcoder_from_hub(str(folder), device=CPU)[0]
    kind, path = OTHERS[folder.name]
    paths = {layer: str(folder / path.format(layer)) for layer in (0, 1)}
    hooks = {"feature_input_hook": INPUTS[kind], "feature_output_hook": "hook_mlp_out"}
    eager = {"lazy_encoder": False, "lazy_decoder": False}
    return load_transcoder_set(paths, scan="", special_load_fn=kind, device=CPU, **hooks, **eager)


@torch.inference_mode()
def check_dictionaries(out: Path, comparison: Comparison) -> None:
    for case in (*OWN, *OTHERS):
        loaded = load_published(out / "published" / case)
        for layer, x, a, y in comparison.layers(case):
            what = f"published, {case}, layer {layer}"
            comparison.compare(what, loaded[layer].encode(x), loaded[layer](x), a, y)


def check_models(out: Path, comparison: Comparison) -> None:
    """Public sets of three kinds, one with skip, in random models of their families."""
    for case, name in MODELS.items():
        model = ReplacementModel.from_pretrained_and_transcoders(
            str(out / "models" / name),
            load_published(out / "published" / case),
            backend="nnsight",
            device=CPU,
        )
        expected = comparison.expected(f"{case} in a model")
        every = dict.fromkeys((0, 1), slice(None))
        check_model(model, f"{case} in a model, all", comparison, expected, every)


def main(out: Path) -> int:
    print(versions())
    print("not tried: TopK sets, which it takes for ReLU where they lie in a folder")
    comparison = Comparison(out)
    check_dictionaries(out, comparison)
    check_models(out, comparison)
    return comparison.missed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
