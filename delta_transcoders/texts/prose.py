"""Prose out of what others wrote: paragraphs of docstrings, and pieces of a text of one's own."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

N_SHORTEST, N_LONGEST = 15, 90
"""Words of a paragraph."""
PLAIN_SHARE = 0.8
"""Of a paragraph's words, at least so many are plain words, and no names of code, roles, links or numbers."""

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_PLAIN = re.compile(r"""["'(]*[A-Za-z][A-Za-z'-]*[]"'.,;:!?)]*""")
_NOT_PROSE = re.compile(r">>>|::|---|[=|{}\\$^]")
"""Doctests, literal blocks, titles, tables, code and math."""


def docstring_paragraphs(source: bytes) -> Iterator[str]:
    """The paragraphs of prose in the docstrings of a Python file, which is read and never run.

    Args:
        source: the file; what is no Python of this version has none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield from prose(docstring)


def prose(docstring: str) -> Iterator[str]:
    """The paragraphs of 15 to 90 words, each in one line, that are sentences and nothing else.

    Left out are code, tables, lists of parameters, doctests, math, and paragraphs whose lines are not
    indented alike.

    >>> text = "The word is taken as it stands, and what nobody has asked for is left out without a sound."
    >>> list(prose(f"Return it.\\n\\n{text}\\n\\nrows : int\\n    How many are read at a time.")) == [text]
    True
    """
    for block in re.split(r"\n\s*\n", docstring):
        lines = [line for line in block.split("\n") if line]
        if len({len(line) - len(line.lstrip()) for line in lines}) == 1:
            text = " ".join(block.split())
            if _is_prose(text):
                yield text


def _is_prose(text: str) -> bool:
    words = text.split()
    if not (N_SHORTEST <= len(words) <= N_LONGEST and text.isascii()):
        return False
    if not (text[0].isupper() and text[-1] in ".!?") or _NOT_PROSE.search(text):
        return False
    return sum(map(bool, map(_PLAIN.fullmatch, words))) >= PLAIN_SHARE * len(words)


def pieces(text: str) -> Iterator[str]:
    """A text's paragraphs, which blank lines separate, each in one line; longer ones in pieces of 90 words.

    What has fewer than 15 words is left out.

    >>> [len(piece.split()) for piece in pieces("a b c\\n\\n" + "word " * 100 + "\\n\\n" + "word " * 20)]
    [90, 20]
    """
    for block in re.split(r"\n\s*\n", text):
        words = block.split()
        for start in range(0, len(words), N_LONGEST):
            if len(piece := words[start : start + N_LONGEST]) >= N_SHORTEST:
                yield " ".join(piece)
