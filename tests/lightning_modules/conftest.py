"""Deltas that nobody trained, for what is done with any that stand beside the base model's MLPs."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from delta_transcoders.dictionaries.delta import DeltaConfig, save_delta
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import GEMMA_SCOPE
from delta_transcoders.weights import StoredWeights

SaveTransplant = Callable[[Path, Mapping[int, Transcoder], Path, Path], Path]


@pytest.fixture(scope="session")
def random_delta():
    """`random_delta(d_model, n_features, seed, size)`: ReLU features with decoder rows of about this norm."""

    def make(d_model: int, n_features: int, seed: int, size: float) -> Transcoder:
        generator = torch.Generator().manual_seed(seed)
        W_enc_FD, W_dec_FD = torch.randn(2, n_features, d_model, generator=generator)
        return Transcoder(
            W_enc=W_enc_FD.T.contiguous() / d_model**0.5,
            b_enc=torch.zeros(n_features),
            W_dec=size * W_dec_FD / d_model**0.5,
            b_dec=torch.zeros(d_model),
            threshold=torch.zeros(n_features),
        )

    return make


@pytest.fixture(scope="session")
def save_transplant() -> SaveTransplant:
    """Write deltas by layer to a folder, as if trained end to end in a base model for a finetuned one."""

    def save(folder: Path, deltas: Mapping[int, Transcoder], base: Path, finetuned: Path) -> Path:
        n_features = sum(delta.n_features for delta in deltas.values())
        for layer, delta in deltas.items():
            hook_in, hook_out = GEMMA_SCOPE.names(layer)
            config = DeltaConfig(
                layer=layer,
                d_in=delta.d_in,
                d_out=delta.d_out,
                d_new=delta.n_features,
                base_id=str(base),
                base_hash=StoredWeights(str(base), "float32").fingerprint(),
                model_fingerprint=StoredWeights(str(finetuned), "float32").fingerprint(),
                hook_site="gemma_scope",
                hook_in=hook_in,
                hook_out=hook_out,
                sparsity={"mode": "budget", "n_features": n_features, "nmse_weight": 0.0},
                target="end_to_end_transplant",
                percentile=None,
                average_l0_base=None,
                seed=0,
                measured={},
            )
            save_delta(folder / f"layer_{layer}", delta, config)
        return folder

    return save
