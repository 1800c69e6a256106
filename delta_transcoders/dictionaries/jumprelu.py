"""A frozen JumpReLU transcoder: the dictionary that is read, written, exported and intervened with.

Site and units (Gemma 2, TransformerLens names): x is `blocks.L.ln2.hook_normalized` (RMS about 1,
before the gain), the output is in the units of `blocks.L.hook_mlp_out`; nothing is rescaled here.
"""

import torch
from torch import Tensor, nn


class JumpReLUTranscoder(nn.Module):
    """a = z · (z > threshold) · (z > 0) with z = x @ W_enc + b_enc; output = a @ W_dec + b_dec.

    Attributes (buffers, so nothing here is ever trained):
        W_enc: [d_in, n_features]
        b_enc: [n_features]
        W_dec: [n_features, d_out]
        b_dec: [d_out]
        threshold: [n_features]
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    def __init__(
        self, *, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, threshold: Tensor
    ):
        super().__init__()
        tensors = {
            "W_enc": W_enc,
            "b_enc": b_enc,
            "W_dec": W_dec,
            "b_dec": b_dec,
            "threshold": threshold,
        }
        for name, n_dims in (("W_enc", 2), ("W_dec", 2)):
            if tensors[name].ndim != n_dims:
                raise ValueError(
                    f"{name} has shape {list(tensors[name].shape)}, expected a matrix: W_enc is "
                    "[d_in, n_features], W_dec is [n_features, d_out]"
                )
        (d_in, n_features), d_out = W_enc.shape, W_dec.shape[1]
        expected = {
            "W_enc": ("[d_in, n_features]", (d_in, n_features)),
            "b_enc": ("[n_features]", (n_features,)),
            "W_dec": ("[n_features, d_out]", (n_features, d_out)),
            "b_dec": ("[d_out]", (d_out,)),
            "threshold": ("[n_features]", (n_features,)),
        }
        for name, tensor in tensors.items():
            meaning, shape = expected[name]
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}, expected {meaning} = {list(shape)}"
                )
            if tensor.dtype != W_enc.dtype or not tensor.is_floating_point():
                raise ValueError(
                    f"{name} has dtype {tensor.dtype}; all five tensors must share one floating "
                    f"dtype (W_enc has {W_enc.dtype})"
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} (expected shape {meaning}) holds NaN or infinite values")
            self.register_buffer(name, tensor.detach())

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        """x [..., d_in] to activations [..., n_features], all of them >= 0."""
        z = x @ self.W_enc + self.b_enc
        return torch.where((z > self.threshold) & (z > 0), z, 0)

    def decode(self, a: Tensor) -> Tensor:
        """Activations [..., n_features] to [..., d_out]."""
        return a @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] to [..., d_out]."""
        return self.decode(self.encode(x))


def concatenate(
    first: JumpReLUTranscoder, second: JumpReLUTranscoder, alpha: float = 1.0
) -> JumpReLUTranscoder:
    """One transcoder that computes first(x) + alpha · second(x), exactly up to float rounding.

    Features and thresholds are stacked and alpha goes into the second's decoder: JumpReLU acts on
    each feature alone, so nothing is approximated, whatever the sign of alpha.
    """
    if (first.d_in, first.d_out) != (second.d_in, second.d_out):
        raise ValueError(
            f"cannot concatenate [d_in, d_out] = {[first.d_in, first.d_out]} with "
            f"{[second.d_in, second.d_out]}"
        )
    return JumpReLUTranscoder(
        W_enc=torch.cat([first.W_enc, second.W_enc], dim=1),
        b_enc=torch.cat([first.b_enc, second.b_enc]),
        W_dec=torch.cat([first.W_dec, alpha * second.W_dec]),
        b_dec=first.b_dec + alpha * second.b_dec,
        threshold=torch.cat([first.threshold, second.threshold]),
    )
