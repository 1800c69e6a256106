"""Base dictionaries without training: random features, and a decoder fitted to what an MLP writes."""

from __future__ import annotations

import torch
from torch import Tensor

from delta_transcoders.dictionaries.transcoder import Transcoder


def fitted_dictionary(
    x_NI: Tensor, y_ND: Tensor, n_features: int, average_l0: float, seed: int
) -> Transcoder:
    """A transcoder of an MLP, float32: poor on other tokens than these, but made for its hook site.

    Args:
        x_NI: inputs at the hook site, N tokens.
        y_ND: outputs.
        average_l0: active features per token.
        seed: of the encoder's random unit rows.
    """
    x_NI, y_ND = x_NI.float(), y_ND.float()
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(x_NI.shape[1], n_features, generator=generator)
    W_enc /= W_enc.norm(dim=0)
    z_NF = x_NI @ W_enc
    # An order statistic; torch's quantile takes 16 million numbers at most.
    threshold = z_NF.flatten().kthvalue(round(z_NF.numel() * (1 - average_l0 / n_features))).values
    a_NF = torch.where(z_NF > threshold, z_NF, 0)
    # Ridge regression, solved for the tokens, which are fewer than the features.
    b_dec = y_ND.mean(0)
    gram_NN = a_NF @ a_NF.T
    gram_NN += gram_NN.diagonal().mean() * 1e-2 * torch.eye(len(gram_NN))
    return Transcoder(
        W_enc=W_enc,
        b_enc=torch.zeros(n_features),
        W_dec=a_NF.T @ torch.linalg.solve(gram_NN, y_ND - b_dec),
        b_dec=b_dec,
        threshold=threshold.clamp_min(0).expand(n_features).clone(),
    )
