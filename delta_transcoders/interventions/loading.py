"""From the folders of trained deltas to sources, refusing whatever does not belong together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from delta_transcoders.dictionaries.bases import check_held, load_base
from delta_transcoders.dictionaries.corrections import load_corrections
from delta_transcoders.dictionaries.delta import (
    END_TO_END,
    ON_DICTIONARIES,
    DeltaConfig,
    load_base_of,
    load_deltas,
    random_directions,
)
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families import ModelFamily, family_of
from delta_transcoders.families.sites import HOOK_SITES, HookSite
from delta_transcoders.fingerprints import check_hash, model_fingerprint
from delta_transcoders.interventions.intervention import Intervention, Term, Write
from delta_transcoders.interventions.sources import (
    AffineSource,
    DictionarySource,
    MLPSource,
    Source,
    mlp_sources,
)
from delta_transcoders.weights import StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DictionarySet:
    """The dictionaries of one configuration, by layer: deltas with their bases, or bases alone.

    Attributes:
        label: names the configuration, whatever its folder is called, as in `base@d32_p0.5`, and
            `n16_end_to_end_transplant` for 16 features over all layers.
        sources: by name, then by layer. `base` is what the delta corrects (a base dictionary, or the
            base model's MLP for a delta of the target `mlp_difference` or `end_to_end_transplant`); beside
            `delta` there is `random_delta`, see `random_directions`.
        layers: that have dictionaries, loaded (then they are in `sources`) or not.
        d_new, percentile, target: of the deltas; None where there are none. `d_new` is the features of each
            layer, or of all layers together for end-to-end deltas.
    """

    label: str
    site: HookSite
    sources: dict[str, dict[int, Source]]
    layers: Collection[int]
    d_new: int | None = None
    percentile: float | None = None
    target: str | None = None


@dataclass(frozen=True)
class ModelMLPs:
    """Another model's MLPs as sources, and whose they are."""

    fingerprint: str
    sources: dict[int, MLPSource]


def load_mlps(
    model: str, dtype: str, site: HookSite, layers: Collection[int] | None = None
) -> ModelMLPs:
    """A model's MLPs, from its folder or hub id; nothing else of it is loaded.

    Args:
        site: where x is read.
        layers: those to load; all where None.
    """
    weights = StoredWeights(model, dtype)
    if layers is None:
        layers = range(family_of(weights.config).n_layers)
    sources = mlp_sources(weights.with_layers(layers), layers, site)
    return ModelMLPs(weights.fingerprint(), sources)


def load_base_set(
    base_transcoders: str,
    layers: Collection[int],
    percentile: float,
    family: ModelFamily,
    base_files: str | None = None,
) -> DictionarySet:
    """Base dictionaries alone, at the site that their files name or where the model family's belong.

    Args:
        base_files: which kind, where there are several: `files` of `load_base`.
    """
    which = {"percentile": percentile, "files": base_files}
    check_held(base_transcoders, layers, **which)
    sources, site = {}, family.site
    for layer in layers:
        base, base_id = load_base(base_transcoders, layer, **which, d_model=family.d_model)
        sources[layer] = DictionarySource(base, base_id.leading)
        site = HOOK_SITES[base_id.hook_site] if base_id.hook_site else family.site
    return DictionarySet(
        f"p{percentile:g}",
        site,
        {"base": sources},
        layers,
        percentile=percentile,
    )


def load_delta_sets(
    folders: Sequence[str | Path],
    base_transcoders: str | None,
    model: PreTrainedModel,
    base_mlps: Callable[[HookSite], ModelMLPs] | None = None,
    layers: Collection[int] | None = None,
) -> list[DictionarySet]:
    """`load_delta_set` of each folder; what they have in common is computed and kept once.

    Args:
        layers: those to load; all where None.

    Raises:
        ValueError: two folders hold the same configuration; see `load_delta_set` too.
    """
    fingerprint = model_fingerprint(model)
    bases: dict[str, Source] = {}
    return _different(
        folders,
        lambda folder: load_delta_set(
            folder, base_transcoders, model, base_mlps, fingerprint, bases, layers
        ),
    )


def load_transplants(
    folders: Sequence[str | Path],
    finetuned: str,
    base: str,
    layers: Collection[int] | None = None,
) -> list[DictionarySet]:
    """`load_transplant` of each folder; errors as those of `load_delta_sets`."""
    return _different(folders, lambda folder: load_transplant(folder, finetuned, base, layers))


def _different(
    folders: Sequence[str | Path], load: Callable[[str | Path], DictionarySet]
) -> list[DictionarySet]:
    folder_of: dict[str, str | Path] = {}
    sets = []
    for folder in folders:
        loaded = load(folder)
        if loaded.label in folder_of:
            raise ValueError(
                f"{folder_of[loaded.label]} and {folder} both hold deltas of {loaded.label}: nothing "
                "would tell them apart in a table"
            )
        folder_of[loaded.label] = folder
        sets.append(loaded)
    return sets


def load_delta_set(
    folder: str | Path,
    base_transcoders: str | None,
    model: PreTrainedModel,
    base_mlps: Callable[[HookSite], ModelMLPs] | None = None,
    fingerprint: str | None = None,
    bases: dict[str, Source] | None = None,
    layers: Collection[int] | None = None,
) -> DictionarySet:
    """All `layer_L` of a folder that delta training wrote, or of a hub repository with its files.

    Args:
        folder: folder or hub id of the deltas.
        base_transcoders: folder or hub id of the bases; each must be the one a delta was trained on. None
            where the deltas correct the base model's MLPs.
        model: the finetuned model, bridged (`bridge.original_model`) or not.
        base_mlps: gives the base model's MLPs at a site, for deltas that correct no dictionary.
        fingerprint: the model's, where it is known already.
        bases: those loaded before, by hash; shared with this set, and added to.
        layers: those to load, where the folder has them; all where None.

    Raises:
        FileNotFoundError: no such folder, or no delta in it.
        ConnectionError: a hub id that cannot be had.
        ValueError: a delta of another model or another base, or several configurations in one
            folder; names both.
    """
    fingerprint = fingerprint or model_fingerprint(model)
    bases = {} if bases is None else bases
    deltas = load_deltas(folder, fingerprint)
    sources: dict[str, dict[int, Source]] = {"base": {}, "delta": {}, "random_delta": {}}
    for layer, (path, delta, config) in deltas.items():
        if layers is not None and layer not in layers:
            continue  # a base of 16,384 features takes 300 MB
        if config.target in ON_DICTIONARIES:
            sources["base"][layer] = _base_dictionary(path, config, base_transcoders, bases)
        else:
            sources["base"][layer] = _base_mlp(path, config, base_mlps)
        sources["delta"][layer] = DictionarySource(delta)
        sources["random_delta"][layer] = DictionarySource(random_directions(delta, seed=layer))
    return _set_of(deltas, sources)


def load_delta_alone(
    folder: str | Path, fingerprint: str, layers: Collection[int] | None = None
) -> DictionarySet:
    """As `load_delta_set`, but without what the deltas correct: for a delta that is taken out.

    Args:
        fingerprint: of the finetuned model.
    """
    deltas = load_deltas(folder, fingerprint)
    sources: dict[str, dict[int, Source]] = {"delta": {}, "random_delta": {}}
    for layer, (_, delta, _) in deltas.items():
        if layers is None or layer in layers:
            sources["delta"][layer] = DictionarySource(delta)
            sources["random_delta"][layer] = DictionarySource(random_directions(delta, seed=layer))
    return _set_of(deltas, sources)


def load_transplant(
    folder: str | Path, finetuned: str, base: str, layers: Collection[int] | None = None
) -> DictionarySet:
    """Deltas that may be added to the base model's MLPs: those of the difference to these very MLPs.

    Args:
        finetuned: fingerprint of the model that the deltas must be of.
        base: fingerprint of the base model.
        layers: as of `load_delta_set`.

    Raises:
        ValueError: deltas that correct a dictionary, of another finetuned model or beside another base model.
        FileNotFoundError, ConnectionError: as `load_delta_set`.
    """
    for path, _, config in load_deltas(folder).values():
        check_transplant(path, config, finetuned, base)
    return load_delta_alone(folder, finetuned, layers)


def check_transplant(path: Path, config: DeltaConfig, finetuned: str, base: str) -> None:
    """Refuse a delta that the base model's MLPs have no use for; errors as `load_transplant`'s."""
    if config.target in ON_DICTIONARIES:
        raise ValueError(
            f"{path} has the target {config.target!r}: it also repairs what a dictionary gets wrong, and "
            "base MLPs need no such repairs. Transplant a delta of the target mlp_difference or "
            "end_to_end_transplant"
        )
    for whose, of, recorded, found in (
        ("finetuned", "the finetuned model", config.model_fingerprint, finetuned),
        ("base", "the base model", config.base_hash, base),
    ):
        check_hash(f"{path} was trained with another {whose} model", recorded, of, found)


def _set_of(
    deltas: Mapping[int, tuple[Path, Transcoder, DeltaConfig]],
    sources: dict[str, dict[int, Source]],
) -> DictionarySet:
    config = next(config for _, _, config in deltas.values())
    # Features of a layer, or of all layers where they share a budget.
    is_end_to_end = config.target in END_TO_END
    d_new = config.sparsity["n_features"] if is_end_to_end else config.d_new
    label = f"n{d_new}" if is_end_to_end else f"d{d_new}"
    label += "" if config.percentile is None else f"_p{config.percentile:g}"
    return DictionarySet(
        label if config.target == "residual" else f"{label}_{config.target}",
        HOOK_SITES[config.hook_site],
        sources,
        deltas.keys(),
        d_new,
        config.percentile,
        config.target,
    )


def load_control(folder: str | Path, site: HookSite, d_model: int) -> dict[int, Source]:
    """A control's sources by layer: deltas of any model (`delta.safetensors`), or affine corrections.

    A control may be trained on another model than the one it is tried in: that is its point.

    Raises:
        FileNotFoundError: neither of the two in the folder.
        ValueError: made for another hook site or width; names both.
    """
    if any(Path(folder).glob("layer_*/correction.safetensors")):
        corrections = load_corrections(folder)
        found = {layer: (c.hook_site, c.d_in) for layer, (_, c) in corrections.items()}
        sources = {
            layer: AffineSource(correction) for layer, (correction, _) in corrections.items()
        }
    else:
        deltas = load_deltas(folder)
        found = {layer: (config.hook_site, config.d_in) for layer, (_, _, config) in deltas.items()}
        sources = {layer: DictionarySource(delta) for layer, (_, delta, _) in deltas.items()}
    for layer, of_layer in found.items():
        if of_layer != (site.name, d_model):
            raise ValueError(
                f"{folder}, layer {layer}: made for hook site {of_layer[0]!r} and d_model "
                f"{of_layer[1]}, the experiment has {site.name!r} and {d_model}"
            )
    return sources


def _base_dictionary(
    path: Path, config: DeltaConfig, base_transcoders: str | None, bases: dict[str, Source]
) -> Source:
    if base_transcoders is None:
        raise ValueError(f"{path} corrects a base dictionary: give base_transcoders with it")
    if config.base_hash not in bases:
        base, base_id = load_base_of(path, config, base_transcoders)
        bases[config.base_hash] = DictionarySource(base, base_id.leading)
    return bases[config.base_hash]


def _base_mlp(
    path: Path, config: DeltaConfig, base_mlps: Callable[[HookSite], ModelMLPs] | None
) -> Source:
    if base_mlps is None:
        raise ValueError(f"{path} corrects the base model's MLP: the base model is needed with it")
    mlps = base_mlps(HOOK_SITES[config.hook_site])
    problem = f"{path} was trained on the MLPs of another base model"
    check_hash(problem, config.base_hash, "this one", mlps.fingerprint)
    return mlps.sources[config.layer]


def relabel(intervention: Intervention, label: str, names: set[str]) -> Intervention:
    """The intervention with each source in `names` replaced by that of one `DictionarySet`.

    >>> write = Write(0.0, (Term("base"), Term("base_mlp", -1.0)))
    >>> relabel(Intervention("x", {0: write}), "d32", {"base"}).writes[0].terms[0].source
    'base@d32'
    """
    writes = {}
    for layer, write in intervention.writes.items():
        terms = tuple(
            Term(
                f"{term.source}@{label}" if term.source in names else term.source,
                term.coefficient,
                term.keep_features,
                term.drop_features,
            )
            for term in write.terms
        )
        writes[layer] = Write(write.keep, terms)
    return Intervention(intervention.condition, writes, intervention.alpha)
