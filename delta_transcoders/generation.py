"""Greedy text from one left-padded batch with a KV cache, which gets smaller as rows finish.

Shapes: B rows that are still unfinished, P positions so far, T positions of one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delta_transcoders.language_models import pad, position_ids
from delta_transcoders.toolcalls.grammar import CLOSE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def greedy_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    rows_kept: Callable[[Tensor], None] | None = None,
) -> list[str]:
    """Greedy continuations. A row ends at EOS (not part of its text) or after `</tool_call>`.

    Args:
        rows_kept: told which rows of the last forward pass the next one goes on with, int64 [B].
    """
    from transformers import DynamicCache

    prompt_ids = tokenizer(list(prompts)).input_ids
    ids_BT = pad(prompt_ids, tokenizer.pad_token_id, "left").to(model.device)
    mask_BP = pad([[1] * len(ids) for ids in prompt_ids], 0, "left").to(model.device)
    cache = DynamicCache(config=model.config)
    # An index copies the last positions, a number of them would cut them off: a cut is not one matrix, and
    # on a CPU torch multiplies each of its rows with a copy of frozen weights (1.2 GB in Gemma 2 2B).
    last = torch.tensor([-1], device=model.device)
    written: list[list[int]] = [[] for _ in prompts]
    unfinished = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        logits_BTV = model(
            input_ids=ids_BT,
            attention_mask=mask_BP,
            position_ids=position_ids(mask_BP)[:, -ids_BT.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits
        next_B = logits_BTV[:, -1].argmax(-1)
        for row, token in zip(unfinished, next_B.tolist(), strict=True):
            written[row].append(token)
        kept = [i for i, row in enumerate(unfinished) if not _finished(tokenizer, written[row])]
        if not kept:
            break
        if len(kept) < len(unfinished):
            unfinished = [unfinished[i] for i in kept]
            kept_B = torch.tensor(kept, device=model.device)
            cache.batch_select_indices(kept_B)
            next_B, mask_BP = next_B[kept_B], mask_BP[kept_B]
            if rows_kept is not None:
                rows_kept(kept_B)
        ids_BT = next_B[:, None]
        mask_BP = torch.cat([mask_BP, mask_BP.new_ones(len(mask_BP), 1)], dim=1)
    return tokenizer.batch_decode(written, skip_special_tokens=True)


def _finished(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bool:
    last = ids[-1]
    if last == tokenizer.eos_token_id:
        return True
    # Decoding every row at every step would cost as much as the model: only `>` can end a call.
    return CLOSE[-1] in tokenizer.convert_ids_to_tokens(last) and CLOSE in tokenizer.decode(ids)
