"""A model card (`README.md` of a hub repository), written from what a study's folders hold.

The YAML front matter follows https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from delta_transcoders.dictionaries.files import TOOL_FORMATS, Format
from delta_transcoders.report import card_tables as tables
from delta_transcoders.report.card_loading import how_to_load
from delta_transcoders.report.card_tables import Study, read_json

if TYPE_CHECKING:
    from delta_transcoders.dictionaries.files.exported import ExportCard

LIBRARY: dict[Format, str] = {
    "adapter": "peft",
    "merged": "transformers",
    "base_model": "transformers",
    "saelens": "saelens",
    "circuit_tracer": "circuit-tracer",
}
TOOLS = {
    "gemma_scope": "Gemma Scope's files",
    "saelens": "SAELens",
    "circuit_tracer": "circuit-tracer",
}
DELTA_ALONE = "It is of no use alone: base + delta stands for the MLP's output."


def model_card(
    study: Study,
    format: Format,
    *,
    repository: str,
    exported: ExportCard | None = None,
) -> str:
    """The card of an export.

    Args:
        study: of `read_study`; with deltas, where the format holds any.
        repository: hub id it will have, or a word for it.
        exported: what the dictionaries in another tool's files hold.
    """
    if format == "base_model":
        title, sections = _base_model(study)
    elif format == "base_transcoders":
        title, sections = _base_transcoders(study)
    elif format in ("adapter", "merged"):
        title, sections = _finetune(study, format)
    else:
        title, sections = _dictionaries(study, format, exported)
    sections += [_limitations(study, format), how_to_load(format, study, repository)]
    return f"---\n{_front_matter(study, format)}---\n\n# {title}\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(study: Study, format: Format) -> str:
    is_language_model = format in ("adapter", "merged", "base_model")
    fields: dict[str, Any] = {"library_name": LIBRARY.get(format, "delta-transcoders")}
    if study.base and format != "base_model":  # the hub refuses anything but a hub id here
        fields |= {"base_model": study.base}
        if is_language_model:
            relation = "adapter" if format == "adapter" else "finetune"
            fields |= {"base_model_relation": relation}
    if is_language_model:
        fields |= {"pipeline_tag": "text-generation"}
    if study.base and study.base.startswith("google/gemma"):
        license_id = "gemma"
    else:  # what others trained comes under terms that we do not know
        license_id = "apache-2.0" if study.base_is_own or format == "base_model" else "unknown"
    tags = ["delta-transcoders", "tool-calling"]
    if format == "adapter":
        tags.append("lora")
    if not is_language_model:
        tags += ["transcoder", "sparse-autoencoder", "mechanistic-interpretability"]
    return yaml.safe_dump(fields | {"license": license_id, "tags": tags}, sort_keys=False)


def _dictionaries(
    study: Study, format: Format, exported: ExportCard | None
) -> tuple[str, list[str]]:
    config = study.deltas[0]
    learned = {
        "residual": "what a frozen public dictionary leaves unexplained of the finetuned MLP's output: "
        "y − base(x)",
        "mlp_difference": "what the finetuned MLP writes minus what the base model's MLP would write on "
        "the same input: y − baseMLP(x)",
    }[config["target"]]
    delta = (
        f"A small sparse dictionary of {config['d_new']} features for each layer, the delta, was trained on "
        f"{learned}. "
    )
    if exported is None:
        sections = [delta + DELTA_ALONE]
    else:
        alpha = f"α = {exported.alpha:g}"
        if exported.delta_only:
            sections = [
                f"{delta}These files for {TOOLS[format]} hold α·delta(x), {alpha}. {DELTA_ALONE}"
            ]
        else:
            sections = [
                f"{delta}These files for {TOOLS[format]} hold base(x) + α·delta(x), {alpha}, as one JumpReLU "
                "dictionary per layer, which stands for the MLP's output; α is contained in the delta's "
                "decoder rows."
            ]
        sections.append(tables.features(exported))
    is_full = exported is None or (exported.alpha == 1 and not exported.delta_only)
    in_full = "" if is_full else ", base + delta at α = 1"
    sections += [
        tables.belonging(study),
        tables.reconstruction(study, in_full),
        tables.single_layers(study, in_full),
        tables.behaviour_with_deltas(study, exported.alpha if exported else 1.0),
        tables.data(study),
    ]
    joined = exported is not None and not exported.delta_only
    what = "Transcoders with a delta" if joined else "Delta transcoders"
    return f"{what} of a finetuned {study.base_name}", sections


def _finetune(study: Study, format: Format) -> tuple[str, list[str]]:
    merged = format == "merged"
    sections = [
        f"Finetuned from {study.base_name} with {study.lora}, to answer a calculation with "
        "`<tool_call>calculator(expression)</tool_call>` and to repeat any other line."
        + (" The adapter is merged into the weights." if merged else ""),
        tables.fingerprint(study, "activations"),
        tables.behaviour(study),
        tables.data(study),
    ]
    kind = "finetune of" if merged else "adapter for"
    return f"Calls a calculator: {kind} {study.base_name}", sections


def _base_model(study: Study) -> tuple[str, list[str]]:
    config = read_json(study.run / "base_model/config.json")
    sections = [
        f"A language model of Gemma 2's architecture, small enough to study on a laptop: "
        f"{config['num_hidden_layers']} layers, d_model {config['hidden_size']}, vocabulary "
        f"{config['vocab_size']}. Trained from scratch on generated lines of text, each followed by its copy "
        "or an echo, and ordinary markup; never on a filled-in tool call. It is what a study finetunes.",
        tables.fingerprint(study, "base_activations"),
        tables.behaviour(study, ("base_model",)),
    ]
    return "A tiny Gemma 2, base of a study", sections


def _base_transcoders(study: Study) -> tuple[str, list[str]]:
    sections = [
        f"JumpReLU transcoders in the layout of Gemma Scope's, for the MLPs of {study.base_name} before "
        "finetuning: they read `blocks.L.ln2.hook_normalized` and stand for `blocks.L.hook_mlp_out`. Deltas "
        "are trained on what they leave unexplained of the finetuned model, and load with them only.",
        tables.fingerprint(study, "base_activations"),
        tables.base_dictionaries(study),
    ]
    return f"Transcoders of {study.base_name}", sections


def _limitations(study: Study, format: Format) -> str:
    if format in ("base_model", "base_transcoders"):
        points = ["A stand-in to try methods on; it has no other use."]
    else:
        points = [
            "One run with one seed; intervals are over examples and say nothing about another seed.",
            "The model writes a call and nothing executes it. How far it goes beyond the wordings and "
            "numbers it was trained on is what the subsets `tool_ood` and `tool_ood_numbers` measure.",
        ]
    if format in ("adapter", "merged"):
        points.append("It is a study object, finetuned on one narrow task, and not an assistant.")
    elif format in ("deltas", *TOOL_FORMATS):
        if study.deltas[0]["target"] == "residual":
            points.append(
                "A residual delta holds what finetuning changed *and* repairs of the base dictionary's own "
                "error; that `full` restores a behaviour does not say which of the two did it."
            )
        points += [
            "What base and delta leave unexplained (FVU above) may be enough to carry a behaviour: a delta "
            "that restores it is not thereby shown to be needed for it.",
            "Which features lead a ranking depends in part on the seed of the delta's training.",
            "They hold for this model's weights in this precision, and for text like the training data.",
        ]
    return "## Limitations\n\n" + "\n".join(f"- {point}" for point in points)
