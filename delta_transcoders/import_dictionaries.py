"""Read other tools' dictionaries into the folders that the stages read.

`python -m delta_transcoders.import_dictionaries --help`. The original study's checkpoints become deltas. The
stages read public dictionaries as they are; JumpReLU sets of SAELens and circuit-tracer can be written in
Gemma Scope's layout for what reads nothing else.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from delta_transcoders.command import run as run_command
from delta_transcoders.console import StudyWarning
from delta_transcoders.files import replace_folder

GEMMA_SCOPE = "google/gemma-scope-2b-pt-transcoders"


def import_bases(
    format: Literal["saelens", "circuit_tracer"],
    source: str | Path,
    out: str | Path,
    *,
    average_l0: int | float | None = None,
    layers: Sequence[int] | None = None,
    d_model: int | None = None,
) -> Path:
    """Write `out/layer_L/width_W/average_l0_K/params.npz` of every layer.

    Args:
        source: folder of `layer_L/` (SAELens) or with a `config.yaml` (circuit-tracer).
        average_l0: K, which neither format holds; an `export.json` does.
        layers: those to read; left out, all, from 0 without a gap.
        d_model: the model's, to refuse another model's dictionaries.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: a layer or a file of it is missing.
        ValueError: the files do not hold what they should; names the file, the tensor and what was expected.
    """
    source, out = _check(source, out)
    if average_l0 is not None and not 0 < average_l0 < math.inf:
        raise ValueError(f"average_l0 is {average_l0}, expected a positive number")
    # Torch takes seconds to import, and help and refusals need none of it.
    from delta_transcoders.dictionaries.bases import load_base
    from delta_transcoders.dictionaries.files import circuit_tracer, saelens
    from delta_transcoders.dictionaries.files.exported import CARD_NAME, load_card, verify
    from delta_transcoders.dictionaries.files.gemma_scope import save_base
    from delta_transcoders.dictionaries.files.listing import list_files
    from delta_transcoders.families.sites import GEMMA_SCOPE as SCOPE_SITE

    reader = {"saelens": saelens, "circuit_tracer": circuit_tracer}[format]
    held = sorted({entry.layer for entry in reader.find(list_files(source))})
    if not held:
        raise FileNotFoundError(f"{source} holds no layers of the format {format}")
    if layers is None and held != list(range(len(held))):
        missing = min(set(range(max(held))) - set(held))
        raise FileNotFoundError(
            f"{source} holds the layers {held}: {missing} is missing; if that is meant, say which layers to "
            "read (--layers)"
        )
    if missing := sorted(set(layers or ()) - set(held)):
        raise FileNotFoundError(f"{source} holds the layers {held}, not {missing}")
    card = load_card(source) if (source / CARD_NAME).is_file() else None
    if card is None and average_l0 is None:
        raise ValueError(
            f"{source}: how many features are active per token is not in these files; it names the folders "
            "that are written, so say it (--average-l0)"
        )
    with replace_folder(out) as partial:
        for layer in layers or held:
            dictionary, base_id = load_base(source, layer, d_model=d_model)
            if base_id.hook_site != SCOPE_SITE.name:
                raise ValueError(
                    f"{base_id.path} is for hook site {base_id.hook_site!r}, and Gemma Scope's layout, which "
                    f"names none, for {SCOPE_SITE.name!r}; the stages read this folder as it is"
                )
            if card is not None:
                verify(source, card, layer, dictionary)
            elif dictionary.n_features == dictionary.d_in:
                warnings.warn(
                    f"{source}, layer {layer}: W_enc and W_dec are square, so whether they are transposed "
                    "cannot be seen in their shapes; the hook-site check of a delta training will tell",
                    StudyWarning,
                    stacklevel=2,
                )
            l0 = card.layers[layer].average_l0 if average_l0 is None else average_l0
            save_base(partial, layer, dictionary, l0)
    return out


def import_original(
    source: str | Path,
    out: str | Path,
    *,
    model: str,
    base_transcoders: str = GEMMA_SCOPE,
    dtype: str = "bfloat16",
) -> Path:
    """Write the original study's deltas of one configuration as `out/layer_L`, for hook site `original`.

    Args:
        source: folder of `layer_L_dnew_D_pctl_P/best_model.pt`.
        model: folder of the finetuned model that they were trained on.
        base_transcoders: folder or hub id of the bases; each checkpoint holds a copy, which must be equal.
        dtype: of the model, as it will be evaluated.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: no such checkpoints, bases or model.
        ValueError: not tensors alone, not the expected ones, or another base; names the file and tensor.
    """
    source, out = _check(source, out)
    from delta_transcoders.dictionaries.delta import save_delta
    from delta_transcoders.dictionaries.files.original_study import checkpoints, import_checkpoint
    from delta_transcoders.weights import StoredWeights

    found = checkpoints(source)
    fingerprint = StoredWeights(model, dtype).fingerprint()
    with replace_folder(out) as partial:
        for layer, (path, percentile) in found.items():
            delta, config = import_checkpoint(
                path, layer, percentile, base_transcoders, fingerprint
            )
            save_delta(partial / f"layer_{layer}", delta, config)
    return out


def _check(source: str | Path, out: str | Path) -> tuple[Path, Path]:
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder: {source}")
    if out.exists():
        raise FileExistsError(f"{out} exists: it will not be replaced")
    return source, out


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Read other tools' dictionaries into the folders that the stages read.",
        epilog="The stages read public dictionaries as they are. `python -m delta_transcoders.export "
        "--help` goes the other way.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, name in (("saelens", "SAELens folders"), ("circuit_tracer", "a circuit-tracer set")):
        bases = kinds.add_parser(kind, help=f"{name}, to base dictionaries in Gemma Scope's layout")
        bases.add_argument("source", help="folder to read")
        bases.add_argument("out", help="folder to write")
        bases.add_argument("--average-l0", type=float, help="K of the folders average_l0_K")
        bases.add_argument("--layers", type=int, nargs="+", help="those to read (all)")
        bases.add_argument("--d-model", type=int, help="of the model that they should belong to")
    original = kinds.add_parser(
        "original", help="the original study's best_model.pt, to deltas of hook site `original`"
    )
    original.add_argument("source", help="folder of layer_L_dnew_D_pctl_P/best_model.pt")
    original.add_argument(
        "out", help="folder to write, for example runs/gemma2_2b/delta_site_original"
    )
    original.add_argument("--model", required=True, help="folder of the finetuned model")
    original.add_argument(
        "--base-transcoders", default=GEMMA_SCOPE, help=f"folder or hub id ({GEMMA_SCOPE})"
    )
    original.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    args = vars(parser.parse_args())
    kind = args.pop("kind")
    out = import_original(**args) if kind == "original" else import_bases(kind, **args)
    print(f"wrote {out}")


if __name__ == "__main__":
    run_command(main)
