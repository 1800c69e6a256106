"""Write a study's dictionaries for other tools: `python -m delta_transcoders.export --help`.

What is written is base(x) + alpha · delta(x) as one dictionary per layer, or alpha · delta(x) alone.
`export.json` beside it says which features are the delta's, and what model and base it belongs to.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from delta_transcoders.command import run as run_command
from delta_transcoders.files import replace_folder
from delta_transcoders.formats import FORMATS, Format

HINTS = {
    "gemma_scope": 'load_base("{out}", layer, percentile=0.5), or what reads Gemma Scope\'s params.npz',
    "saelens": 'SAE.load_from_disk("{out}/layer_0")',
    "circuit_tracer": 'ReplacementModel.from_pretrained("{out}/model", "{out}", backend="nnsight")',
}


def export(
    run: str | Path,
    format: Format,
    out: str | Path,
    *,
    alpha: float = 1.0,
    delta_only: bool = False,
    deltas: str | Path | None = None,
    base_transcoders: str | Path | None = None,
    model: str | Path | None = None,
) -> Path:
    """Write base + alpha · delta of every layer, replacing an earlier export in that folder.

    `gemma_scope` and `saelens` get the layers that have a delta. `circuit_tracer` wants all layers of the
    model, equally wide: those without a delta get the base, and padding that never fires; and a copy of
    the model that its version of transformers reads, in `model/`.

    Args:
        run: a study's folder; the defaults below are in it.
        alpha: goes into the delta's decoder rows and bias.
        delta_only: leave the base out.
        deltas: folder of `layer_L`, of one configuration; `RUN/delta`.
        base_transcoders: folder or hub id; `RUN/base_transcoders`, or else where the deltas' bases were.
        model: the finetuned model; `RUN/finetune/merged`. A folder for `circuit_tracer`, a name otherwise.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` holds something else than an export.
        FileNotFoundError: a folder or file that is needed is not there.
        ValueError: deltas, bases and model do not belong together, or cannot be said in this format.
    """
    run, out = Path(run), Path(out)
    _check(format, alpha, out)
    # Torch takes seconds to import, and the command's help and refusals need none of it.
    from delta_transcoders.formats import circuit_tracer, saelens
    from delta_transcoders.formats.assembly import Assembly
    from delta_transcoders.formats.exported import ExportCard, save_card
    from delta_transcoders.transcoders.gemma_scope import save_base

    if base_transcoders is None and (run / "base_transcoders").is_dir():
        base_transcoders = run / "base_transcoders"
    deltas, model = Path(deltas or run / "delta"), str(model or run / "finetune" / "merged")
    study = Assembly(deltas, base_transcoders and str(base_transcoders), alpha, delta_only)
    config = study.config
    if format == "gemma_scope" and config.hook_site != "gemma_scope":
        raise ValueError(
            f"{deltas}: the deltas are for hook site {config.hook_site!r}, and Gemma Scope's files name "
            "none: theirs is understood; the other formats name it"
        )
    layers: Collection[int] = study.layers
    if format == "circuit_tracer":
        layers = _all_layers(Path(model), config.model_fingerprint)

    cards = {}
    with replace_folder(out) as partial:
        for layer in layers:
            if format == "circuit_tracer":
                dictionary, card = study.layer(layer, study.n_features)
                path = circuit_tracer.save_layer(partial, layer, dictionary)
            else:
                dictionary, card = study.layer(layer)
                if format == "saelens":
                    path = saelens.save_layer(partial, layer, dictionary, study.site, model)
                else:
                    path = save_base(partial, layer, dictionary, card.average_l0)
            cards[layer] = replace(card, path=path.relative_to(partial).as_posix())
        if format == "circuit_tracer":
            scan = f"delta-{config.model_fingerprint[:12]}"
            circuit_tracer.save_config(partial, study.site, model, scan)
            circuit_tracer.save_model(Path(model), partial / circuit_tracer.MODEL_FOLDER)
        card = ExportCard(
            format=format,
            alpha=alpha,
            delta_only=delta_only,
            model=model,
            model_fingerprint=config.model_fingerprint,
            hook_site=config.hook_site,
            d_model=config.d_in,
            layers=cards,
        )
        save_card(partial, card)
    return out


def _check(format: str, alpha: float, out: Path) -> None:
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}, expected a finite number")
    if out.exists() and not (out / "export.json").is_file():
        raise FileExistsError(f"{out} exists and is no export: it will not be replaced")


def _all_layers(model: Path, fingerprint: str) -> range:
    """The layers of the model in a folder, which must be the one with this fingerprint."""
    import torch

    from delta_transcoders.fingerprints import model_fingerprint
    from delta_transcoders.language_models import check_model_source, load_model

    check_model_source(str(model))
    if not model.is_dir():
        raise ValueError(
            f"circuit-tracer needs a copy of the model: give a folder, not the hub id {model} "
            f"(`hf download {model} --local-dir FOLDER`)"
        )
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    loaded = load_model(str(model), config.get("dtype", "float32"))
    found = []
    # A delta records the dtype that the activations were captured in, a folder the one it was saved in.
    for dtype in dict.fromkeys((loaded.dtype, torch.float32, torch.bfloat16)):
        found.append(model_fingerprint(loaded.to(dtype)))
        if found[-1] == fingerprint:
            return range(config["num_hidden_layers"])
    raise ValueError(
        f"the deltas were trained on another model than {model}: fingerprint {fingerprint[:12]}…, this "
        f"one's is {found[0][:12]}…"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a study's dictionaries (base + alpha · delta) for other tools.",
        epilog="`python -m delta_transcoders.import_dictionaries --help` goes the other way.",
    )
    parser.add_argument("--run", required=True, help="folder of a study, for example runs/tiny")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the delta (default 1)")
    parser.add_argument("--delta-only", action="store_true", help="leave the base out")
    parser.add_argument("--deltas", help="folder of layer_L, of one configuration (RUN/delta)")
    parser.add_argument("--base-transcoders", help="folder or hub id (RUN/base_transcoders)")
    parser.add_argument("--model", help="the finetuned model (RUN/finetune/merged)")
    args = vars(parser.parse_args())
    out = export(**args)
    layers = json.loads((out / "export.json").read_text(encoding="utf-8"))["layers"]
    print(f"{out}: {len(layers)} layers; export.json names the features that are the delta's")
    print(f"read it with {HINTS[args['format']].format(out=out.resolve())}")


if __name__ == "__main__":
    run_command(main)
