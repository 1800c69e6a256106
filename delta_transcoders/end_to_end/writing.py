"""End-to-end deltas as the files that every delta is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from delta_transcoders.dictionaries.delta import DeltaConfig, save_delta
from delta_transcoders.end_to_end.starting import Start
from delta_transcoders.end_to_end.student import Kind
from delta_transcoders.end_to_end.trained import without_silent_features


def write_deltas(
    folder: Path,
    student: Kind,
    start: Start,
    weights: Mapping[str, Tensor],
    measured: Mapping[int, dict[str, float]],
    *,
    n_features: int,
    nmse_weight: float,
    model_fingerprint: str,
    seed: int,
) -> None:
    """Write `layer_L/` for every layer, with the features that are left.

    Args:
        weights: `state_dict` of `DictionarySource`s of `TrainedTranscoder`s by layer.
        measured: by layer.
        n_features: the budget, over all layers.
    """
    for layer in start.deltas:
        prefix = f"{layer}.transcoder."
        delta = without_silent_features(
            {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        )
        base = start.corrects[layer]
        hook_in, hook_out = start.site.names(layer)
        config = DeltaConfig(
            layer=layer,
            d_in=delta.d_in,
            d_out=delta.d_out,
            d_new=delta.n_features,
            base_id=base.path,
            base_file=base.file,
            base_hash=base.hash,
            model_fingerprint=model_fingerprint,
            hook_site=start.site.name,
            hook_in=hook_in,
            hook_out=hook_out,
            sparsity={"mode": "budget", "n_features": n_features, "nmse_weight": nmse_weight},
            target=f"end_to_end_{student}",
            percentile=start.percentile,
            average_l0_base=base.average_l0,
            seed=seed,
            measured=measured[layer],
        )
        save_delta(folder / f"layer_{layer}", delta, config)
