"""Texts that others wrote: files line by line, where whatever cannot be read is named by file and line; and
how a text is shown that would not be seen."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
"""Controls but tab and line feed, marks that turn the direction of text, half characters; as in dom.js."""


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line of a UTF-8 file that is not blank, without space around it.

    A byte-order mark is not part of the text; lines end as on any system.

    Raises:
        ValueError: another encoding; names the file and the line.
    """
    with path.open("rb") as handle:
        # A carriage return alone is the line break of old files.
        lines = (line for lines in handle for line in lines.rstrip(b"\r\n").split(b"\r"))
        for number, encoded in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                text = encoded.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{where}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
                ) from None
            if "\x00" in text:
                raise ValueError(
                    f"{where}: holds NUL bytes, as UTF-16 does; save the file as UTF-8"
                )
            if text:
                yield number, text


def numbered(path: str | Path, parse: Callable[[str, str], T]) -> dict[int, T]:
    """What each line of a file of examples holds, by its number from 1.

    Args:
        parse: of a line, and the file and line for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no line in it, or what `parse` raises.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"examples: no file {path}")
    rows = {number: parse(line, f"{path}, line {number}") for number, line in text_lines(path)}
    if not rows:
        raise ValueError(f"{path}: no examples in the file")
    return rows


def shown(text: str) -> str:
    """A text with signs for what is not seen in it, or turns what stands beside it.

    >>> shown("a\\u202eb\\x00\\n")
    'aU+202EbU+0000\\n'
    """
    return UNSEEN.sub(code_point, text)


def code_point(found: re.Match) -> str:
    return f"U+{ord(found[0]):04X}"


def letters(text: str) -> str:
    """One text for all its spellings: without white space and other marks that are not seen, and in one
    Unicode normal form.

    >>> letters("Room 7  is open.") == letters("Room\\u00a07 is open.")
    True
    """
    seen = filter(str.isprintable, unicodedata.normalize("NFKC", text))
    return "".join(seen).replace(" ", "")


def check_whole(text: str, what: str) -> None:
    """Refuse text that no file or tokenizer can hold.

    Raises:
        ValueError: a lone surrogate, half of a character; says what the text is.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds half a character, {text[error.start]!r}") from None


def parse_json(line: str, where: str) -> object:
    """What one line of a JSONL file holds.

    Args:
        where: file and line, for the message.

    Raises:
        ValueError: not JSON, or an object with a field twice; names the place.
    """
    try:
        return json.loads(line, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless nesting
        problem = getattr(error, "msg", error)
        raise ValueError(f"{where}: not a JSON object ({problem}): {line[:60]!r}") from None


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice[:20]!r} twice")
    return row
