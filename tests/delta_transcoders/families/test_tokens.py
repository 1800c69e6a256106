"""Which positions are spared, by hand-written rows: BOS 2, EOS 1, padding 0."""

from types import SimpleNamespace

import pytest
import torch

from delta_transcoders.families.tokens import AfterBOS

TOKENS = AfterBOS()
TOKENIZER = SimpleNamespace(
    bos_token="<bos>", bos_token_id=2, eos_token_id=1, decode=lambda ids: f"t{int(ids)}"
)


def test_captured_are_real_tokens_without_bos_and_eos():
    ids = torch.tensor([[2, 7, 8, 1, 0], [0, 2, 9, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    assert TOKENS.captured(TOKENIZER, ids, mask).tolist() == [
        [False, True, True, False, False],
        [False, False, True, False, False],
    ]


def test_replaced_are_real_tokens_but_the_first():
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert TOKENS.replaced(mask).tolist() == [
        [False, True, True, False],
        [False, False, False, True],
        [False] * 4,
    ]


def test_a_row_must_start_with_bos():
    ids = torch.tensor([[0, 2, 7], [2, 7, 8], [0, 0, 0]])
    TOKENS.check_rows(TOKENIZER, ids, ids != 0)
    with pytest.raises(ValueError, match=r"row 1 starts with 't7', not with BOS \('<bos>'\)"):
        TOKENS.check_rows(TOKENIZER, torch.tensor([[2, 7], [7, 2]]), torch.ones(2, 2).bool())
