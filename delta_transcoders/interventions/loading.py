"""From the folders of trained deltas to sources, refusing whatever does not belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from delta_transcoders.activations.hook_sites import HOOK_SITES, HookSite
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.interventions.intervention import Intervention, Term, Write
from delta_transcoders.interventions.sources import DictionarySource, Source
from delta_transcoders.transcoders.delta import DeltaConfig, load_delta
from delta_transcoders.transcoders.gemma_scope import base_width, load_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DeltaSet:
    """The deltas of one configuration (d_new, percentile), one per layer, with their bases.

    Attributes:
        configs: by layer.
        sources: `base` and `delta`, each by layer.
    """

    configs: dict[int, DeltaConfig]
    sources: dict[str, dict[int, Source]]

    @property
    def site(self) -> HookSite:
        return HOOK_SITES[next(iter(self.configs.values())).hook_site]

    @property
    def d_new(self) -> int:
        return next(iter(self.configs.values())).d_new

    @property
    def percentile(self) -> float | None:
        return next(iter(self.configs.values())).percentile

    @property
    def label(self) -> str:
        """Names the configuration, whatever its folder is called, as in `base@d32_p0.5`."""
        return f"d{self.d_new}" + ("" if self.percentile is None else f"_p{self.percentile:g}")


def load_delta_sets(
    folders: Sequence[str | Path], base_transcoders: str, model: PreTrainedModel
) -> list[DeltaSet]:
    """`load_delta_set` of each folder; what they have in common is computed and kept once.

    Raises:
        ValueError: two folders hold the same configuration; see `load_delta_set` too.
    """
    fingerprint = model_fingerprint(model)
    bases: dict[str, Source] = {}
    folder_of: dict[str, str | Path] = {}
    sets = []
    for folder in folders:
        loaded = load_delta_set(folder, base_transcoders, model, fingerprint, bases)
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
    base_transcoders: str,
    model: PreTrainedModel,
    fingerprint: str | None = None,
    bases: dict[str, Source] | None = None,
) -> DeltaSet:
    """All `layer_L` of a folder that delta training wrote.

    Args:
        base_transcoders: folder or hub id of the bases; each must be the one a delta was trained on.
        model: the finetuned model, as loaded (no bridge).
        fingerprint: the model's, where it is known already.
        bases: those loaded before, by hash; shared with this set, and added to.

    Raises:
        FileNotFoundError: no delta in the folder.
        ValueError: a delta of another model or another base, or several configurations in one
            folder; names both.
    """
    folder = Path(folder)
    layers = sorted(folder.glob("layer_*"), key=lambda p: int(p.name.removeprefix("layer_")))
    if not layers:
        raise FileNotFoundError(f"{folder} holds no layer_L folders; `train.py` writes deltas")
    fingerprint = fingerprint or model_fingerprint(model)
    bases = {} if bases is None else bases
    configs: dict[int, DeltaConfig] = {}
    sources: dict[str, dict[int, Source]] = {"base": {}, "delta": {}}
    for path in layers:
        delta, config = load_delta(path)
        if config.model_fingerprint != fingerprint:
            raise ValueError(
                f"{path} was trained on another model: fingerprint {config.model_fingerprint[:12]}…, "
                f"this model's is {fingerprint[:12]}…"
            )
        if path.name != f"layer_{config.layer}":
            raise ValueError(f"{path} holds the delta of layer {config.layer}")
        if config.base_hash not in bases:
            base, base_id = load_base(
                base_transcoders,
                config.layer,
                width=base_width(config.base_id),
                average_l0=config.average_l0_base,
                d_model=config.d_in,
            )
            if base_id.hash != config.base_hash:
                raise ValueError(
                    f"{path} was trained on another base dictionary: hash {config.base_hash[:12]}…, "
                    f"{base_id.path} has {base_id.hash[:12]}…"
                )
            bases[config.base_hash] = DictionarySource(base)
        configs[config.layer] = config
        sources["base"][config.layer] = bases[config.base_hash]
        sources["delta"][config.layer] = DictionarySource(delta)
    for name in ("hook_site", "d_new", "percentile"):
        values = {getattr(config, name) for config in configs.values()}
        if len(values) > 1:
            found = ", ".join(sorted(map(str, values)))
            raise ValueError(f"{folder}: the deltas' {name} differs between layers: {found}")
    return DeltaSet(configs, sources)


def relabel(intervention: Intervention, label: str, names: set[str]) -> Intervention:
    """The intervention with each source in `names` replaced by that of one `DeltaSet`.

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
