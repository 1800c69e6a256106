"""Base dictionaries without training: random features, and a decoder fitted to what an MLP writes."""

from __future__ import annotations

import torch
from torch import Tensor

from delta_transcoders.dictionaries.transcoder import Activation, Transcoder


def fitted_dictionary(
    x_NI: Tensor,
    y_ND: Tensor,
    n_features: int,
    average_l0: int,
    seed: int,
    activation: Activation = "jumprelu",
    skip: bool = False,
) -> Transcoder:
    """A transcoder of an MLP, float32: poor on other tokens than these, but made for its hook site.

    Args:
        x_NI: inputs at the hook site, N tokens.
        y_ND: outputs.
        average_l0: active features per token, of TopK its k; of ReLU half of them are.
        seed: of the encoder's random unit rows, and of its biases where it is not JumpReLU.
    """
    x_NI, y_ND = x_NI.float(), y_ND.float()
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(x_NI.shape[1], n_features, generator=generator)
    W_enc /= W_enc.norm(dim=0)
    z_NF = x_NI @ W_enc
    b_enc, options = torch.zeros(n_features), {}
    if activation == "jumprelu":
        # An order statistic; torch's quantile takes 16 million numbers at most.
        place = round(z_NF.numel() * (1 - average_l0 / n_features))
        threshold = z_NF.flatten().kthvalue(place).values.clamp_min(0)
        options["threshold"] = threshold.expand(n_features).clone()
    else:  # without biases their features would not know the unit of x
        b_enc = z_NF.std() * torch.randn(n_features, generator=generator)
    if "topk" in activation:
        options["k"] = average_l0
    # Ridge regression, solved for the tokens, which are fewer than the features.
    b_dec = y_ND.mean(0)
    rest_ND = y_ND - b_dec
    if skip:
        options["W_skip"] = torch.linalg.lstsq(x_NI, rest_ND).solution
        rest_ND = rest_ND - x_NI @ options["W_skip"]
    W_dec = torch.zeros(n_features, y_ND.shape[1])
    parts = {"W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec, "activation": activation, **options}
    a_NF = Transcoder(W_dec=W_dec, **parts).encode(x_NI)
    gram_NN = a_NF @ a_NF.T
    gram_NN += gram_NN.diagonal().mean() * 1e-2 * torch.eye(len(gram_NN))
    return Transcoder(W_dec=a_NF.T @ torch.linalg.solve(gram_NN, rest_ND), **parts)
