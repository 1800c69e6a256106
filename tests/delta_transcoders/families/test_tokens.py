"""Which positions are spared, by hand-written rows: BOS 2, EOS 1, padding 0, a template's mark 5."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from delta_transcoders.families.tokens import TokenPolicy, special_ids

SPECIAL = torch.tensor([0, 1, 2, 5])
TOKENS = TokenPolicy()


class Tokenizer:
    """Puts `around` around a text."""

    name_or_path = "folder"

    def __init__(self, around, bos_token="<bos>"):
        self.all_special_ids = [2, 1]
        self.added_tokens_decoder = {i: SimpleNamespace(special=i != 8) for i in (0, 2, 5, 8)}
        self.around, self.bos_token = around, bos_token
        self.bos_token_id = 2 if bos_token else None

    def __call__(self, text):
        return SimpleNamespace(input_ids=self.around)

    def decode(self, ids):
        return f"t{torch.as_tensor(ids).tolist()}"


def test_special_are_the_tokens_that_the_tokenizer_marks_as_such():
    assert special_ids(Tokenizer([])).tolist() == [0, 1, 2, 5]


def test_spared_are_padding_the_first_token_and_special_ones_wherever_they_stand():
    ids = torch.tensor([[2, 7, 8, 1, 0], [0, 2, 9, 5, 9], [7, 8, 9, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert TOKENS.used(SPECIAL, ids, mask).tolist() == [
        [False, True, True, False, False],
        [False, False, True, False, True],
        [False, True, True, False, False],
    ]


def test_with_a_cache_the_mask_tells_how_far_a_row_is():
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]])
    assert TOKENS.used(SPECIAL, torch.tensor([[7], [7], [5]]), mask).tolist() == [
        [True],
        [False],
        [False],
    ]


def test_a_dictionary_may_spare_more_of_the_first_tokens():
    four = replace(TOKENS, leading=4)
    ids = torch.tensor([[2, 7, 8, 9, 7, 8], [0, 0, 7, 8, 9, 7]])
    assert four.used(SPECIAL, ids, (ids != 0).long()).tolist() == [
        [False] * 4 + [True] * 2,
        [False] * 6,
    ]
    assert four.name == "without special tokens, padding and the first 4 tokens"
    assert TOKENS.name == "without special tokens, padding and the first token"
    for n in (0, 1, 4):
        assert TOKENS.leading_of(replace(TOKENS, leading=n).name) == n
    for other in ("", "without padding and the first 4 tokens", four.name + " and the last"):
        assert TOKENS.leading_of(other) is None


def test_what_a_tokenizer_may_put_before_a_text():
    for needs_bos in (False, True):
        TokenPolicy(needs_bos).check_tokenizer(Tokenizer([2]))
    TOKENS.check_tokenizer(Tokenizer([]))
    TOKENS.check_tokenizer(Tokenizer([], bos_token=None))
    with pytest.raises(ValueError, match=r"'folder' does not put BOS \(<bos>\), and nothing else"):
        TokenPolicy(needs_bos=True).check_tokenizer(Tokenizer([]))
    with pytest.raises(
        ValueError, match=r"'folder' puts 't\[2, 1\]' around a text, expected nothi"
    ):
        TOKENS.check_tokenizer(Tokenizer([2, 1]))


def test_a_row_must_start_with_bos_where_the_family_needs_it():
    ids = torch.tensor([[0, 2, 7], [2, 7, 8], [0, 0, 0]])
    tokens, tokenizer = TokenPolicy(needs_bos=True), Tokenizer([2])
    tokens.check_rows(tokenizer, ids, ids != 0)
    ids, real = torch.tensor([[2, 7], [7, 2]]), torch.ones(2, 2).bool()
    with pytest.raises(ValueError, match=r"row 1 starts with 't\[7\]', not with BOS \('<bos>'\)"):
        tokens.check_rows(tokenizer, ids, real)
    TOKENS.check_rows(tokenizer, ids, real)
