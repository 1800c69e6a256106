"""General text as examples: what an intervention does to anything else than the behaviour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from delta_transcoders.files import write_text
from delta_transcoders.foreign_text import text_lines
from delta_transcoders.tasks.task import Example, Task

N_PROMPT, N_LONGEST, N_SHORTEST = 4, 64, 12
"""Words: of a prompt, of the longest piece of text, and of the shortest that is used."""


class Paragraphs(Task):
    """Pieces of a text file, each its first four words as the prompt and the rest as the target.

    Blank lines separate paragraphs; longer ones are cut into pieces of 64 words, and what has fewer than 12
    is left out. Nothing is judged: a cross-entropy, or a KL, needs no answer.
    """

    def judge(self, text: str, example: Example) -> Mapping[str, bool | None]:
        return {}

    def read(self, path: str | Path) -> dict[int, Example]:
        """Pieces by their number, from 1."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no file {str(path)!r}")
        paragraphs: list[list[str]] = []
        last = None
        for number, line in text_lines(path):
            if last is None or number > last + 1:
                paragraphs.append([])
            paragraphs[-1] += line.split()
            last = number
        pieces = [
            words[start : start + N_LONGEST]
            for words in paragraphs
            for start in range(0, len(words), N_LONGEST)
        ]
        pieces = [words for words in pieces if len(words) >= N_SHORTEST]
        if not pieces:
            raise ValueError(f"{path} has no paragraph of {N_SHORTEST} words or more")
        return {
            number: Example(" ".join(words[:N_PROMPT]), f" {' '.join(words[N_PROMPT:])}", "text")
            for number, words in enumerate(pieces, start=1)
        }

    def write(self, path: str | Path, examples: Iterable[Example]) -> None:
        write_text(path, "\n\n".join(f"{e.prompt}{e.target}" for e in examples) + "\n")
