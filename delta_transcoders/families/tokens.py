"""Which positions of a text are neither captured nor replaced.

Shapes: B rows, T positions of a forward pass, P positions so far (cached ones and the pass's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AfterBOS:
    """BOS, EOS and padding are spared: public dictionaries were trained without them."""

    name = "without BOS, EOS and padding"
    """As a cache's manifest says it."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Raises:
            ValueError: the tokenizer does not put BOS, and nothing else, before a text.
        """
        if tokenizer("").input_ids != [tokenizer.bos_token_id]:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} does not put BOS ({tokenizer.bos_token}), "
                "and nothing else, before a text: dictionaries are trained, and layers replaced, on what "
                "comes after it"
            )

    def check_rows(
        self, tokenizer: PreTrainedTokenizerBase, ids_BT: Tensor, real_BT: Tensor
    ) -> None:
        """
        Args:
            real_BT: bool, False on padding.

        Raises:
            ValueError: a row whose first real token is not BOS: the position before the text would be
                replaced.
        """
        first_B1 = real_BT.int().argmax(-1, keepdim=True)
        is_bos_B = (ids_BT.gather(1, first_B1)[:, 0] == tokenizer.bos_token_id) | ~real_BT.any(-1)
        if not is_bos_B.all():
            row = int((~is_bos_B).nonzero()[0])
            token = tokenizer.decode(ids_BT[row, first_B1[row]])
            raise ValueError(
                f"row {row} starts with {token!r}, not with BOS ({tokenizer.bos_token!r}): give text, "
                "or token ids with BOS in front (prepend_bos=True)"
            )

    def captured(
        self, tokenizer: PreTrainedTokenizerBase, ids_BT: Tensor, mask_BT: Tensor
    ) -> Tensor:
        """Captured positions, bool [B, T]: real tokens that are neither BOS nor EOS."""
        spared = torch.tensor(
            [tokenizer.bos_token_id, tokenizer.eos_token_id], device=ids_BT.device
        )
        return mask_BT.bool() & ~torch.isin(ids_BT, spared)

    def replaced(self, mask_BP: Tensor) -> Tensor:
        """Replaceable positions, bool [B, P]: real tokens but a row's first, which is BOS.

        Nothing after EOS is ever run, so that its position needs no rule.
        """
        return mask_BP.bool() & (mask_BP.cumsum(-1) != 1)
