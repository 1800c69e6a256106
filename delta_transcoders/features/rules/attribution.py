"""How much features and neurons do for what the finetuned model writes, one measure for both.

To first order, how much log p(target) of the finetuned model would fall if what a unit adds were taken out:
of a delta's feature what its decoder row writes, of a neuron what finetuning changed, its activation in the
finetuned model minus that in the base model. Everything else stays as the finetuned model's own run has it.

N. Nanda (2023), Attribution patching. J. Kramár, T. Lieberum, R. Shah and N. Nanda (2024), AtP*.

Shapes: B rows, T positions, N read tokens of all rows, D d_model, F features or neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.families.tokens import special_ids
from delta_transcoders.language_models import (
    TokenizedExample,
    scored_batch,
    supervised_hidden,
    supervised_logits,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel


class Attributed(NamedTuple):
    """Of one layer, for each row: attributions in nats, float32 [B, F]."""

    features: Tensor
    neurons: Tensor
    fires: Tensor
    """On how many tokens each feature fires, [B, F]."""


@contextmanager
def neurons_read(downs: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Activations of each layer's neurons [B, T, F] in the last forward pass inside.

    Args:
        downs: by layer, what reads them (`ModelFamily.down`), taken before a bridge wraps the model.
    """
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: seen.update({layer: args[0]})

    handles = [down.register_forward_pre_hook(keep(layer)) for layer, down in downs.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode(False)  # Lightning evaluates in it, and nothing could be differentiated
@torch.enable_grad()
def attributed(
    bridge: TransformerBridge,
    downs: Mapping[int, nn.Module],
    base: PreTrainedModel,
    deltas: Mapping[int, Transcoder],
    site: HookSite,
    rows: Sequence[TokenizedExample],
) -> dict[int, Attributed]:
    """Attributions of every delta feature, and of every neuron of the same layers.

    Args:
        bridge: of the finetuned model.
        downs: of the same layers as `deltas`, see `neurons_read`.
        base: the un-finetuned model, on the same device.
        site: of the deltas.
        rows: with targets.
    """
    model, tokenizer = bridge.original_model, bridge.tokenizer
    family = family_of(model.config)
    tokens = scored_batch(rows, tokenizer.pad_token_id)
    tokens = {f"{name}_BT": tensor.to(model.device) for name, tensor in tokens.items()}
    base_downs = {layer: family.down(base, layer) for layer in deltas}
    with torch.no_grad(), neurons_read(base_downs) as before:
        supervised_hidden(base, **tokens)
    passed: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor, object], None]:
        return lambda tensor_BTD, hook: passed.update({name: tensor_BTD})

    names = {layer: site.hook_points(layer) for layer in deltas}
    hooks = [(name, keep(name)) for pair in names.values() for name in pair]
    with bridge.hooks(fwd_hooks=hooks), neurons_read(downs) as after:
        logits_NV, labels_N = supervised_logits(model, **tokens)
    total = logits_NV.log_softmax(-1).gather(1, labels_N[:, None]).double().sum()
    written = [passed[name] for _, name in names.values()]
    gradients = torch.autograd.grad(total, [*written, *(after[layer] for layer in deltas)])

    special_S = special_ids(tokenizer).to(model.device)
    read_BT = family.tokens.used(special_S, tokens["input_ids_BT"], tokens["attention_mask_BT"])
    rows_N = read_BT.nonzero()[:, 0]
    factor = site.factor(family.d_model)

    def by_row(values_NF: Tensor) -> Tensor:
        sums_BF = values_NF.new_zeros(len(rows), values_NF.shape[1])
        return sums_BF.index_add_(0, rows_N, values_NF)

    found = {}
    for i, (layer, delta) in enumerate(deltas.items()):
        name_in, _ = names[layer]
        a_NF = delta.encode(passed[name_in].detach()[read_BT] * factor)
        of_write_ND, of_neurons_NF = (gradients[at][read_BT].float() for at in (i, i + len(deltas)))
        changed_NF = (after[layer].detach() - before[layer])[read_BT].float()
        found[layer] = Attributed(
            features=by_row(a_NF * (of_write_ND @ (delta.W_dec.float() / factor).T)),
            neurons=by_row(changed_NF * of_neurons_NF),
            fires=by_row((a_NF > 0).float()),
        )
    return found
