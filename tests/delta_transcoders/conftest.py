"""A random study: bases of every layer, deltas of some, for the tiny random Gemma 2."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from delta_transcoders.activations.hook_sites import HOOK_SITES
from delta_transcoders.fingerprints import hash_tensors, model_fingerprint
from delta_transcoders.language_models import load_model
from delta_transcoders.transcoders.delta import DeltaConfig, save_delta
from delta_transcoders.transcoders.gemma_scope import params_path, save_base
from delta_transcoders.transcoders.jumprelu import JumpReLUTranscoder

D_MODEL = 32


def random_dictionary(n_features: int, seed: int, d_model: int = D_MODEL) -> JumpReLUTranscoder:
    """Its first threshold is below 0, and acts as 0."""
    generator = torch.Generator().manual_seed(seed)
    threshold = torch.rand(n_features, generator=generator)
    threshold[0] = -0.2
    return JumpReLUTranscoder(
        W_enc=torch.randn(d_model, n_features, generator=generator),
        b_enc=torch.randn(n_features, generator=generator),
        W_dec=torch.randn(n_features, d_model, generator=generator),
        b_dec=torch.randn(d_model, generator=generator),
        threshold=threshold,
    )


@dataclass(frozen=True)
class RandomStudy:
    folder: Path
    model: str
    bases: dict[int, JumpReLUTranscoder]
    deltas: dict[int, JumpReLUTranscoder]
    configs: dict[int, DeltaConfig]

    def variant(self, folder: Path, **changes) -> Path:
        """The deltas with another configuration, in a folder of their own."""
        for layer, delta in self.deltas.items():
            save_delta(folder / f"layer_{layer}", delta, replace(self.configs[layer], **changes))
        return folder


@pytest.fixture(scope="session")
def random_study(tmp_path_factory, model_folder) -> RandomStudy:
    """Read only. Three layers, the last with a wider base; the middle one has no delta."""
    folder = tmp_path_factory.mktemp("random_study")
    fingerprint = model_fingerprint(load_model(model_folder))
    bases = {layer: random_dictionary(width, layer) for layer, width in enumerate((40, 40, 48))}
    deltas, configs = {layer: random_dictionary(6, 10 + layer) for layer in (0, 2)}, {}
    for layer, base in bases.items():
        save_base(folder / "base_transcoders", layer, base, 8 + layer)
    for layer, delta in deltas.items():
        hook_in, hook_out = HOOK_SITES["gemma_scope"].names(layer)
        path = params_path(layer, bases[layer].n_features, 8 + layer)
        configs[layer] = DeltaConfig(
            layer=layer,
            d_in=D_MODEL,
            d_out=D_MODEL,
            d_new=6,
            base_id=f"{folder}/base_transcoders/{path}",
            base_hash=hash_tensors(bases[layer].state_dict()),
            model_fingerprint=fingerprint,
            hook_site="gemma_scope",
            hook_in=hook_in,
            hook_out=hook_out,
            sparsity={"mode": "batch_topk", "l0": 2},
            target="residual",
            percentile=0.5,
            average_l0_base=8 + layer,
            seed=0,
            measured={"l0_delta": 1.6},
        )
        save_delta(folder / "delta" / f"layer_{layer}", delta, configs[layer])
    return RandomStudy(folder, model_folder, bases, deltas, configs)
