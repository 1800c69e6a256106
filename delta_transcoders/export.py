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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from delta_transcoders.command import run as run_command
from delta_transcoders.dictionaries.files import PARTS, TOOL_FORMATS, DType, Format
from delta_transcoders.dictionaries.files.study_parts import part_folder, write_part
from delta_transcoders.files import replace_folder, write_text
from delta_transcoders.hub import check_push, is_hub_id, local_folder, push_folder, split_hub_id
from delta_transcoders.report.model_card import model_card
from delta_transcoders.report.shared_study import Study, delta_configs, models_of, read_study

# Torch takes seconds to import, and the command's help and refusals need none of it.
if TYPE_CHECKING:
    from delta_transcoders.families.sites import HookSite

CARD = "README.md"
MARK = "<!-- written by delta_transcoders.export -->"
OF_TOOLS = {"alpha", "delta-only", "dtype", "deltas", "base-transcoders", "model"}
"""Options of every format for other tools."""


def export(
    run: str | Path,
    format: Format,
    out: str | Path,
    *,
    alpha: float = 1.0,
    delta_only: bool = False,
    dtype: DType = "float32",
    deltas: str | Path | None = None,
    base_transcoders: str | Path | None = None,
    model: str | Path | None = None,
    base_model: str | None = None,
    base_repository: str | None = None,
    repository: str = "THIS_REPOSITORY",
    push_to_hub: str | None = None,
    private: bool = False,
    with_contexts: bool = False,
    prompt: str | None = None,
) -> Path:
    """Write one format and its model card, replacing an earlier export in that folder.

    The layers that have a delta are written; `circuit_tracer` wants all layers of the model, equally wide:
    those without a delta get the base (as large as the deltas', or of their percentile), and padding that
    never fires, which is all where there is no base either; and a copy of the model that its version of
    transformers reads, in `model/`. Every dictionary is JumpReLU, a base of ReLU at threshold 0: the same
    function. Layers are made and written one at a time. Names of local folders are shortened to their last
    part: they say nothing elsewhere. Where the study has feature statistics of these deltas,
    `circuit_tracer` gets what its pages show of each feature too (`features/`); what the study's texts say
    is left out of it, as they may be private.

    Args:
        run: a study's folder; the defaults below are in it.
        alpha: goes into the delta's decoder rows and bias.
        delta_only: leave the base out.
        dtype: that dictionaries and deltas are stored in. `bfloat16` halves the files; the card says what
            the rounding costs on the study's held-out tokens, where they are still there.
        deltas: folder of `layer_L`, of one configuration; `RUN/delta`.
        base_transcoders: folder or hub id; `RUN/base_transcoders`, or else where the deltas' bases were.
        model: the finetuned model; the one that was brought to the study, or `RUN/finetune/merged`. A folder
            for `circuit_tracer`; for `saelens`, whose files say how it is tokenized, it need not be there.
        base_model: hub id of the model that was finetuned, where the study used a local copy. Other tools
            boot what it names.
        base_repository: `USER/NAME` where the study's own base dictionaries are shared in the same dtype;
            deltas say so, and name the hash of what is there.
        repository: hub id that the card gives to a reader, also `USER/NAME/FOLDER`.
        push_to_hub: `USER/NAME` of a model repository to upload the folder to.
        private: the repository must be private, and is made so.
        with_contexts: put the texts on which a feature fires into `features/`.
        prompt: what the card's code tries, as the tokenizer gets it; by default what the task names.

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
    given = {
        "alpha": alpha != 1,
        "delta-only": delta_only,
        "dtype": dtype != "float32",
        "deltas": deltas,
        "base-transcoders": base_transcoders,
        "model": model,
        "base-repository": base_repository,
        "with-contexts": with_contexts,
    }
    _check(format, out, alpha, dtype, [name for name, value in given.items() if value])
    if not run.is_dir():
        raise FileNotFoundError(
            f"no study folder {str(run)!r}; give the one that `make demo` writes"
        )
    if base_model is not None and not is_hub_id(base_model):
        raise ValueError(f"--base-model {base_model!r} is not a hub id (owner/name)")
    if base_repository is not None and split_hub_id(base_repository) is None:
        raise ValueError(
            f"--base-repository {base_repository!r} is not a hub id (owner/name or a folder in it, with no "
            "folder `owner` here)"
        )
    if private and push_to_hub is None:
        raise ValueError("--private goes with --push-to-hub USER/NAME")
    if push_to_hub is not None:
        check_push(push_to_hub)

    deltas = local_folder(deltas, ["layer_*/*"]) if deltas else run / "delta"
    study, brought = read_study(run, deltas, base_model), models_of(run)
    if prompt is not None:
        study = replace(study, task=replace(study.task, prompt=prompt))
    if base_transcoders is None and (run / "base_transcoders").is_dir():
        base_transcoders = run / "base_transcoders"
    base_transcoders = base_transcoders or brought.get("dictionaries")
    bases = base_transcoders and str(base_transcoders)
    with replace_folder(out) as folder:
        if format in TOOL_FORMATS:
            model = str(model or brought.get("finetuned_model") or run / "finetune" / "merged")
            fused = (deltas, bases, alpha, delta_only)
            said = _write_set(folder, format, study, fused, model, dtype, with_contexts)
        else:
            if format != "deltas" and brought:
                models = f"{brought['base_model']!r} and {brought['finetuned_model']!r}"
                raise ValueError(
                    f"--format {format} is a part that a study trains itself: {run} was given its models "
                    f"({models}), share those; --format deltas has what it trained"
                )
            source = part_folder(run, format, deltas)
            said = _write_part(folder, format, study, source, dtype, bases, base_repository)
        repository = push_to_hub or repository
        text = model_card(format=format, repository=repository, dtype=dtype, **said)
        write_text(folder / CARD, f"{text}\n{MARK}\n")
    if push_to_hub is not None:
        push_folder(out, push_to_hub, private)
    return out


def _check(format: str, out: Path, alpha: float, dtype: str, given: list[str]) -> None:
    if format not in get_args(Format):
        known = ", ".join(get_args(Format))
        raise ValueError(f"format is {format!r}, expected one of {known}")
    if dtype not in get_args(DType):
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(get_args(DType))}")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}, expected a finite number")
    allowed = {
        "deltas": {"deltas", "dtype", "base-transcoders", "base-repository"},
        "base_transcoders": {"dtype"},
        "circuit_tracer": {*OF_TOOLS, "with-contexts"},
    }.get(format, OF_TOOLS if format in TOOL_FORMATS else set())
    for name in given:
        if name not in allowed:
            raise ValueError(f"--{name} does not apply to --format {format}")
    if format == "gemma_scope" and dtype != "float32":
        raise ValueError(
            f"--dtype {dtype}: Gemma Scope's layout is of NumPy archives, which hold no bfloat16; saelens, "
            "circuit_tracer and gemma_scope_2 do"
        )
    check_replaceable(out)


def check_replaceable(out: Path) -> None:
    """
    Raises:
        FileExistsError: the folder holds something else than an export.
    """
    if out.exists() and any(out.iterdir()):
        card = out / CARD
        if not card.is_file() or MARK not in card.read_text(encoding="utf-8"):
            raise FileExistsError(
                f"{out} holds something else than an export; give another folder or empty it"
            )


def _write_set(
    folder: Path,
    format: str,
    study: Study,
    parts: tuple[Path, str | None, float, bool],
    model: str,
    dtype: DType,
    with_contexts: bool,
) -> dict[str, Any]:
    """Write dictionaries in another tool's files; what the card says of them.

    Args:
        parts: deltas, bases, alpha, delta_only: as of `FusedDeltas`.
    """
    from delta_transcoders.activations.held_out import held_out_inputs
    from delta_transcoders.dictionaries.files.fused import FusedDeltas
    from delta_transcoders.dictionaries.files.tool_sets import write_set
    from delta_transcoders.features.circuit_tracer import statistics_of, write_feature_files

    fused, features = FusedDeltas(*parts), None
    if format == "circuit_tracer":
        features = statistics_of(study.run, parts[0], fused.hashes(), with_contexts)
    cache = study.run / "activations"
    tokens_of = held_out_inputs(cache, fused.site, fused.config.model_fingerprint)
    exported, costs = write_set(folder, format, fused, study.base_model, model, dtype, tokens_of)
    if features is not None:
        write_feature_files(folder, exported, features, with_contexts)
    contexts = None if features is None else with_contexts
    return {"study": study, "exported": exported, "contexts": contexts, "costs": costs}


def _write_part(
    folder: Path,
    format: str,
    study: Study,
    source: Path,
    dtype: DType,
    bases: str | None,
    base_repository: str | None,
) -> dict[str, Any]:
    """Write one of the study's own parts; what the card says of it."""
    if format not in ("deltas", "base_transcoders"):
        write_part(folder, format, source, study.base)
        return {"study": study}
    from delta_transcoders.activations.held_out import held_out_inputs
    from delta_transcoders.dictionaries.files.shared_dictionaries import write_bases, write_deltas
    from delta_transcoders.families.sites import HOOK_SITES

    if format == "base_transcoders":
        site = _site_of_bases(study)
        tokens_of = held_out_inputs(study.run / "base_activations", site, None)
        shared, costs = write_bases(folder, source, dtype, tokens_of, site, study.base_model)
        return {"study": study, "bases": shared, "costs": costs}
    config = study.deltas[0]
    site = HOOK_SITES[config["hook_site"]]
    cache = study.run / "activations"
    tokens_of = held_out_inputs(cache, site, config["model_fingerprint"])
    hashes, costs = write_deltas(folder, source, dtype, tokens_of, bases, base_repository)
    study = replace(study, deltas=delta_configs(folder))
    return {"study": study, "hashes": hashes, "costs": costs}


def _site_of_bases(study: Study) -> HookSite | None:
    from delta_transcoders.activations.held_out import captured_site
    from delta_transcoders.families.sites import HOOK_SITES

    if study.deltas:
        return HOOK_SITES[study.deltas[0]["hook_site"]]
    return captured_site(study.run / "base_activations")


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
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=get_args(DType),
        help="that dictionaries and deltas are stored in; bfloat16 halves them (default float32)",
    )
    parser.add_argument("--deltas", help="folder of layer_L, of one configuration (RUN/delta)")
    parser.add_argument("--base-transcoders", help="folder or hub id (RUN/base_transcoders)")
    parser.add_argument("--model", help="the finetuned model (the study's)")
    parser.add_argument(
        "--base-model", metavar="ID", help="the base's hub id, where the study used a local copy"
    )
    parser.add_argument(
        "--base-repository",
        metavar="USER/NAME",
        help="where the study's own base dictionaries are shared in the same dtype (deltas)",
    )
    parser.add_argument(
        "--with-contexts",
        action="store_true",
        help="put texts of the study, which may be private, beside each feature (circuit_tracer)",
    )
    parser.add_argument("--prompt", help="what the card's code tries (what the task names)")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="also upload it there")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    args = vars(parser.parse_args())
    out = export(**args)
    print(f"{out}: written; {out / CARD} says what it is and how to load it")
    if args["push_to_hub"]:
        print(f"pushed to {args['push_to_hub']}")


if __name__ == "__main__":
    run_command(main)
