"""Which positions of a text are spared: neither captured, nor replaced, nor counted.

Shapes: B rows, T positions of a forward pass, P positions so far (cached ones and the pass's), S special
tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids of the tokens that a tokenizer marks as special, ascending, int64 [S]."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return torch.tensor(sorted(added | set(tokenizer.all_special_ids)), dtype=torch.long)


@dataclass(frozen=True)
class TokenPolicy:
    """Spared are padding, a row's first tokens, and special tokens wherever they stand.

    The first token is BOS where there is one; where there is none, attention uses it as its sink all the
    same, and dictionaries are trained without it.
    """

    needs_bos: bool = False
    """Whether a text without BOS is refused: the family's dictionaries have never seen one."""
    leading: int = 1
    """How many of a row's first tokens are spared."""

    @property
    def name(self) -> str:
        """As a cache's manifest says it."""
        first = "token" if self.leading == 1 else f"{self.leading} tokens"
        return f"without special tokens, padding and the first {first}"

    def leading_of(self, name: str) -> int | None:
        """How many first tokens a policy spares that is this one but for their number; None of another."""
        number = re.search(r"first (\d*)", name)
        leading = int(number[1] or 1) if number else self.leading
        return leading if replace(self, leading=leading).name == name else None

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Raises:
            ValueError: the tokenizer puts other tokens around a text than BOS before it, or no BOS where
                the family's dictionaries need it.
        """
        around, bos = tokenizer("").input_ids, tokenizer.bos_token_id
        if around == [bos] or (around == [] and not self.needs_bos):
            return
        who = f"the tokenizer of {tokenizer.name_or_path!r}"
        if self.needs_bos:
            raise ValueError(
                f"{who} does not put BOS ({tokenizer.bos_token}), and nothing else, before a text: "
                "dictionaries are trained, and layers replaced, on what comes after it"
            )
        raise ValueError(
            f"{who} puts {tokenizer.decode(around)!r} around a text, expected nothing or BOS "
            f"({tokenizer.bos_token}): take it out of its tokenizer.json (post_processor)"
        )

    def check_rows(
        self, tokenizer: PreTrainedTokenizerBase, ids_BT: Tensor, real_BT: Tensor
    ) -> None:
        """
        Args:
            real_BT: bool, False on padding.

        Raises:
            ValueError: a row whose first real token is not BOS, where that is needed: the position before
                the text would be replaced.
        """
        if not self.needs_bos:
            return
        first_B1 = real_BT.int().argmax(-1, keepdim=True)
        is_bos_B = (ids_BT.gather(1, first_B1)[:, 0] == tokenizer.bos_token_id) | ~real_BT.any(-1)
        if not is_bos_B.all():
            row = int((~is_bos_B).nonzero()[0])
            token = tokenizer.decode(ids_BT[row, first_B1[row]])
            raise ValueError(
                f"row {row} starts with {token!r}, not with BOS ({tokenizer.bos_token!r}): give text, "
                "or token ids with BOS in front (prepend_bos=True)"
            )

    def used(self, special_S: Tensor, ids_BT: Tensor, mask_BP: Tensor) -> Tensor:
        """Positions of a pass that are not spared, bool [B, T]; captured are these, and replaced these.

        Args:
            special_S: of `special_ids`.
            ids_BT: the pass's alone.
            mask_BP: 1 for tokens, 0 for padding.
        """
        after_first_BP = mask_BP.bool() & (mask_BP.cumsum(-1) > self.leading)
        return after_first_BP[:, -ids_BT.shape[1] :] & ~torch.isin(ids_BT, special_S)
