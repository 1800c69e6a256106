"""A frozen transcoder: the dictionary that is read, written, exported and intervened with.

Site and units are those of its hook site (`identity.BaseId` says which); what a public set scales its
inputs and outputs by is the dictionary's own affair, `scale_in` and `scale_out`.

Shapes: I = d_in, D = d_out, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from delta_transcoders.fingerprints import hash_tensors

Activation = Literal["jumprelu", "relu", "topk", "relu_topk"]
"""`topk` keeps the k largest pre-activations whatever their sign, `relu_topk` those of them above 0."""

# Columns of the encoder that are converted at once: a float32 copy of 163,840 features of width 1,024
# would take as much memory again as the half-precision dictionary.
CONVERTED_FEATURES = 2**14
# From so many features on, only the decoder rows of active ones are read.
WIDE = 2**16


def rows_at_once(n_features: int) -> int:
    """Tokens that go through a dictionary at once: their float32 activations are 134 MB.

    >>> [rows_at_once(n) for n in (1024, 16384, 163840)]
    [32768, 2048, 204]
    """
    return max(1, 2**25 // max(1, n_features))


class Transcoder(nn.Module):
    """a = act(s_in·x @ W_enc + b_enc); output = s_out · (a @ W_dec + b_dec + s_in·x @ W_skip).

    Computed in float32 whatever the tensors are stored in.

    Attributes (tensors are buffers, so nothing here is ever trained):
        W_enc: [d_in, n_features]
        b_enc: [n_features]
        W_dec: [n_features, d_out]
        b_dec: [d_out]
        threshold: [n_features], of JumpReLU: z where z > threshold and z > 0, else 0; None for the others.
        W_skip: [d_in, d_out], or None.
        activation, k: what `act` is; k of the two TopK's alone.
        scale_in, scale_out: s_in and s_out.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None
    W_skip: Tensor | None

    def __init__(
        self,
        *,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        threshold: Tensor | None = None,
        W_skip: Tensor | None = None,
        activation: Activation = "jumprelu",
        k: int | None = None,
        scale_in: float = 1.0,
        scale_out: float = 1.0,
    ):
        super().__init__()
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        tensors |= {"threshold": threshold, "W_skip": W_skip}
        _check_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})
        for name, tensor in tensors.items():
            self.register_buffer(name, None if tensor is None else tensor.detach())
        self.activation, self.k = activation, k
        self.scale_in, self.scale_out = scale_in, scale_out
        if activation not in get_args(Activation):
            raise ValueError(
                f"activation is {activation!r}, expected one of {get_args(Activation)}"
            )
        if (threshold is not None) != (activation == "jumprelu"):
            raise ValueError(
                f"activation is {activation!r} and the threshold is "
                f"{'missing' if threshold is None else 'given'}; JumpReLU has one, the others have none"
            )
        n_features = self.n_features
        if "topk" not in activation and k is not None:
            raise ValueError(f"k is {k}, and activation {activation!r} has none")
        if "topk" in activation and not (type(k) is int and 0 < k <= n_features):
            raise ValueError(f"k is {k!r}, expected a whole number from 1 to {n_features}")

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
        """x [..., d_in] to activations [..., n_features], all of them >= 0 but for `topk`."""
        z = self._preactivations(self._scaled(x))
        if self.activation == "jumprelu":
            return torch.where((z > self.threshold) & (z > 0), z, 0)
        if self.activation != "topk":
            z = z.relu()
        if self.k is None:
            return z
        values, features = z.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(z).scatter_(-1, features, values)

    def decode(self, a: Tensor, x: Tensor | None = None) -> Tensor:
        """Activations [..., n_features] to [..., d_out].

        Args:
            x: what they were encoded from, [..., d_in]; needed where there is a skip.
        """
        W_dec = self.W_dec
        if self.n_features >= WIDE or W_dec.dtype != a.dtype:
            active = (a != 0).reshape(-1, self.n_features).any(0).nonzero()[:, 0]
            a, W_dec = a[..., active], W_dec[active].to(a.dtype)
        out = a @ W_dec + self.b_dec
        if self.W_skip is not None:
            if x is None:
                raise ValueError("this transcoder has a skip: decode(a, x) needs the input too")
            out = out + self._scaled(x) @ self.W_skip.to(out.dtype)
        return out if self.scale_out == 1 else out * self.scale_out

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] to [..., d_out]."""
        return self.decode(self.encode(x), x)

    def reconstruct(self, x_NI: Tensor) -> tuple[Tensor, Tensor]:
        """The output [N, D] and the number of active features, summed over the N.

        Wide dictionaries take `rows_at_once`.
        """
        outputs, n_active = [], 0
        for part_NI in x_NI.split(rows_at_once(self.n_features)):
            a_NF = self.encode(part_NI)
            outputs.append(self.decode(a_NF, part_NI))
            n_active = n_active + (a_NF != 0).sum()
        return torch.cat(outputs), n_active

    def fingerprint(self) -> str:
        """Hash of the tensors, and of what else says which function this is where it is not JumpReLU."""
        scales = {"scale_in": self.scale_in, "scale_out": self.scale_out}
        numbers = {name: scale for name, scale in scales.items() if scale != 1}
        if self.k is not None:
            numbers |= {"k": self.k, "signed": self.activation == "topk"}
        return hash_tensors(
            self.state_dict()
            | {name: torch.tensor(n, dtype=torch.float64) for name, n in numbers.items()}
        )

    def _scaled(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(self.W_enc.dtype, torch.float32))
        return x if self.scale_in == 1 else x * self.scale_in

    def _preactivations(self, x: Tensor) -> Tensor:
        if self.W_enc.dtype == x.dtype:
            return x @ self.W_enc + self.b_enc
        parts = zip(
            self.W_enc.split(CONVERTED_FEATURES, 1),
            self.b_enc.split(CONVERTED_FEATURES),
            strict=True,
        )
        return torch.cat([x @ W.to(x.dtype) + b.to(x.dtype) for W, b in parts], dim=-1)


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not a transcoder's, under our names and in our orientation.

    Raises:
        ValueError: names the tensor, what it is and what was expected.
    """
    for name in ("W_enc", "W_dec"):
        if tensors[name].ndim != 2:
            raise ValueError(
                f"{name} has shape {list(tensors[name].shape)}, expected a matrix: W_enc is "
                "[d_in, n_features], W_dec is [n_features, d_out]"
            )
    (d_in, n_features), d_out = tensors["W_enc"].shape, tensors["W_dec"].shape[1]
    expected = {
        "W_enc": ("[d_in, n_features]", (d_in, n_features)),
        "b_enc": ("[n_features]", (n_features,)),
        "W_dec": ("[n_features, d_out]", (n_features, d_out)),
        "b_dec": ("[d_out]", (d_out,)),
        "threshold": ("[n_features]", (n_features,)),
        "W_skip": ("[d_in, d_out]", (d_in, d_out)),
    }
    dtype = tensors["W_enc"].dtype
    for name, tensor in tensors.items():
        meaning, shape = expected[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, expected {meaning} = {list(shape)}"
            )
        if tensor.dtype != dtype or not tensor.is_floating_point():
            raise ValueError(
                f"{name} has dtype {tensor.dtype}; all tensors must share one floating dtype (W_enc "
                f"has {dtype})"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} (expected shape {meaning}) holds NaN or infinite values")


def concatenate(first: Transcoder, second: Transcoder, alpha: float = 1.0) -> Transcoder:
    """One transcoder that computes first(x) + alpha · second(x), exactly up to float rounding.

    Features and thresholds are stacked and alpha goes into the second's decoder: JumpReLU, and ReLU as
    JumpReLU at threshold 0, act on each feature alone, so nothing is approximated, whatever the sign of
    alpha. The result is float32, with the scales in its weights.

    Raises:
        ValueError: other widths; or TopK, where the features of the one decide which of the other's are
            kept.
    """
    if (first.d_in, first.d_out) != (second.d_in, second.d_out):
        raise ValueError(
            f"cannot concatenate [d_in, d_out] = {[first.d_in, first.d_out]} with "
            f"{[second.d_in, second.d_out]}"
        )
    for transcoder in (first, second):
        if transcoder.k is not None:
            raise ValueError(
                f"a TopK transcoder (k {transcoder.k}) cannot be joined with another: which of its "
                "features are kept would depend on the other's"
            )
    a, b = unscaled(first), unscaled(second)
    skips = [t["W_skip"] * c for t, c in ((a, 1.0), (b, alpha)) if "W_skip" in t]
    return Transcoder(
        W_enc=torch.cat([a["W_enc"], b["W_enc"]], dim=1),
        b_enc=torch.cat([a["b_enc"], b["b_enc"]]),
        W_dec=torch.cat([a["W_dec"], alpha * b["W_dec"]]),
        b_dec=a["b_dec"] + alpha * b["b_dec"],
        threshold=torch.cat([t.get("threshold", torch.zeros_like(t["b_enc"])) for t in (a, b)]),
        W_skip=sum(skips) if skips else None,
    )


def unscaled(transcoder: Transcoder) -> dict[str, Tensor]:
    """Its tensors in float32, with both scales in the weights."""
    s_in, s_out = transcoder.scale_in, transcoder.scale_out
    factors = {"W_enc": s_in, "W_dec": s_out, "b_dec": s_out, "W_skip": s_in * s_out}
    return {
        n: t.float() if factors.get(n, 1) == 1 else t.float() * factors[n]  # no second copy
        for n, t in transcoder.state_dict().items()
    }
