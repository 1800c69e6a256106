"""One intervention on a bridge that is used as it always is, in a notebook for example.

    with attached(bridge, deltas, "full"):
        bridge.generate("What is 12 * 34?\\n", do_sample=False, max_new_tokens=40)

Shapes: B rows and T positions of a forward pass, P positions so far (cached ones and the pass's).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from delta_transcoders.families.tokens import TokenPolicy
from delta_transcoders.interventions.application import Application, hooked
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import Intervention, from_spec
from delta_transcoders.interventions.loading import DictionarySet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def attached(
    bridge: TransformerBridge,
    deltas: DictionarySet,
    condition: str | Mapping[str, Any] | Intervention = "full",
    layers: Collection[int] | None = None,
) -> Iterator[Application]:
    """Inside, every pass of the bridge's model has this intervention in all of its rows.

    Works with `bridge(...)`, `bridge.generate`, `bridge.hf_generate`, `bridge.run_with_cache` and calls
    of the model itself, with as many rows as each call has. Replaced are the positions that
    `InterventionEngine` replaces: all but a row's first token, special tokens and padding, which is found
    by `real_tokens`, with or without an attention mask. How the model itself treats padding is the caller's
    affair: a padded tensor without a mask is misread with and without an intervention.

    Args:
        bridge: of the model that the deltas were trained on; sources are moved to its device.
        deltas: of `load_delta_set`. Sources for more conditions may be added to its `sources`.
        condition: a name or mapping (`from_spec`), or an intervention, which says its layers itself.
        layers: where; None: all that have a delta.

    Yields:
        What has been replaced so far, added up over rows.

    Raises:
        ValueError: an unknown condition, layer or source (`from_spec`, `InterventionEngine`); a row without
            BOS where the family needs it; a pass without token ids.
        RuntimeError: at the end, if nothing was replaced.
    """
    engine = InterventionEngine(bridge, bridge.tokenizer, deltas.sources, deltas.site)
    if not isinstance(condition, Intervention):
        condition = from_spec(condition, deltas.layers if layers is None else layers)
    elif layers is not None:
        raise ValueError(
            f"an intervention says its layers itself; layers {list(layers)} do not apply"
        )
    engine.check([condition])
    device = bridge.original_model.device
    for name in condition.sources:
        for layer in condition.layers:
            deltas.sources[name][layer].to(device)
    application = Application(
        [condition],
        deltas.sources,
        deltas.site,
        engine.tokens,
        engine.special_S,
        device,
        count_features=False,
        prompt_only=False,
    )

    def before_pass(given: dict[str, Any]) -> None:
        ids_BT, cache = given.get("input_ids"), given.get("past_key_values")
        if ids_BT is not None:
            # Every row is the one row that the application knows.
            application.select(torch.zeros(len(ids_BT), dtype=torch.long, device=device))
            if cache is None or not cache.get_seq_length():
                mask_BT = given.get("attention_mask")
                mask_BT = real_tokens(bridge.tokenizer, engine.tokens, ids_BT, mask_BT)
                given = given | {"attention_mask": mask_BT}
        application.before_pass(given)

    with hooked(bridge, application, before_pass):
        yield application


def real_tokens(
    tokenizer: Any, tokens: TokenPolicy, ids_BT: Tensor, mask_BT: Tensor | None
) -> Tensor:
    """Which tokens of a text's first pass are not padding, int64 [B, T].

    They are those that the attention mask names; without a mask, all but runs of the pad token at either end
    of a row. Where BOS or EOS is the pad token (GPT-2), one that is text goes with them there.

    Raises:
        ValueError: a row that does not start as the model's family wants it (`TokenPolicy.check_rows`).
    """
    if mask_BT is None:
        content_BT = ids_BT != tokenizer.pad_token_id
        real_BT = (content_BT.cumsum(-1) > 0) & (content_BT.flip(-1).cumsum(-1) > 0).flip(-1)
    elif mask_BT.shape != ids_BT.shape:  # told by whoever uses it
        return mask_BT
    else:
        real_BT = mask_BT.bool()
    tokens.check_rows(tokenizer, ids_BT, real_BT)
    return real_BT.long()
