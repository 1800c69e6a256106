"""Load public sets with SAELens and compare.

.venv-saelens/bin/python interop/check_saelens_published.py OUT
"""

import sys
from functools import partial
from pathlib import Path

import torch
from comparison import Comparison
from huggingface_hub.errors import EntryNotFoundError
from sae_lens import SAE, __version__
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes import transcoder
from safetensors import safe_open

SIZED = "transcoder_all/layer_{}_width_12_l0_small"
CLASSES = {
    "jumprelu_transcoder": transcoder.JumpReLUTranscoder,
    "jumprelu_skip_transcoder": transcoder.JumpReLUSkipTranscoder,
    "transcoder": transcoder.Transcoder,
    "skip_transcoder": transcoder.SkipTranscoder,
}


def sized(loader, **given):
    """Its loader of Gemma Scope takes sizes from the names of real models and widths."""
    given["cfg_overrides"] |= {"d_in": 8, "d_out": 8, "d_sae": 12}
    return loader(**given)


# Public sets that it reads from the hub: the loader, its id of a layer, and what that becomes.
PUBLISHED = {
    "Gemma Scope": (
        partial(sized, loaders.gemma_2_transcoder_huggingface_loader),
        "layer_{}/width_16k/average_l0_5",
        "jumprelu_transcoder",
    ),
    "Gemma Scope 2": (loaders.gemma_3_sae_huggingface_loader, SIZED, "jumprelu_transcoder"),
    "Gemma Scope 2, affine": (
        loaders.gemma_3_sae_huggingface_loader,
        f"{SIZED}_affine",
        "jumprelu_skip_transcoder",
    ),
    "Qwen 3": (
        loaders.mwhanna_transcoder_huggingface_loader,
        "layer_{}.safetensors",
        "transcoder",
    ),
}


def use_folder(folder: Path) -> None:
    """Its loaders ask the hub: they get the files of this folder."""

    def local(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        path = folder / subfolder / filename.replace("width_16k", "width_12")
        if not path.is_file():
            raise EntryNotFoundError(str(path))
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(folder / filename, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = local, shapes


@torch.inference_mode()
def check_published(out: Path, comparison: Comparison) -> None:
    for case, (loader, sae_id, architecture) in PUBLISHED.items():
        use_folder(out / "published" / case)
        for layer, x, a, y in comparison.layers(case):
            sae = SAE.from_pretrained(
                "local/gemma-scope-2b-set", sae_id.format(layer), converter=loader
            )
            assert type(sae) is CLASSES[architecture]
            comparison.compare(f"published, {case}, layer {layer}", sae.encode(x), sae(x), a, y)
    for architecture, kind in CLASSES.items():
        case = f"SAELens {architecture}"
        for layer, x, a, y in comparison.layers(case):
            sae = SAE.load_from_disk(out / "published" / case / f"layer_{layer}")
            assert type(sae) is kind
            comparison.compare(f"published, {case}, layer {layer}", sae.encode(x), sae(x), a, y)


def main(out: Path) -> int:
    print(f"sae-lens {__version__}, torch {torch.__version__}")
    comparison = Comparison(out)
    check_published(out, comparison)
    return comparison.missed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
