"""Dictionaries from and for files that other programs read: checked before anything is made of them.

Site and scale: a foreign tool feeds a dictionary the plain tensor at a hook point, so a scale that a hook
site asks for is folded into the weights (`for_other_tools`).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder
from delta_transcoders.families.sites import HookSite


def dictionary_shapes(d_in: int, n_features: int, d_out: int) -> dict[str, tuple[int, ...]]:
    """Of a dictionary's five tensors, under our names and in our orientation."""
    return {
        "W_enc": (d_in, n_features),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_out),
        "b_dec": (d_out,),
        "threshold": (n_features,),
    }


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Refuse a file whose tensors are not exactly these.

    Args:
        source: where the expected sizes come from, for the message.

    Raises:
        ValueError: names the tensor, what it is and what was expected.
    """
    for name in shapes.keys() - tensors.keys():
        raise ValueError(f"{path}: {name} is missing; the file holds {sorted(tensors)}")
    for name in tensors.keys() - shapes.keys():
        raise ValueError(f"{path}: unexpected tensor {name}; expected are {sorted(shapes)}")
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            transposed = len(shape) == 2 and found == shape[::-1]
            raise ValueError(
                f"{path}: {name} has shape {list(found)}, expected {list(shape)} ({source})"
                + ("; it is transposed" if transposed else "")
            )


def to_transcoder(path: Path, tensors: Mapping[str, Tensor]) -> JumpReLUTranscoder:
    """The five tensors, under our names and in our orientation, as a float32 dictionary."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} has dtype {tensor.dtype}, expected a floating dtype")
    try:
        return JumpReLUTranscoder(**{k: t.float().contiguous() for k, t in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_d_model(path: Path, name: str, found: int, d_model: int | None) -> None:
    if d_model is not None and found != d_model:
        raise ValueError(
            f"{path}: {name} has d_model {found}, the model expects {d_model}; this dictionary "
            "belongs to another model"
        )


def for_other_tools(dictionary: JumpReLUTranscoder, site: HookSite) -> JumpReLUTranscoder:
    """The same function in float32, on plain tensors instead of the site's unit, with thresholds >= 0.

    With s the site's factor it is dictionary(s·x) / s: s goes into W_enc, 1/s into W_dec and b_dec;
    activations stay the same. A threshold below 0 acts as 0 here, but not everywhere: circuit-tracer's
    JumpReLU does not cut at 0 by itself.
    """
    t = {name: tensor.float() for name, tensor in dictionary.state_dict().items()}
    scale = site.factor(dictionary.d_in)
    return JumpReLUTranscoder(
        W_enc=t["W_enc"] * scale,
        b_enc=t["b_enc"],
        W_dec=t["W_dec"] / scale,
        b_dec=t["b_dec"] / scale,
        threshold=t["threshold"].clamp(min=0),
    )


def padded(dictionary: JumpReLUTranscoder, n_features: int) -> JumpReLUTranscoder:
    """The dictionary with features added at the end that never fire and write nothing.

    Their pre-activation is −1 whatever the input and their threshold 1: silent under JumpReLU, and under
    plain ReLU too.
    """
    n_new = n_features - dictionary.n_features
    if n_new < 0:
        raise ValueError(f"{dictionary.n_features} features cannot be padded to {n_features}")
    t = dictionary.state_dict()
    ones = t["b_enc"].new_ones(n_new)
    return JumpReLUTranscoder(
        W_enc=torch.cat([t["W_enc"], t["W_enc"].new_zeros(dictionary.d_in, n_new)], dim=1),
        b_enc=torch.cat([t["b_enc"], -ones]),
        W_dec=torch.cat([t["W_dec"], t["W_dec"].new_zeros(n_new, dictionary.d_out)]),
        b_dec=t["b_dec"],
        threshold=torch.cat([t["threshold"], ones]),
    )
