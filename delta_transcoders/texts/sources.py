"""Where a text for base dictionaries comes from: documents in an order that a seed decides.

A document is a list of texts that stay in one split: the paragraphs of a module or of a file, or one chat.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.foreign_text import letters, numbered, parse_json, shown
from delta_transcoders.hub import hub_texts
from delta_transcoders.tasks.task import Example, Message
from delta_transcoders.tasks.three_tools.replies import COMMAND
from delta_transcoders.tasks.three_tools.requests import requests_for_base_text
from delta_transcoders.texts.prose import docstring_paragraphs, pieces

DOCSTRINGS, OWN_TEXT, CHATS, REQUESTS = "docstrings", "own_text", "chats", "requests"
SOURCES = "docstrings, file:PATH, folder:PATH or hub:DATASET[:CONFIG]"
OURS = "delta-transcoders"
N_PROMPT = 4
"""Words of a paragraph that are its prompt; the rest is its target, and both are read as one text."""


class Text(NamedTuple):
    """One line of the files.

    Attributes:
        identity: two texts with the same one are duplicates.
        origin: the installed package it is from; empty for others.
    """

    example: Example
    identity: str
    origin: str = ""


Documents = Iterator[list[Text]]


def paragraph(text: str, kind: str, origin: str = "") -> Text:
    """A piece of prose. What differs from another in names, numbers and marks alone is its duplicate.

    >>> paragraph("A Box holds all 7 of its rows.", "own_text").identity
    'holdsallofitsrows.'
    """
    words = text.split()
    example = Example(" ".join(words[:N_PROMPT]), f" {' '.join(words[N_PROMPT:])}", kind)
    # Packages repeat a paragraph for each of their classes, with its name in it.
    return Text(example, letters(" ".join(filter(str.islower, words))) or letters(text), origin)


def chat(messages: tuple[Message, ...], answer: str | None, kind: str) -> Text:
    """A chat; another with the same messages before the answer is its duplicate."""
    identity = "\n".join(letters(message.content) for message in messages)
    return Text(Example(messages, answer, kind), identity)


def in_seeded_order(names: Iterable[str], seed: int) -> list[str]:
    """Names in an order that depends on themselves and the seed alone, not on that of the files."""
    return sorted(
        names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode(errors="replace")).digest()
    )


def packages() -> dict[str, Distribution]:
    """The installed packages but this one, by name; the first one found of each, as imports have it."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        # A *.dist-info that lost its METADATA has no name, or no metadata at all, as Python's version has it.
        if name := (distribution.metadata or {}).get("Name"):
            found.setdefault(name.lower().replace("_", "-"), distribution)
    found.pop(OURS, None)
    return dict(sorted(found.items()))


def licence(distribution: Distribution) -> str:
    """A package's licence, as its metadata says it in one line; empty where it says nothing."""
    said = distribution.metadata
    classifiers = [c for c in said.get_all("Classifier") or () if c.startswith("License ::")]
    for text in (
        said.get("License-Expression"),
        *(c.rsplit(" :: ", 1)[1] for c in classifiers),
        said.get("License"),
    ):
        if text and text.strip():
            return shown(text.strip().splitlines()[0][:80])
    return ""


def docstrings(installed: dict[str, Distribution], seed: int) -> Documents:
    """Paragraphs of the packages' docstrings, module by module, tests left out."""
    modules: dict[str, tuple[str, Path]] = {}
    for name, distribution in installed.items():
        for file in distribution.files or ():
            is_test = any(re.match(r"(conf)?tests?\b|test_|testing$", part) for part in file.parts)
            if file.suffix == ".py" and ".." not in file.parts and not is_test:
                modules[f"{name}/{file.as_posix()}"] = name, Path(str(file.locate()))
    for module in in_seeded_order(modules, seed):
        name, path = modules[module]
        if path.is_file():
            found = docstring_paragraphs(path.read_bytes())
            yield [paragraph(text, DOCSTRINGS, name) for text in found]


def own_text(source: str, seed: int) -> Documents:
    """Paragraphs of `file:PATH`, each a document, of a folder's files, or of a hub dataset's texts.

    Args:
        seed: of the order of paragraphs or files; a hub dataset's texts come in its own.

    Raises:
        FileNotFoundError: no such file, or no *.txt or *.md in the folder.
        ConnectionError, ValueError: of a hub dataset as `hub_texts`; another kind of source; not UTF-8.
    """
    kind, _, where = source.partition(":")
    if kind not in ("file", "folder", "hub") or not where:
        raise ValueError(f"--source is {source!r}, expected {SOURCES}")
    if kind == "hub":
        dataset, _, config = where.partition(":")
        for text in hub_texts(dataset, config or None):
            yield [paragraph(piece, OWN_TEXT) for piece in pieces(text)]
        return
    path = Path(where).expanduser()
    if kind == "file":
        if not path.is_file():
            raise FileNotFoundError(f"--source {source}: no file {path}")
        for piece in in_seeded_order(set(pieces(_read(path))), seed):
            yield [paragraph(piece, OWN_TEXT)]
        return
    files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    files = {name: p for name, p in files.items() if p.suffix in (".txt", ".md")}
    if not files:
        raise FileNotFoundError(f"--source {source}: no *.txt or *.md file in {path}")
    for name in in_seeded_order(files, seed):
        yield [paragraph(piece, OWN_TEXT) for piece in pieces(_read(files[name]))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from None


def chats(replies: str, seed: int) -> Documents:
    """The chats of a file of `{"messages": …, "target": …, "kind": "chat"}`.

    Replies of other kinds, which are of the task, and empty ones are left out.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that is no reply; names it.
    """
    if not Path(replies).expanduser().is_file():
        remake = f"{COMMAND} MODEL OUT [--dtype bfloat16]"
        raise FileNotFoundError(f"--replies {replies}: no such file; make it: {remake}")
    found = numbered(replies, _reply).values()
    by_text = {
        text.identity: text for kind, text in found if kind == "chat" and text.example.target
    }
    for identity in in_seeded_order(by_text, seed):
        yield [by_text[identity]]


def _reply(line: str, where: str) -> tuple[str, Text]:
    match parse_json(line, where):
        case {"messages": [*turns], "target": str(answer), "kind": str(kind)} if turns and all(
            isinstance(turn, dict) and turn.keys() == {"role", "content"} for turn in turns
        ):
            return kind, chat(tuple(Message(**turn) for turn in turns), answer.strip(), CHATS)
    raise ValueError(f"{where}: needs messages, target and kind: {line[:60]!r}")


def requests(seed: int) -> Documents:
    """Requests of the task's kind without an answer, endlessly."""
    for prompt in requests_for_base_text(seed):
        yield [chat((Message("user", prompt),), None, REQUESTS)]
