"""What an end-to-end training begins with: first weights, and the dictionaries that they correct."""

from __future__ import annotations

from dataclasses import dataclass

from delta_transcoders.dictionaries.bases import held, load_base
from delta_transcoders.dictionaries.delta import ON_DICTIONARIES, load_base_of, load_deltas
from delta_transcoders.dictionaries.identity import L0, BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.end_to_end.trained import TrainedTranscoder, from_scratch
from delta_transcoders.families import ModelFamily
from delta_transcoders.families.sites import HOOK_SITES, HookSite
from delta_transcoders.interventions.loading import check_transplant
from delta_transcoders.interventions.sources import DictionarySource


@dataclass(frozen=True)
class Corrected:
    """What a delta corrects: a dictionary, or the base model."""

    path: str
    hash: str
    average_l0: L0 | None = None
    file: str | None = None
    """The part of a dictionary's path that is its set's."""


@dataclass(frozen=True)
class Start:
    """By layer, ascending.

    Attributes:
        deltas: first weights.
        site: where all of them read and write.
        corrects: what each corrects.
        bases: the dictionaries among that; none for a transplant.
        percentile: that chose the dictionaries; None without them.
    """

    deltas: dict[int, Transcoder]
    site: HookSite
    corrects: dict[int, Corrected]
    bases: dict[int, DictionarySource]
    percentile: float | None


def start_of(
    base_model: Corrected | None,
    family: ModelFamily,
    fingerprint: str,
    *,
    warm_start: str | None,
    base_transcoders: str | None,
    percentile: float,
    base_files: str | None,
    d_new: int,
    seed: int,
) -> Start:
    """From local deltas, or from scratch.

    Args:
        base_model: what a transplant is added to; None for a student on the dictionary.
        family: of both models.
        fingerprint: the finetuned model's.
        warm_start, base_transcoders, percentile, base_files, d_new, seed: see `EndToEndDelta`.

    From scratch a transplant has deltas in all layers, a student on the dictionary in those that have one.

    Raises:
        FileNotFoundError: no local delta to start from.
        ValueError: deltas of another model, site or base, or that cannot be trained on.
    """
    if warm_start is not None:
        return _warm(base_model, family, fingerprint, warm_start, base_transcoders)
    layers, loaded = list(range(family.n_layers)), {}
    if base_model is None:
        layers = sorted({entry.layer for entry in held(base_transcoders)})
        loaded = {
            layer: load_base(
                base_transcoders,
                layer,
                percentile=percentile,
                files=base_files,
                d_model=family.d_model,
            )
            for layer in layers
        }
    named = {base_id.hook_site for _, base_id in loaded.values()} - {None}
    site = HOOK_SITES[named.pop()] if named else family.site
    deltas = {layer: from_scratch(family.d_model, d_new, layer, seed) for layer in layers}
    return _start(deltas, site, base_model, loaded, percentile)


def _warm(
    base_model: Corrected | None,
    family: ModelFamily,
    fingerprint: str,
    warm_start: str,
    base_transcoders: str | None,
) -> Start:
    try:
        local = load_deltas(warm_start, fingerprint)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"there is no local delta to start from: {error}. Train one (delta.yaml or mlp_difference.yaml), "
            "or leave warm_start out to start from scratch"
        ) from error
    first = next(config for _, _, config in local.values())
    if first.d_in != family.d_model:
        raise ValueError(f"{warm_start} has d_model {first.d_in}, the model {family.d_model}")
    loaded = {}
    if base_model is not None:
        for path, _, config in local.values():
            check_transplant(path, config, fingerprint, base_model.hash)
    else:
        if first.target not in ON_DICTIONARIES:
            raise ValueError(
                f"{warm_start} corrects no dictionary (target {first.target!r}): a student on the dictionary "
                "starts from residual deltas, or from scratch"
            )
        loaded = {
            layer: load_base_of(path, config, base_transcoders)
            for layer, (path, _, config) in local.items()
        }
    for path, delta, _ in local.values():
        try:
            TrainedTranscoder(delta)
        except ValueError as error:
            raise ValueError(f"{path} cannot be trained on: {error}") from error
    deltas = {layer: delta for layer, (_, delta, _) in local.items()}
    return _start(deltas, HOOK_SITES[first.hook_site], base_model, loaded, first.percentile)


def _start(
    deltas: dict[int, Transcoder],
    site: HookSite,
    base_model: Corrected | None,
    loaded: dict[int, tuple[Transcoder, BaseId]],
    percentile: float | None,
) -> Start:
    if base_model is not None:
        return Start(deltas, site, dict.fromkeys(deltas, base_model), {}, None)
    corrects = {
        layer: Corrected(base_id.path, base_id.hash, base_id.average_l0, base_id.file)
        for layer, (_, base_id) in loaded.items()
    }
    bases = {
        layer: DictionarySource(base, base_id.leading) for layer, (base, base_id) in loaded.items()
    }
    return Start(deltas, site, corrects, bases, percentile)
