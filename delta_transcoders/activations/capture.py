"""Inputs and outputs of a model's MLPs, read at TransformerLens hook points.

Which tokens are captured is for the model's family to say (`ModelFamily.tokens`).

Shapes: B rows, T positions, n captured tokens (row by row, in order), d_model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.families.tokens import special_ids
from delta_transcoders.language_models import position_ids

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Captured(NamedTuple):
    """One batch's captured tokens: activations by layer, and where each token stood."""

    activations: dict[int, tuple[Tensor, Tensor]]
    """layer -> (x [n, d_in], y [n, d_out]), in the site's unit and the hook points' dtype."""
    token_ids: Tensor
    """int64 [n]"""
    positions: Tensor
    """int64 [n], counted from the row's first real token, which is 0."""
    rows: Tensor
    """int64 [n], the row of the batch."""


def boot_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
    """Wrap a loaded model, which stays on its device and in its dtype.

    The model is changed in place: its submodules become the bridge's. An adapter must have been
    merged into it, and the tokenizer must come from `from_pretrained`. The bridge reads texts with this
    tokenizer, and puts no BOS before them that the tokenizer itself would not put there.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources.transformers import source

    # The bridge gives a tokenizer a BOS token that has none, and makes it put BOS before every text.
    given_up = copy.deepcopy(tokenizer)
    given_up.init_kwargs["add_bos_token"] = True  # or it is loaded anew
    # For a model that takes images too it would run `pip install torchvision`, which brings another torch.
    with mock.patch.object(source, "load_modality_processor"):
        bridge = TransformerBridge.boot_transformers(
            model.config._name_or_path,
            hf_model=model.eval(),
            tokenizer=given_up,
            device=model.device,
            dtype=model.dtype,
        )
    bridge._tokenizer = tokenizer  # its setter would do so again
    adds_bos = bool(tokenizer("").input_ids)
    bridge.cfg.tokenizer_prepends_bos = bridge.cfg.default_prepend_bos = adds_bos
    return bridge


def _captured_positions(
    bridge: TransformerBridge, ids_BT: Tensor, mask_BT: Tensor, leading: int | None
) -> Tensor:
    tokens = family_of(bridge.original_model.config).tokens
    if leading is not None:
        tokens = replace(tokens, leading=leading)
    return tokens.used(special_ids(bridge.tokenizer).to(ids_BT.device), ids_BT, mask_BT)


@torch.inference_mode()
def capture_hooks(
    bridge: TransformerBridge,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    names: Sequence[str],
    stop_at_layer: int | None = None,
    leading: int | None = None,
) -> dict[str, Tensor]:
    """Tensors [n, d] at the named hook points, all from one forward pass, captured tokens only.

    Args:
        stop_at_layer: blocks from here on are not computed.
        leading: as of `capture`.

    Raises:
        RuntimeError: a hook point did not fire exactly once.
    """
    device = bridge.original_model.device
    input_ids_BT, attention_mask_BT = input_ids_BT.to(device), attention_mask_BT.to(device)
    keep_BT = _captured_positions(bridge, input_ids_BT, attention_mask_BT, leading)
    fired: dict[str, list[Tensor]] = {name: [] for name in names}

    def recorder(name: str):
        # Not by hook.name: a name like hook_mlp_out is an alias, and the hook knows only its own.
        def record(tensor_BTD: Tensor, hook: object) -> None:
            fired[name].append(tensor_BTD[keep_BT])

        return record

    with bridge.hooks(fwd_hooks=[(name, recorder(name)) for name in fired]):
        bridge(
            input_ids_BT,
            attention_mask=attention_mask_BT,
            position_ids=position_ids(attention_mask_BT),
            stop_at_layer=stop_at_layer,
            use_cache=False,
            logits_to_keep=1,  # the vocabulary projection is not needed, and would be the largest
            return_type=None,
        )
    for name, tensors in fired.items():
        if len(tensors) != 1:
            raise RuntimeError(f"{name} fired {len(tensors)} times in one forward pass")
    return {name: tensor for name, (tensor,) in fired.items()}


def capture(
    bridge: TransformerBridge,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    layers: Sequence[int],
    site: HookSite,
    leading: int | None = None,
) -> Captured:
    """Input and output of the MLP of every requested layer, in one forward pass.

    Everything returned is on the model's device, wherever the tokens were.

    Args:
        leading: how many of a row's first tokens are left out; as many as the family's policy says if None.

    Raises:
        ValueError: a layer that the model does not have.
    """
    n_layers = len(bridge.blocks)
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise ValueError(f"there is no layer {layer}: the model has {n_layers}, from 0")
    names = {layer: site.hook_points(layer) for layer in layers}
    device = bridge.original_model.device
    input_ids_BT, attention_mask_BT = input_ids_BT.to(device), attention_mask_BT.to(device)
    tensors = capture_hooks(
        bridge,
        input_ids_BT,
        attention_mask_BT,
        [name for pair in names.values() for name in pair],
        stop_at_layer=max(layers) + 1,
        leading=leading,
    )
    factor = site.factor(next(iter(tensors.values())).shape[1])
    keep_BT = _captured_positions(bridge, input_ids_BT, attention_mask_BT, leading)
    return Captured(
        activations={
            # Popped, so that never more than one tensor is there in both units.
            layer: tuple(tensors.pop(name) * factor for name in pair)
            for layer, pair in names.items()
        },
        token_ids=input_ids_BT[keep_BT],
        positions=position_ids(attention_mask_BT)[keep_BT],
        rows=keep_BT.nonzero()[:, 0],
    )
