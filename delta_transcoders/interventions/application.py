"""The hooks that write a mixed batch's interventions into a running model.

Shapes: B rows of the current forward pass, R rows at the start, T positions of the pass,
P positions so far (cached ones and the pass's), L layers that are written to, N tokens, D d_model,
F features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from delta_transcoders.dictionaries.transcoder import rows_at_once
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.families.tokens import TokenPolicy
from delta_transcoders.interventions.intervention import Intervention, Write
from delta_transcoders.interventions.sources import Source, SourceBank, feature_masks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


Gates = Mapping[str, Mapping[int, Tensor]]
"""By source, then by layer: a factor of each feature's activation in each row, [R, F]."""


@dataclass
class _SourceRows:
    """One source at one layer: how much of it each row gets."""

    name: str
    source: Source
    coefficient_B: Tensor
    feature_mask_BF: Tensor | None

    def select(self, rows_B: Tensor) -> None:
        self.coefficient_B = self.coefficient_B[rows_B]
        if self.feature_mask_BF is not None:
            self.feature_mask_BF = self.feature_mask_BF[rows_B]


@dataclass
class _LayerRows:
    """What each row has written at one layer."""

    writes_B: Tensor
    """bool: the row is written to here at all"""
    keep_B: Tensor
    sources: list[_SourceRows]

    def select(self, rows_B: Tensor) -> None:
        self.writes_B, self.keep_B = self.writes_B[rows_B], self.keep_B[rows_B]
        for source in self.sources:
            source.select(rows_B)


def _layer_rows(
    writes: Sequence[Write | None],
    bank: SourceBank,
    layer: int,
    device: torch.device,
    gates: Gates,
) -> _LayerRows:
    terms = [{term.source: term for term in write.terms} if write else {} for write in writes]
    sources = []
    for name in sorted({name for by_name in terms for name in by_name}):
        source = bank[name][layer]
        of_rows = [by_name.get(name) for by_name in terms]
        coefficients = [term.coefficient if term else 0.0 for term in of_rows]
        mask_BF = feature_masks(of_rows, source.n_features)
        mask_BF = None if mask_BF is None else mask_BF.to(device)
        gate_BF = gates.get(name, {}).get(layer)
        if gate_BF is not None:
            mask_BF = gate_BF if mask_BF is None else gate_BF * mask_BF
        sources.append(
            _SourceRows(
                name=name,
                source=source,
                coefficient_B=torch.tensor(coefficients, device=device),
                feature_mask_BF=mask_BF,
            )
        )
    return _LayerRows(
        writes_B=torch.tensor([write is not None for write in writes], device=device),
        keep_B=torch.tensor([write.keep if write else 1.0 for write in writes], device=device),
        sources=sources,
    )


class Application:
    """One batch's interventions while they are applied, and what they did.

    Which positions are replaced is found at each forward pass, from its token ids, its attention mask and
    the length of its cache: those that the policy does not spare (with `prompt_only` nothing after the
    first pass). All others keep the model's own output bit for bit, and are counted nowhere.

    Args:
        tokens: says which positions are spared.
        special_S: the tokenizer's special tokens (`families.tokens.special_ids`).
        gates: of features, for whoever differentiates by them.

    Attributes:
        calls: by layer, how often its output passed by.
        replaced_LR: replaced positions, int64 [L, R], layers ascending.
        activation_sums: by source, Σ `Source.activity` over replaced positions and layers, float64 [R].
        active_sums: by source, the number of active features there, float64 [R].
    """

    def __init__(
        self,
        interventions: Sequence[Intervention],
        bank: SourceBank,
        site: HookSite,
        tokens: TokenPolicy,
        special_S: Tensor,
        device: torch.device,
        count_features: bool,
        prompt_only: bool,
        gates: Gates = {},  # noqa: B006
    ) -> None:
        self._interventions = interventions
        self.site = site
        self._tokens = tokens
        self._special_S = special_S.to(device)
        self.count_features = count_features
        self.prompt_only = prompt_only
        layers = sorted({layer for i in interventions for layer in i.layers})
        self._rows_by_layer = {
            layer: _layer_rows(
                [i.writes.get(layer) for i in interventions], bank, layer, device, gates
            )
            for layer in layers
        }
        self._requested = {layer: rows.writes_B for layer, rows in self._rows_by_layer.items()}
        self.calls = dict.fromkeys(layers, 0)
        n_rows = len(interventions)
        self.replaced_LR = torch.zeros(len(layers), n_rows, dtype=torch.long, device=device)

        def no_sums() -> Tensor:
            return torch.zeros(n_rows, dtype=torch.float64, device=device)

        self.activation_sums: dict[str, Tensor] = defaultdict(no_sums)
        self.active_sums: dict[str, Tensor] = defaultdict(no_sums)
        self._rows_B = torch.arange(n_rows, device=device)
        self._inputs: dict[int, Tensor] = {}
        self._replaced_BT: Tensor | None = None

    def select(self, rows_B: Tensor) -> None:
        """Go on with these rows of the last forward pass, int64 [B]."""
        self._rows_B = self._rows_B[rows_B]
        for layer_rows in self._rows_by_layer.values():
            layer_rows.select(rows_B)

    def forward_hooks(self) -> list[tuple[str, Any]]:
        """Pairs of hook point and function, for `bridge.hooks`."""
        hooks = []
        for layer in self._rows_by_layer:
            name_in, name_out = self.site.hook_points(layer)

            # Bound by layer, not read from hook.name: hook_mlp_out is an alias of another point.
            def read(x_BTD: Tensor, hook: object, layer: int = layer) -> None:
                self._inputs[layer] = x_BTD

            def write(y_BTD: Tensor, hook: object, layer: int = layer) -> Tensor:
                return self._write(layer, y_BTD)

            hooks += [(name_in, read), (name_out, write)]
        return hooks

    def before_pass(self, given: dict[str, Any]) -> None:
        """Finds the replaced positions of a pass, bool [B, T].

        Args:
            given: what the decoder is called with, by name.

        Raises:
            ValueError: token ids, as many rows as there are interventions, and a mask [B, P] (or none, for
                no padding), are expected.
        """
        ids_BT = given.get("input_ids")
        if ids_BT is None:
            raise ValueError(
                "the model was called without token ids (input_ids), so that special tokens and padding are "
                "unknown: give ids instead of inputs_embeds"
            )
        n_rows, n_new = ids_BT.shape
        if n_rows != len(self._rows_B):
            raise ValueError(
                f"the model was called with {n_rows} rows, there are {len(self._rows_B)} interventions"
            )
        cache, mask_BP = given.get("past_key_values"), given.get("attention_mask")
        n_cached = cache.get_seq_length() if cache is not None else 0
        n_positions = n_new + n_cached
        if mask_BP is None:
            mask_BP = ids_BT.new_ones(n_rows, n_positions)
        shape = list(mask_BP.shape) if isinstance(mask_BP, Tensor) else type(mask_BP).__name__
        if shape != [n_rows, n_positions]:
            raise ValueError(
                f"the attention mask must be [rows, positions with the cache's] = "
                f"{[n_rows, n_positions]} to tell padding from tokens, not {shape}"
            )
        self._replaced_BT = self._tokens.used(self._special_S, ids_BT, mask_BP)
        if self.prompt_only and n_cached:
            self._replaced_BT = torch.zeros_like(self._replaced_BT)

    def _write(self, layer: int, y_BTD: Tensor) -> Tensor:
        x_BTD = self._inputs.pop(layer, None)
        if x_BTD is None:
            name_in, name_out = self.site.names(layer)
            raise RuntimeError(f"{name_out} fired without {name_in} before it")
        rows = self._rows_by_layer[layer]
        replaced_BT = self._replaced_BT & rows.writes_B[:, None]
        factor = self.site.factor(x_BTD.shape[-1])
        out_BTD = rows.keep_B[:, None, None] * y_BTD.float()
        for part in rows.sources:
            used_BT = replaced_BT & (part.coefficient_B != 0)[:, None]
            at_once = rows_at_once(part.source.n_features)
            for at_N2 in used_BT.nonzero().split(at_once):
                self._add(out_BTD, x_BTD, *at_N2.T, part, factor, layer)
        self.calls[layer] += 1
        index = list(self.calls).index(layer)
        self.replaced_LR[index].index_add_(0, self._rows_B, replaced_BT.sum(1))
        return torch.where(replaced_BT[:, :, None], out_BTD.to(y_BTD.dtype), y_BTD)

    def _add(
        self,
        out_BTD: Tensor,
        x_BTD: Tensor,
        row_N: Tensor,
        position_N: Tensor,
        part: _SourceRows,
        factor: float,
        layer: int,
    ) -> None:
        """Add what one source writes at these positions."""
        if not len(row_N):
            return
        mask_BF = part.feature_mask_BF
        f_ND, a_NF = part.source(
            x_BTD[row_N, position_N] * factor, None if mask_BF is None else mask_BF[row_N]
        )
        if f_ND.shape != (len(row_N), out_BTD.shape[-1]):
            raise ValueError(
                f"source {part.name!r}, layer {layer}: writes {list(f_ND.shape)}, expected "
                f"[tokens, d_model] = {[len(row_N), out_BTD.shape[-1]]}"
            )
        coefficient_N = part.coefficient_B[row_N] / factor
        out_BTD[row_N, position_N] += coefficient_N[:, None] * f_ND.float()
        if self.count_features and a_NF is not None:
            row_R = self._rows_B[row_N]
            self.activation_sums[part.name].index_add_(
                0, row_R, part.source.activity(a_NF).double()
            )
            self.active_sums[part.name].index_add_(0, row_R, (a_NF != 0).sum(-1).double())

    def by_row(self, sums: dict[str, Tensor]) -> list[dict[str, float]]:
        """`activation_sums` or `active_sums` of each row, of the sources that it uses itself."""
        values = {name: sums_R.tolist() for name, sums_R in sums.items()}
        return [
            {name: values[name][row] for name in intervention.sources if name in values}
            for row, intervention in enumerate(self._interventions)
        ]

    def require_replaced(self) -> None:
        """
        Raises:
            RuntimeError: a layer was to be written to and its hook never fired, or a row was to be
                written to and nowhere was.
        """
        for (layer, calls), replaced_R in zip(self.calls.items(), self.replaced_LR, strict=True):
            if not calls:
                raise RuntimeError(
                    f"layer {layer} was to be replaced, but {self.site.names(layer)[1]} never fired"
                )
            idle_R = self._requested[layer] & (replaced_R == 0)
            if idle_R.any():
                raise RuntimeError(
                    f"row {int(idle_R.nonzero()[0])} was to be replaced at layer {layer}, but none "
                    "of its positions was: it holds nothing but its first token, special tokens and padding"
                )


@contextmanager
def hooked(
    bridge: TransformerBridge,
    application: Application,
    before_pass: Callable[[dict[str, Any]], None],
) -> Iterator[Application]:
    """The application's hooks are on the model inside, and off it after, whatever happened.

    Args:
        before_pass: is told what the decoder is called with, and calls `application.before_pass`.

    Raises:
        RuntimeError: at the end, if something was to be replaced and nothing was.
    """
    model = bridge.original_model
    decoder = family_of(model.config).decoder(model)

    def before_decoder(module: object, args: tuple, kwargs: dict[str, Any]) -> None:
        # Some models hand over the ids, which come first, without their name.
        before_pass(kwargs | ({"input_ids": args[0]} if args else {}))

    handle = decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)
    try:
        with bridge.hooks(fwd_hooks=application.forward_hooks()):
            yield application
    finally:
        handle.remove()
    application.require_replaced()
