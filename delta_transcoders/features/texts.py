"""The texts that features are looked at on, token by token, and how tokens are shown.

Shapes: E texts, P places (tokens of all texts end to end, the unread ones too), T places of a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class TextRow(NamedTuple):
    """One text."""

    ids: Sequence[int]
    """Prompt and target."""
    n_prompt: int
    subset: int
    """Index of the subset."""
    example: str
    """Its number in its split."""


@dataclass(frozen=True)
class Subset:
    name: str
    held_out: bool


class Texts:
    """Texts of all subsets.

    Attributes:
        subsets: names as they are shown, and whether texts are held out.
        examples: numbers of the texts in their splits.
        ids_P: token ids, int32.
        text_P: which text a place is in, int32.
        subset_E, n_prompt_E: of each text.
        start_E: first place of each text, with the end of the last one, [E + 1].
        read_P: whether the place is read by features; to be marked by whoever reads.
    """

    def __init__(self, rows: Sequence[TextRow], subsets: Sequence[Subset]) -> None:
        self.subsets = list(subsets)
        self.examples = [row.example for row in rows]
        lengths = [len(row.ids) for row in rows]
        self.ids_P = np.fromiter((i for row in rows for i in row.ids), np.int32, sum(lengths))
        self.text_P = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        self.subset_E = np.array([row.subset for row in rows])
        self.n_prompt_E = np.array([row.n_prompt for row in rows])
        self.start_E = np.concatenate([[0], np.cumsum(lengths)])
        self.read_P = np.zeros(len(self.ids_P), dtype=bool)

    def places(self, texts_N: np.ndarray, positions_N: np.ndarray) -> np.ndarray:
        """Where tokens of texts stand, int32 [N]; they are marked as read.

        Raises:
            ValueError: a position beyond its text.
        """
        places_N = self.start_E[texts_N] + positions_N
        if (places_N >= self.start_E[texts_N + 1]).any():
            raise ValueError("a token lies beyond the end of its text: the texts are others")
        self.read_P[places_N] = True
        return places_N.astype(np.int32)

    def prefixes(self, shown: Sequence[str]) -> np.ndarray:
        """A hash of each place's text up to it, itself included, with `#` for digits in a row, uint64 [P].

        Args:
            shown: of each token id, its text.

        >>> rows = [TextRow([0, 1, 2], 3, 0, ""), TextRow([0, 2], 2, 0, "")]
        >>> one, other = np.split(Texts(rows, []).prefixes(["a ", "1", "23"]), [3])
        >>> bool(one[2] == other[1]), bool(one[0] == one[1])
        (True, False)
        """
        numbers: dict[str, int] = {}
        # By id: the text's number after another text, after a digit (0: it adds nothing), and its end.
        after_text, after_digit = np.zeros((2, len(shown)), dtype=np.uint64)
        ends_in_digit = np.array([text[-1:].isdigit() for text in shown])
        for i in np.unique(self.ids_P):
            masked = re.sub(r"\d+", "#", shown[i])
            rest = masked[1:] if shown[i][:1].isdigit() else masked
            after_text[i] = numbers.setdefault(masked, len(numbers) + 1) if masked else 0
            after_digit[i] = numbers.setdefault(rest, len(numbers) + 1) if rest else 0
        hash_P = np.zeros(len(self.ids_P), dtype=np.uint64)
        lengths_E = np.diff(self.start_E)
        hash_E, digit_E = np.zeros_like(lengths_E, dtype=np.uint64), np.zeros_like(lengths_E, bool)
        for position in range(lengths_E.max(initial=0)):
            here_E = np.flatnonzero(lengths_E > position)
            places = self.start_E[here_E] + position
            ids = self.ids_P[places]
            added = np.where(digit_E[here_E], after_digit[ids], after_text[ids])
            hashes = hash_E[here_E]
            mixed = (hashes ^ (hashes >> np.uint64(29)) ^ added) * _FACTOR + np.uint64(1)
            hash_E[here_E] = hash_P[places] = np.where(added == 0, hashes, mixed)
            digit_E[here_E] = ends_in_digit[ids]
        return hash_P


def shown_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Text of each token alone; bytes that are no character as `\\xNN`."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    shown = []
    for piece, text in zip(tokenizer.convert_ids_to_tokens(ids), texts, strict=True):
        if "\ufffd" in text and (byte := _BYTE.fullmatch(piece or "")):
            text = rf"\x{byte[1].lower()}"
        elif "\ufffd" in text and piece and all(c in byte_of for c in piece):
            text = bytes(byte_of[c] for c in piece).decode("utf-8", errors="backslashreplace")
        elif piece and piece.startswith("\u2581") and not text.startswith(" "):
            text = f" {text}"  # which some tokenizers leave out at the start of a text
        shown.append(text)
    return shown
