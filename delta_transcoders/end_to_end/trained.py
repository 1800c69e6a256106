"""Transcoders whose weights are trained, of which features can be taken away for good.

Shapes: I = d_in, D = d_out, F features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from delta_transcoders.dictionaries.delta import with_features
from delta_transcoders.dictionaries.stack import first_weights
from delta_transcoders.dictionaries.transcoder import Transcoder

TRAINED = ("W_enc", "b_enc", "W_dec")


class TrainedTranscoder(Transcoder):
    """A `Transcoder` whose encoder and decoder rows are parameters; thresholds stay, and there is no bias.

    A feature whose weights are all zero is silent, gets no gradient, and so stays silent: that is what
    `keep` leaves of the others.

    Args:
        transcoder: the first weights, JumpReLU; they are copied.

    Raises:
        ValueError: it has an output bias, a skip, or another activation.
    """

    def __init__(self, transcoder: Transcoder) -> None:
        if transcoder.activation != "jumprelu" or transcoder.W_skip is not None:
            raise ValueError("it is no JumpReLU dictionary without a skip")
        if transcoder.b_dec.any():
            raise ValueError("it has an output bias, which no budget of features counts")
        super().__init__(**{n: t.float().clone() for n, t in transcoder.state_dict().items()})
        for name in TRAINED:
            tensor = getattr(self, name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(tensor))

    @torch.no_grad()
    def keep(self, features: Collection[int]) -> None:
        """Silence all others."""
        kept_F = torch.zeros(self.n_features, dtype=torch.bool, device=self.W_enc.device)
        kept_F[list(features)] = True
        self.W_enc *= kept_F
        self.b_enc *= kept_F
        self.W_dec *= kept_F[:, None]


def alive(delta: Transcoder) -> Tensor:
    """Which features are not silent, bool [F]."""
    return (delta.W_enc != 0).any(0) | (delta.W_dec != 0).any(1) | (delta.b_enc != 0)


def from_scratch(d_model: int, n_features: int, layer: int, seed: int) -> Transcoder:
    """ReLU features with random unit encoder rows, which write nothing yet."""
    W_enc_FI, W_dec_FD = first_weights(
        seed, f"end_to_end/layer_{layer}", n_features, d_model, d_model, "zero"
    )
    return Transcoder(
        W_enc=W_enc_FI.T.contiguous(),
        b_enc=torch.zeros(n_features),
        W_dec=W_dec_FD,
        b_dec=torch.zeros(d_model),
        threshold=torch.zeros(n_features),
    )


def without_silent_features(tensors: Mapping[str, Tensor]) -> Transcoder:
    """A `TrainedTranscoder`'s state as a frozen transcoder of the features that are left.

    Where none is left it is one silent feature: other tools have no dictionaries without any.
    """
    whole = Transcoder(**{name: tensor.detach().cpu() for name, tensor in tensors.items()})
    (left,) = alive(whole).nonzero(as_tuple=True)
    return with_features(whole, left.tolist() or [0])
