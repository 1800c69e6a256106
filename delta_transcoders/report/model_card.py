"""A model card (`README.md` of a hub repository), written from what a study's folders hold.

The text is the template `model_card.md.j2`. Figures come from the study's `metrics.csv` and the deltas'
`config.json`; unmeasured quantities are marked as such. The YAML front matter follows
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from delta_transcoders.dictionaries.files import DType, Format, Part
from delta_transcoders.report.columns import rates, title
from delta_transcoders.report.formatting import number, table_number
from delta_transcoders.report.shared_study import Study, base_of_delta
from delta_transcoders.report.templates import environment

if TYPE_CHECKING:
    from delta_transcoders.dictionaries.files.exported import ExportCard
    from delta_transcoders.dictionaries.files.rounding import RoundingCost
    from delta_transcoders.dictionaries.files.shared_dictionaries import SharedBase

NOT_MEASURED = "not measured"
N_PACKAGES = 20
"""Shown of those that text was taken from."""
LIBRARY: dict[Format, str] = {
    "adapter": "peft",
    "merged": "transformers",
    "base_model": "transformers",
    "saelens": "saelens",
    "circuit_tracer": "circuit-tracer",
}
TOOLS = {
    "gemma_scope": "in Gemma Scope's layout",
    "gemma_scope_2": "in Gemma Scope 2's layout",
    "saelens": "for SAELens",
    "circuit_tracer": "for circuit-tracer",
}


KINDS: dict[Part, str] = {
    "base_transcoders": "dictionaries of the base model's MLPs",
    "adapter": "a LoRA adapter that finetunes the base model",
    "merged": "the finetuned model",
    "deltas": "deltas: what finetuning changed",
}


@dataclass(frozen=True)
class SharedFolder:
    """One folder of a repository that holds everything of some studies."""

    name: str
    part: Part
    study: Study
    n_bytes: int


def shared_card(repository: str, folders: Sequence[SharedFolder], dtype: DType) -> str:
    """The card of such a repository; its folders have their own."""
    studies = [folder.study for folder in folders]
    return (
        environment()
        .get_template("shared_card.md.j2")
        .render(
            repository=repository,
            folders=folders,
            dtype=dtype,
            kinds=KINDS,
            front_matter=_front_matter(studies[-1], "deltas"),
            origins=sorted({study.base_origin for study in studies} - {""}),
        )
    )


def model_card(
    study: Study,
    format: Format,
    *,
    repository: str,
    exported: ExportCard | None = None,
    contexts: bool | None = None,
    dtype: DType = "float32",
    costs: Mapping[int, RoundingCost] = MappingProxyType({}),
    hashes: Mapping[int, str] = MappingProxyType({}),
    bases: Sequence[SharedBase] = (),
) -> str:
    """The card of an export.

    Args:
        study: of `read_study`; with deltas, where the format holds any.
        repository: hub id it will have, or a word for it.
        exported: what the dictionaries in another tool's files hold.
        contexts: whether files on single features hold the study's texts; None where there are no such files.
        dtype: that dictionaries are stored in.
        costs: of rounding them to it, by layer, as far as it was measured.
        hashes: of the deltas as they were trained, by layer.
        bases: the base dictionaries in it.
    """
    cards = environment()
    cards.filters |= {
        "cell": lambda row, column: table_number(row, column, NOT_MEASURED),
        "column_title": title,
        "hook": lambda config, end: config[end].replace(f".{config['layer']}.", ".L."),
        "measured": lambda value: number(value, NOT_MEASURED),
        "base_name": base_of_delta,
        "rates": rates,
    }
    text = cards.get_template("model_card.md.j2").render(
        study=study,
        task=study.task,
        format=format,
        repository=repository,
        exported=exported,
        contexts=contexts,
        dtype=dtype,
        costs=costs,
        hashes=hashes,
        bases=bases,
        N_PACKAGES=N_PACKAGES,
        tool=TOOLS.get(format),
        front_matter=_front_matter(study, format),
        prompt=json.dumps(study.task.prompt, ensure_ascii=False),
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # parts that say nothing leave blank lines


def _front_matter(study: Study, format: Format) -> str:
    is_language_model = format in ("adapter", "merged", "base_model")
    found: dict[str, Any] = {"library_name": LIBRARY.get(format, "delta-transcoders")}
    if study.base and format != "base_model":  # the hub refuses anything but a hub id here
        found |= {"base_model": study.base}
        if is_language_model:
            found |= {"base_model_relation": "adapter" if format == "adapter" else "finetune"}
    if is_language_model:
        found |= {"pipeline_tag": "text-generation"}
    if study.base and study.base.startswith("google/gemma"):
        license_id = "gemma"
    else:  # what others trained comes under terms that we do not know
        is_free = study.base_is_own or study.base_origin or format == "base_model"
        license_id = "apache-2.0" if is_free else "unknown"
    tags = ["delta-transcoders", *study.task.tags]
    if format == "adapter":
        tags.append("lora")
    if not is_language_model:
        tags += ["transcoder", "sparse-autoencoder", "mechanistic-interpretability"]
    return yaml.safe_dump(found | {"license": license_id, "tags": tags}, sort_keys=False)
