"""What the readers and writers of dictionary files share: checks, hook points, and folding of scales.

A foreign tool feeds a dictionary the plain tensor at a hook point, so a scale that a hook site asks for is
folded into the weights (`for_other_tools`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from delta_transcoders.dictionaries.files.listing import Entry, Files
from delta_transcoders.dictionaries.identity import L0, BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder, unscaled
from delta_transcoders.families.sites import HookSite, site_between

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEADING_OF_GEMMA_3_INSTRUCT = 4
"""Gemma Scope 2 was not trained on what opens every chat; circuit-tracer, too, goes by the model's name."""


def site_of(path: Path, hook_in: Any, hook_out: Any) -> HookSite:
    """`sites.site_between` of what a file names; errors name the file."""
    try:
        return site_between(hook_in, hook_out)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_transcoder(
    path: Path,
    stored: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
    *,
    names: Mapping[str, str] = MappingProxyType({}),
    transposed: Collection[str] = (),
    **options: Any,
) -> Transcoder:
    """The transcoder of a file's tensors; refuses one whose tensors are not exactly these.

    Args:
        shapes: by our names, and in our orientation.
        source: where the expected sizes come from, for messages.
        names: what the file calls a tensor, where that is not our name.
        transposed: those that the file holds the other way round, by our names.
        options: of `Transcoder`.

    Raises:
        ValueError: names the file, the tensor, what it is and what was expected.
    """
    named = {names.get(name, name): name for name in shapes}
    for name in named.keys() - stored.keys():
        raise ValueError(f"{path}: {name} is missing; the file holds {sorted(stored)}")
    for name in stored.keys() - named.keys():
        raise ValueError(f"{path}: unexpected tensor {name}; expected are {sorted(named)}")
    tensors = {}
    for name, ours in named.items():
        tensor, expected = stored[name], shapes[ours]
        if ours in transposed:
            expected = expected[::-1]
        found = tuple(tensor.shape)
        if found != expected:
            raise ValueError(
                f"{path}: {name} has shape {list(found)}, expected {list(expected)} ({source})"
                + ("; it is transposed" if len(found) == 2 and found == expected[::-1] else "")
            )
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{path}: {name} has dtype {tensor.dtype}, expected float32, bfloat16 or float16"
            )
        tensors[ours] = tensor.T if ours in transposed else tensor
    try:
        return Transcoder(**tensors, **options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def dictionary_shapes(
    d_in: int, n_features: int, d_out: int, threshold: bool = True, skip: bool = False
) -> dict[str, tuple[int, ...]]:
    """Of a dictionary's tensors, under our names and in our orientation."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, n_features),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_out),
        "b_dec": (d_out,),
    }
    if threshold:
        shapes["threshold"] = (n_features,)
    if skip:
        shapes["W_skip"] = (d_in, d_out)
    return shapes


def vector_lengths(path: Path, tensors: Mapping[str, Tensor], *names: str) -> list[int]:
    """
    Raises:
        ValueError: one is missing, not a vector, or empty.
    """
    for name in names:
        if name not in tensors:
            raise ValueError(f"{path}: {name} is missing; the file holds {sorted(tensors)}")
        if tensors[name].ndim != 1 or not len(tensors[name]):
            raise ValueError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, expected a vector that is not empty"
            )
    return [len(tensors[name]) for name in names]


def identify(
    files: Files,
    entry: Entry,
    transcoder: Transcoder,
    site: HookSite | None,
    *,
    average_l0: L0 | None = None,
    leading: int = 1,
    base_model: Any = None,
) -> BaseId:
    """What a reader has found out about a dictionary, with what the dictionary says itself.

    Args:
        leading: as the layout has it, whatever the model.
        base_model: what the file holds, which may be anything.
    """
    base_model = base_model if isinstance(base_model, str) else None
    if base_model and "gemma-3" in base_model and base_model.endswith("-it"):
        leading = LEADING_OF_GEMMA_3_INSTRUCT
    return BaseId(
        source=files.source,
        file=entry.path,
        layer=entry.layer,
        width=transcoder.n_features,
        average_l0=average_l0,
        hash=transcoder.fingerprint(),
        hook_site=site and site.name,
        activation=transcoder.activation,
        k=transcoder.k,
        skip=transcoder.W_skip is not None,
        leading=leading,
        base_model=base_model,
    )


def check_writable(
    layer: int,
    dictionary: Transcoder,
    layout: str,
    *,
    relu: bool = False,
    skip: bool = True,
) -> None:
    """Refuse a dictionary that a layout has no words for.

    Args:
        layout: the files' name, for the message.
        relu, skip: whether they can say these, beside JumpReLU; none can say TopK and scales.

    Raises:
        ValueError: names the layer, what the layout holds and what this is.
    """
    more = ["skip"] if dictionary.W_skip is not None and not skip else []
    more += ["scales"] if (dictionary.scale_in, dictionary.scale_out) != (1, 1) else []
    if dictionary.activation not in ("jumprelu", "relu")[: 1 + relu] or more:
        raise ValueError(
            f"layer {layer}: {layout} holds JumpReLU {'and ReLU ' if relu else ''}transcoders without "
            f"{'scales' if skip else 'skip or scales'}, not {dictionary.activation}"
            + (f" with {' and '.join(more)}" if more else "")
        )


def for_other_tools(dictionary: Transcoder, site: HookSite) -> Transcoder:
    """The same function in float32, on plain tensors instead of the site's unit, with thresholds >= 0.

    With s the site's factor it is dictionary(s·x) / s: s goes into W_enc, 1/s into W_dec and b_dec;
    activations stay the same. A threshold below 0 acts as 0 here, but not everywhere: circuit-tracer's
    JumpReLU does not cut at 0 by itself.
    """
    t = unscaled(dictionary)
    scale = site.factor(dictionary.d_in)
    if scale != 1:  # a copy of a wide dictionary takes as much memory again
        t |= {"W_enc": t["W_enc"] * scale, "W_dec": t["W_dec"] / scale, "b_dec": t["b_dec"] / scale}
    if "threshold" in t:
        t["threshold"] = t["threshold"].clamp(min=0)
    return Transcoder(**t, activation=dictionary.activation, k=dictionary.k)


def padded(dictionary: Transcoder, n_features: int, in_front: bool = False) -> Transcoder:
    """The JumpReLU dictionary with features added, at the end or in front, that never fire and write nothing.

    Their pre-activation is −1 whatever the input and their threshold 1: silent under JumpReLU, and under
    plain ReLU too.
    """
    n_new = n_features - dictionary.n_features
    if n_new < 0:
        raise ValueError(f"{dictionary.n_features} features cannot be padded to {n_features}")
    if n_new == 0:
        return dictionary
    t = dictionary.state_dict()
    ones = t["b_enc"].new_ones(n_new)
    new = {
        "W_enc": t["W_enc"].new_zeros(dictionary.d_in, n_new),
        "b_enc": -ones,
        "W_dec": t["W_dec"].new_zeros(n_new, dictionary.d_out),
        "threshold": ones,
    }
    for name, added in new.items():
        parts = [added, t[name]] if in_front else [t[name], added]
        t[name] = torch.cat(parts, dim=1 if name == "W_enc" else 0)
    return Transcoder(**t)
