"""Greedy text from one left-padded batch with a KV cache, which gets smaller as rows finish.

Shapes: B rows that are still unfinished, P positions so far, T positions of one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delta_transcoders.language_models import pad, position_ids
from delta_transcoders.tasks.task import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class AnswerReader:
    """Token ids that a model wrote, as the text that is judged.

    Special tokens that an answer is written with, such as a task's tags, are text. All others (EOS, padding,
    marks of a template) are left out at either end of an answer; inside they stand as they were written:
    leaving them out would join what they part, and could make a right answer of what is none. Ids that the
    tokenizer does not know are no text.

    Args:
        task: says what answers are written with, and where one ends.
        end_ids: tokens of which each ends an answer too (`language_models.end_ids`).
        examples: those that are answered.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        end_ids: Collection[int],
        examples: Sequence[Example] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.end = task.end
        markup = task.markup(examples)
        self._unread = {
            i
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special
            and token.content not in markup
            and not any(mark in token.content for mark in task.marks)
        }
        self._may_end: dict[int, bool] = {}

    def text(self, ids: Sequence[int]) -> str:
        start, stop = 0, len(ids)
        while start < stop and ids[start] in self._unread:
            start += 1
        while start < stop and ids[stop - 1] in self._unread:
            stop -= 1
        return self._decode(ids[start:stop])

    def is_finished(self, ids: Sequence[int]) -> bool:
        """Whether an answer ends with the last of these ids: at an EOS, or after the end's text."""
        last = ids[-1]
        if last in self.end_ids:
            return True
        if self.end is None:
            return False
        # Decoding every row at every step would cost as much as the model: only its last letter can end it.
        if last not in self._may_end:
            self._may_end[last] = self.end[-1] in self._decode([last])
        return self._may_end[last] and self.end in self.text(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        # Some tokenizers tidy up spaces by default, and no copy would be exact.
        return self.tokenizer.decode(
            list(ids),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )


def greedy_texts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    reader: AnswerReader,
    rows_kept: Callable[[Tensor], None] | None = None,
) -> list[str]:
    """Greedy continuations of prompts' token ids; arguments as of `greedy_steps`."""
    written: Sequence[Sequence[int]] = [[] for _ in prompts]
    for step in greedy_steps(model, prompts, max_new_tokens, reader, rows_kept):
        written = step
    return [reader.text(ids) for ids in written]


@torch.inference_mode()
def greedy_steps(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    reader: AnswerReader,
    rows_kept: Callable[[Tensor], None] | None = None,
) -> Iterator[list[list[int]]]:
    """The ids that have been written after each prompt's token ids, after every forward pass.

    Args:
        reader: says where a row ends.
        rows_kept: told which rows of the last forward pass the next one goes on with, int64 [B].
    """
    from transformers import DynamicCache

    ids_BT = pad(prompts, reader.tokenizer.pad_token_id, "left").to(model.device)
    mask_BP = pad([[1] * len(ids) for ids in prompts], 0, "left").to(model.device)
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
        yield written
        kept = [i for i, row in enumerate(unfinished) if not reader.is_finished(written[row])]
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
