"""A model with trainable deltas, and the finetuned one that it is to be like.

Transplant: the base model, each MLP's output + delta. On the dictionary: the finetuned model, each MLP
replaced by base dictionary + delta. Both are forward passes inside `InterventionEngine.applied`: what is
trained is what experiments measure.

Shapes: B rows, T positions, N target tokens, n positions that interventions replace, D d_model, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.end_to_end.losses import kl_of_tokens, squared_distances
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.interventions.application import Application
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import Intervention, Term, Write
from delta_transcoders.interventions.sources import Source
from delta_transcoders.language_models import (
    TokenizedExample,
    scored_batch,
    supervised_hidden,
    supervised_logits,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["transplant", "dictionary"]
WRITES: dict[Kind, Write] = {
    "transplant": Write(1.0, (Term("delta"),)),
    "dictionary": Write(0.0, (Term("base"), Term("delta"))),
}
IDS = ("input_ids", "attention_mask", "labels")


class Reference(NamedTuple):
    """What a batch's student is compared with."""

    hidden_ND: Tensor
    """The finetuned model's last hidden states that predict the target tokens."""
    streams: list[Tensor]
    """Its residual stream after every layer, [n, D] each; empty where nobody asked."""
    change_L: Tensor | None
    """‖h_base − h_finetuned‖² over those positions."""


class Losses(NamedTuple):
    """Of one batch, to be added up."""

    kl_N: Tensor
    """KL(finetuned ‖ student) of each target token, in nats."""
    error_L: Tensor | None
    """‖h_student − h_finetuned‖² after every layer; None without streams."""


class Student:
    """The engine of a student, with its teacher and the base model.

    Args:
        kind: which model runs, and what is written.
        finetuned, base: the two models, which are frozen here, on the device where they are to run. `base`
            may be None for a student on the dictionary whose streams nobody asks for.
        tokenizer: of both.
        deltas: trainable sources, by layer.
        bases: the dictionaries that they correct, by layer; none for a transplant.
        site: of both.
        gradient_checkpointing: compute the student's layers anew in the backward pass, for memory.
    """

    def __init__(
        self,
        kind: Kind,
        finetuned: PreTrainedModel,
        base: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        deltas: Mapping[int, Source],
        bases: Mapping[int, Source],
        site: HookSite,
        gradient_checkpointing: bool = False,
    ) -> None:
        for model in filter(None, (finetuned, base)):
            model.requires_grad_(False)
        runs = base if kind == "transplant" else finetuned
        if gradient_checkpointing:
            runs.gradient_checkpointing_enable({"use_reentrant": False})
        bank = {"delta": deltas} | ({"base": bases} if bases else {})
        self.engine = InterventionEngine(boot_bridge(runs, tokenizer), tokenizer, bank, site)
        self.gradient_checkpointing = gradient_checkpointing
        self.checkpoint_layers(gradient_checkpointing)
        self.teacher, self.base = finetuned, base
        self.intervention = Intervention("student", dict.fromkeys(deltas, WRITES[kind]))
        self.family = family_of(finetuned.config)

    def checkpoint_layers(self, on: bool) -> None:
        """Whether its layers compute anew in the backward pass what they have not kept."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        # They do so in training mode only, in which their parts would drop out: it is theirs alone.
        for module in self.engine.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = on

    def applied(self, n_rows: int, bridged: bool = False) -> AbstractContextManager[Application]:
        """The student runs inside, in n_rows; a backward pass that computes layers anew belongs inside too.

        Args:
            bridged: half of the rows, on average, are the student up to a random layer and the teacher from
                there on, or the other way round; for a student on the dictionary, whose model is the
                teacher's.
        """
        rows = [self._bridge() if bridged else self.intervention for _ in range(n_rows)]
        return self.engine.applied(rows)

    def _bridge(self) -> Intervention:
        layers = self.intervention.layers
        half, upwards, cutoff = torch.rand(3).tolist()
        if half < 0.5 or len(layers) < 2:
            return self.intervention
        n = 1 + int(cutoff * (len(layers) - 1))
        kept = layers[:n] if upwards < 0.5 else layers[n:]
        return Intervention("student", {layer: self.intervention.writes[layer] for layer in kept})

    @torch.no_grad()
    def reference(self, batch: Mapping[str, Tensor], with_streams: bool) -> Reference:
        """Of the teacher, outside of `applied`.

        Args:
            batch: of `language_models.scored_batch`.
        """
        positions_BT = self._positions(batch) if with_streams else None
        hidden_ND, streams = _run(self.teacher, batch, positions_BT)
        if not with_streams:
            return Reference(hidden_ND, [], None)
        _, base_streams = _run(self.base, batch, positions_BT)
        return Reference(hidden_ND, streams, squared_distances(base_streams, streams))

    def losses(self, batch: Mapping[str, Tensor], reference: Reference) -> Losses:
        """Of the student, inside of `applied`."""
        positions_BT = self._positions(batch) if reference.streams else None
        hidden_ND, streams = _run(self.engine.model, batch, positions_BT)
        heads = [partial(self.family.logits, m) for m in (self.teacher, self.engine.model)]
        n_vocabulary = self.teacher.config.get_text_config().vocab_size
        kl_N = kl_of_tokens(heads[0], reference.hidden_ND, heads[1], hidden_ND, n_vocabulary)
        error_L = squared_distances(streams, reference.streams) if streams else None
        return Losses(kl_N, error_L)

    @torch.no_grad()
    def teacher_logprobs(self, rows: Sequence[TokenizedExample]) -> dict[TokenizedExample, Tensor]:
        """The finetuned model's log-probabilities [N, V] at each example's target tokens."""
        tokenizer, device = self.engine.tokenizer, self.engine.model.device
        batch = scored_batch(rows, tokenizer.pad_token_id)
        logits_NV, _ = supervised_logits(self.teacher, *(batch[name].to(device) for name in IDS))
        parts = logits_NV.log_softmax(-1).split([len(row.target_ids) for row in rows])
        return dict(zip(rows, parts, strict=True))

    def _positions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Where interventions replace, bool [B, T]."""
        ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
        return self.engine.tokens.used(self.engine.special_S.to(ids_BT.device), ids_BT, mask_BT)


def _run(
    model: PreTrainedModel, batch: Mapping[str, Tensor], positions_BT: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Last hidden states at the targets [N, D], and the streams after every layer at some positions."""
    ids = [batch[name] for name in IDS]
    if positions_BT is None:
        return supervised_hidden(model, *ids), []
    with _streams(model, positions_BT) as streams:
        return supervised_hidden(model, *ids), streams


@contextmanager
def _streams(model: PreTrainedModel, positions_BT: Tensor) -> Iterator[list[Tensor]]:
    """One forward pass inside leaves the residual stream after every layer in the list, [n, D] each."""
    streams: list[Tensor] = []

    def record(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        h_BTD = output[0] if isinstance(output, tuple) else output
        streams.append(h_BTD[positions_BT])

    blocks = model.get_submodule(family_of(model.config).blocks_path)
    handles = [block.register_forward_hook(record) for block in blocks]
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()
