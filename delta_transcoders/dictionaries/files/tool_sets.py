"""A study's deltas and bases as one set of dictionaries in another tool's files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from delta_transcoders.dictionaries.files import (
    DType,
    circuit_tracer,
    gemma_scope_2,
    saelens,
)
from delta_transcoders.dictionaries.files.exported import ExportCard, save_card
from delta_transcoders.dictionaries.files.fused import FusedDeltas
from delta_transcoders.dictionaries.files.gemma_scope import save_base
from delta_transcoders.dictionaries.files.rounding import (
    RoundingCost,
    TokensOf,
    rounded,
    rounding_cost,
)
from delta_transcoders.dictionaries.files.study_parts import save_model
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import AFTER_GAIN, GEMMA_SCOPE
from delta_transcoders.files import read_json
from delta_transcoders.fingerprints import check_hash
from delta_transcoders.hub import portable_name
from delta_transcoders.language_models import check_model_source, load_config, load_tokenizer
from delta_transcoders.weights import StoredWeights

if TYPE_CHECKING:
    from delta_transcoders.families.family import ModelFamily


def write_set(
    folder: Path,
    format: str,
    fused: FusedDeltas,
    base_model: str | None,
    model: str,
    dtype: DType,
    tokens_of: TokensOf,
) -> tuple[ExportCard, dict[int, RoundingCost]]:
    """Write the files and `export.json` into a folder that exists, layer by layer.

    Args:
        base_model: hub id or name of the model that was finetuned.
        model: the finetuned one: folder or hub id.
        tokens_of: what the cost of rounding is measured on.

    Returns:
        what was written, and by layer what rounding it to `dtype` costs, where that was measured.

    Raises:
        FileNotFoundError, ConnectionError: a model or bases that are not to be had.
        ValueError: deltas, bases and model do not belong together, or cannot be said in this format.
    """
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

    cards, costs = {}, {}
    for layer in layers:
        dictionary, card = fused.layer(layer, n_features)
        if dtype != "float32":
            before, dictionary = dictionary, rounded(dictionary, dtype)
            card = replace(card, hash=dictionary.fingerprint())
            parts = (card.base_features, card.delta_features)
            if any(start < stop for start, stop in parts) and (x := tokens_of(layer)) is not None:
                x = x / site.factor(config.d_in)
                costs[layer] = rounding_cost(before, dictionary, x)
            del before
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
    return exported, costs


def _adds_bos(model: str) -> bool | None:
    """Whether a model's tokenizer puts BOS before a text; None where it is not to be had."""
    try:
        return bool(load_tokenizer(model)("").input_ids)
    except (FileNotFoundError, ConnectionError):
        return None


def _checked_family(model: Path, fingerprint: str) -> ModelFamily:
    """The anatomy of the model in a folder, which must be the one with this fingerprint."""
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
