"""Write a study for others, and push it: `python -m delta_transcoders.export --help`.

    python -m delta_transcoders.export --run runs/tiny --format saelens --out runs/tiny/saelens
    python -m delta_transcoders.export --run runs/tiny --format deltas --out runs/tiny/shared \\
        --push-to-hub USER/NAME

Dictionaries in other tools' files are base(x) + alpha · delta(x) as one dictionary per layer, or
alpha · delta(x) alone; `export.json` beside them says which features are the delta's, and what model and base
they belong to. The other formats are the study's own parts. Each comes with a model card. Nothing leaves the
machine without `--push-to-hub`, and no text on which a feature fires is written without `--with-contexts`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from delta_transcoders.command import run as run_command
from delta_transcoders.dictionaries.files import PARTS, TOOL_FORMATS, Format
from delta_transcoders.dictionaries.files.study_parts import part_folder, save_model, write_part
from delta_transcoders.files import read_json, replace_folder, write_text
from delta_transcoders.hub import (
    check_push,
    is_hub_id,
    local_folder,
    portable_name,
    push_folder,
)
from delta_transcoders.report.model_card import model_card, models_of, read_study

if TYPE_CHECKING:
    from delta_transcoders.dictionaries.files.exported import ExportCard
    from delta_transcoders.dictionaries.files.fused import FusedDeltas
    from delta_transcoders.families.family import ModelFamily
    from delta_transcoders.features.files import FeatureSet

CARD = "README.md"
MARK = "<!-- written by delta_transcoders.export -->"


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
    base_model: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    with_contexts: bool = False,
) -> Path:
    """Write one format and its model card, replacing an earlier export in that folder.

    The layers that have a delta are written; `circuit_tracer` wants all layers of the model, equally wide:
    those without a delta get the base (as large as the deltas', or of their percentile), and padding that
    never fires; and a copy of the model that its version of transformers reads, in `model/`. Every
    dictionary is float32 JumpReLU, a base of ReLU at threshold 0: the same function. Layers are made and
    written one at a time. Names of local folders are shortened to their last part: they say nothing
    elsewhere. Where the study has feature statistics, `circuit_tracer` gets what its pages show of each
    feature too (`features/`); what the study's texts say is left out of it, as they may be private.

    Args:
        run: a study's folder; the defaults below are in it.
        alpha: goes into the delta's decoder rows and bias.
        delta_only: leave the base out.
        deltas: folder of `layer_L`, of one configuration; `RUN/delta`.
        base_transcoders: folder or hub id; `RUN/base_transcoders`, or else where the deltas' bases were.
        model: the finetuned model; the one that was brought to the study, or `RUN/finetune/merged`. A folder
            for `circuit_tracer`; for `saelens`, whose files say how it is tokenized, it need not be there.
        base_model: hub id of the model that was finetuned, where the study used a local copy. Other tools
            boot what it names.
        push_to_hub: `USER/NAME` of a model repository to upload the folder to.
        private: the repository must be private, and is made so.
        with_contexts: put the texts on which a feature fires into `features/`.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` holds something else than an export.
        FileNotFoundError: a folder or file that is needed is not there.
        ConnectionError: the hub cannot be reached, or refuses.
        ValueError: deltas, bases and model do not belong together, or cannot be said in this format; an
            option that is not one, or does not apply.
    """
    run, out = Path(run), Path(out)
    chosen = {"deltas": deltas, "base-transcoders": base_transcoders, "model": model}
    _check(format, out, alpha, delta_only, [name for name, value in chosen.items() if value])
    if with_contexts and format != "circuit_tracer":
        raise ValueError(
            f"--with-contexts does not apply to --format {format}: only circuit_tracer's files hold contexts"
        )
    if not run.is_dir():
        raise FileNotFoundError(
            f"no study folder {str(run)!r}; give the one that `make demo` writes"
        )
    if base_model is not None and not is_hub_id(base_model):
        raise ValueError(f"--base-model {base_model!r} is not a hub id (owner/name)")
    if private and push_to_hub is None:
        raise ValueError("--private goes with --push-to-hub USER/NAME")
    if push_to_hub is not None:
        check_push(push_to_hub)

    deltas = local_folder(deltas, ["layer_*/*"]) if deltas else run / "delta"
    study, exported = read_study(run, deltas, base_model), None
    features = None
    if format == "circuit_tracer":
        features = _features_of(run, study.measured, with_contexts)
    with replace_folder(out) as folder:
        if format in PARTS:
            if format != "deltas" and (brought := models_of(run)):
                given = f"{brought['base_model']!r} and {brought['finetuned_model']!r}"
                raise ValueError(
                    f"--format {format} is a part that a study trains itself: {run} was given its models "
                    f"({given}), share those; --format deltas has what it trained"
                )
            write_part(folder, format, part_folder(run, format, deltas), study.base)
        else:
            # Torch takes seconds to import, and the command's help and refusals need none of it.
            from delta_transcoders.dictionaries.files.fused import FusedDeltas

            brought = models_of(run)
            if base_transcoders is None and (run / "base_transcoders").is_dir():
                base_transcoders = run / "base_transcoders"
            base_transcoders = base_transcoders or brought.get("dictionaries")
            bases = base_transcoders and str(base_transcoders)
            fused = FusedDeltas(deltas, bases, alpha, delta_only)
            model = str(model or brought.get("finetuned_model") or run / "finetune" / "merged")
            exported = _write_dictionaries(folder, format, fused, study.base_model, model)
        if features is not None:
            from delta_transcoders.features.circuit_tracer import write_feature_files

            write_feature_files(folder, exported, features, with_contexts)
        repository = push_to_hub or "THIS_REPOSITORY"
        contexts = None if features is None else with_contexts
        text = model_card(
            study, format, repository=repository, exported=exported, contexts=contexts
        )
        write_text(folder / CARD, f"{text}\n{MARK}\n")
    if push_to_hub is not None:
        push_folder(out, push_to_hub, private)
    return out


def _check(format: str, out: Path, alpha: float, delta_only: bool, chosen: list[str]) -> None:
    if format not in get_args(Format):
        known = ", ".join(get_args(Format))
        raise ValueError(f"format is {format!r}, expected one of {known}")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}, expected a finite number")
    if format in PARTS:
        chosen = [
            *(["alpha"] if alpha != 1 else []),
            *(["delta-only"] if delta_only else []),
            *chosen,
        ]
        for name in chosen:
            if (format, name) != ("deltas", "deltas"):
                raise ValueError(f"--{name} does not apply to --format {format}")
    if out.exists() and any(out.iterdir()):
        card = out / CARD
        if not card.is_file() or MARK not in card.read_text(encoding="utf-8"):
            raise FileExistsError(
                f"{out} holds something else than an export; give another folder or empty it"
            )


def _features_of(run: Path, measured: bool, with_contexts: bool) -> FeatureSet | None:
    """A study's feature statistics, where it has some of the deltas that are written (`measured`)."""
    folder = run / "features"
    if measured and folder.is_dir():
        from delta_transcoders.features.files import read_features

        return read_features(folder, rankings=())
    if with_contexts:
        raise FileNotFoundError(
            f"--with-contexts: {folder} does not exist, and it holds the contexts; run the study's stage "
            "`features` first"
            if measured
            else f"--with-contexts: the contexts in {folder} are of {run}/delta, not of the deltas given"
        )
    return None


def _write_dictionaries(
    folder: Path, format: str, fused: FusedDeltas, base_model: str | None, model: str
) -> ExportCard:
    from delta_transcoders.dictionaries.files import circuit_tracer, gemma_scope_2, saelens
    from delta_transcoders.dictionaries.files.exported import ExportCard, save_card
    from delta_transcoders.dictionaries.files.gemma_scope import save_base
    from delta_transcoders.families import family_of
    from delta_transcoders.families.sites import AFTER_GAIN, GEMMA_SCOPE
    from delta_transcoders.language_models import load_config

    config, site = fused.config, fused.site
    if format == "gemma_scope" and site != GEMMA_SCOPE:
        raise ValueError(
            f"the deltas are for hook site {site.name!r}, and Gemma Scope's files name none: theirs "
            "is understood; the other formats name it"
        )
    if format == "gemma_scope_2" and site != AFTER_GAIN:
        raise ValueError(
            f"the deltas are for hook site {site.name!r}, and readers of Gemma Scope 2's files feed them "
            f"what comes after the norm's gain ({AFTER_GAIN.name!r}); saelens and circuit_tracer name a site"
        )
    if format == "gemma_scope_2":
        family = family_of(load_config(model))
        if not family.has_post_norm:
            raise ValueError(
                f"{model} is of the family {family.title}, without a norm after its MLPs: Gemma Scope 2's "
                "files name Gemma's modules; saelens and circuit_tracer name any family's"
            )
        if base_model is None:
            raise ValueError(
                "Gemma Scope 2's files name the base model, and the study does not: give its hub id with "
                "--base-model"
            )
    layers: Collection[int] = fused.layers
    n_features = None
    if format == "circuit_tracer":
        family = _checked_family(Path(model), config.model_fingerprint)
        layers, n_features = range(family.n_layers), fused.widest()
        if fused.delta_only:
            # Its graphs call the error of layer L `0_L_POSITION`, as if it were feature L of layer 0: with
            # as many features in front that never fire, no feature of the delta has that name.
            n_features += len(layers)
    name = portable_name(model)
    adds_bos = _adds_bos(model) if format == "saelens" else None

    cards = {}
    for layer in layers:
        dictionary, card = fused.layer(layer, n_features)
        if format == "gemma_scope":
            path = save_base(folder, layer, dictionary, card.average_l0)
        elif format == "gemma_scope_2":
            path = gemma_scope_2.save_layer(folder, layer, dictionary, card.average_l0, base_model)
        elif format == "saelens":
            path = saelens.save_layer(folder, layer, dictionary, site, base_model, name, adds_bos)
        else:
            path = circuit_tracer.save_layer(folder, layer, dictionary)
        cards[layer] = replace(card, path=path.relative_to(folder).as_posix())
        del dictionary  # before the next is made: wide ones are gigabytes
    if format == "circuit_tracer":
        circuit_tracer.save_config(folder, site, base_model, name, family.has_post_norm)
        save_model(folder / circuit_tracer.MODEL_FOLDER, Path(model))
    exported = ExportCard(
        format=format,
        alpha=fused.alpha,
        delta_only=fused.delta_only,
        model=name,
        model_fingerprint=config.model_fingerprint,
        hook_site=config.hook_site,
        d_model=config.d_in,
        layers=cards,
    )
    save_card(folder, exported)
    return exported


def _adds_bos(model: str) -> bool | None:
    """Whether a model's tokenizer puts BOS before a text; None where it is not to be had."""
    from delta_transcoders.language_models import load_tokenizer

    try:
        return bool(load_tokenizer(model)("").input_ids)
    except (FileNotFoundError, ConnectionError):
        return None


def _checked_family(model: Path, fingerprint: str) -> ModelFamily:
    """The anatomy of the model in a folder, which must be the one with this fingerprint."""
    from delta_transcoders.families import family_of
    from delta_transcoders.fingerprints import check_hash
    from delta_transcoders.language_models import check_model_source
    from delta_transcoders.weights import StoredWeights

    check_model_source(str(model))
    if not model.is_dir():
        raise ValueError(
            f"circuit-tracer needs a copy of the model: give a folder, not the hub id {model} "
            f"(`hf download {model} --local-dir FOLDER`)"
        )
    config = read_json(model / "config.json")
    found = []
    # A delta records the dtype that the activations were captured in, a folder the one it was saved in.
    for dtype in dict.fromkeys((config.get("dtype", "float32"), "float32", "bfloat16")):
        weights = StoredWeights(str(model), dtype)
        found.append(weights.fingerprint())
        if found[-1] == fingerprint:
            return family_of(weights.config)
    check_hash("the deltas were trained on another model", fingerprint, str(model), found[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a study's dictionaries (base + alpha · delta) for other tools, or one of its "
        "parts, with a model card; and push it.",
        epilog="`python -m delta_transcoders.import_dictionaries --help` goes the other way.",
    )
    parser.add_argument("--run", required=True, help="folder of a study, for example runs/tiny")
    parser.add_argument(
        "--format",
        required=True,
        choices=get_args(Format),
        help=f"dictionaries for other tools ({', '.join(TOOL_FORMATS)}), or a part of the study "
        f"({', '.join(PARTS)})",
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the delta (default 1)")
    parser.add_argument("--delta-only", action="store_true", help="leave the base out")
    parser.add_argument("--deltas", help="folder of layer_L, of one configuration (RUN/delta)")
    parser.add_argument("--base-transcoders", help="folder or hub id (RUN/base_transcoders)")
    parser.add_argument("--model", help="the finetuned model (the study's)")
    parser.add_argument(
        "--base-model", metavar="ID", help="the base's hub id, where the study used a local copy"
    )
    parser.add_argument(
        "--with-contexts",
        action="store_true",
        help="put texts of the study, which may be private, beside each feature (circuit_tracer)",
    )
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="also upload it there")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    args = vars(parser.parse_args())
    out = export(**args)
    print(f"{out}: written; {out / CARD} says what it is and how to load it")
    if args["push_to_hub"]:
        print(f"pushed to {args['push_to_hub']}")


if __name__ == "__main__":
    run_command(main)
