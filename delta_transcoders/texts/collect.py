"""Collect the text that a real model's base dictionaries are trained on.

`python -m delta_transcoders.texts.collect --help`. Three kinds of text, in fixed shares of the tokens: prose,
of the docstrings of the installed packages or of a source of one's own (70 %); chats, the model's own replies
(20 %); and requests of the kind that the task is about, in other wordings than its own (10 %). What there is
too little of is filled up with prose. `composition.json` says what the text consists of.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transcoders import files
from delta_transcoders.command import run as run_command
from delta_transcoders.texts.composition import SHARES, of_packages, of_split, origin, tokens_in

if TYPE_CHECKING:
    from delta_transcoders.tasks.task import Example
    from delta_transcoders.texts.sources import Documents, Text

OUTPUT_KIND = "base_text"
BYTES_PER_TOKEN = 10
"""Of the files, from above: the text, and the JSON around it."""
SAY_EVERY = 200_000
"""Tokens."""


class Collector:
    """Takes texts, each once, and counts the tokens that a capture keeps of them (`TokenPolicy`).

    Args:
        model: folder or hub id of the model, whose tokenizer counts.

    Attributes:
        left_out: texts by kind and reason.
    """

    def __init__(self, model: str) -> None:
        from delta_transcoders.families import family_of
        from delta_transcoders.families.tokens import special_ids
        from delta_transcoders.language_models import load_config, load_tokenizer
        from delta_transcoders.tasks.paragraphs import Paragraphs

        self.tokenizer = load_tokenizer(model)
        self.family = family_of(load_config(model))
        self.special = frozenset(special_ids(self.tokenizer).tolist())
        self.task = Paragraphs()  # of which nothing but its opening is asked, and it has none
        self.seen: set[str] = set()
        self.left_out: dict[str, Counter[str]] = {}

    def take(self, documents: Documents, n_tokens: int) -> list[tuple[Text, int]]:
        """Texts of so many tokens or a little more, or all that there are, with their tokens.

        What is left of the last document is in no split.
        """
        taken: list[tuple[Text, int]] = []
        total = 0
        while total < n_tokens and (document := next(documents, None)) is not None:
            for text in document:
                if total >= n_tokens:
                    break
                if n := self._new_tokens(text):
                    taken.append((text, n))
                    if total // SAY_EVERY < (total + n) // SAY_EVERY:
                        print(
                            f"  {text.example.subset}: {total + n:,} of {n_tokens:,} tokens",
                            flush=True,
                        )
                    total += n
        return taken

    def _new_tokens(self, text: Text) -> int:
        """Tokens of a text that can be taken; 0 of another."""
        from delta_transcoders.language_models import tokenize

        reasons = self.left_out.setdefault(text.example.subset, Counter(duplicate=0, too_long=0))
        if text.identity in self.seen:
            reasons["duplicate"] += 1
            return 0
        self.seen.add(text.identity)
        [row] = tokenize(self.tokenizer, self.task, [text.example])
        if len(row) > self.family.context:
            reasons["too_long"] += 1
            return 0
        ids = (*row.prompt_ids, *row.target_ids)[self.family.tokens.leading :]
        return sum(i not in self.special for i in ids)


def collect(
    out: str | Path,
    model: str,
    tokens: int,
    validation_tokens: int,
    replies: str | None = None,
    source: str = "docstrings",
    seed: int = 0,
) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl` and `composition.json` to `out`; returns the composition.

    The files are as `tasks.examples.Examples` reads them. No document and no text is in both. The same
    arguments give the same files, whatever the order of files on a disk, where the same packages are
    installed.

    Args:
        out: folder; an earlier text there is replaced.
        model: folder or hub id of the model that the dictionaries are to explain.
        tokens: for training, as a capture counts them: without special tokens and the first of each text.
        validation_tokens: held out.
        replies: file of `{"messages": …, "target": …}`, the model's own; without it there are no chats.
        source: of the prose, see `sources.SOURCES`.
        seed: of what is taken, and its order.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: no such model, source or replies; a model without a
            chat template; too little text or disk.
    """
    from delta_transcoders.language_models import check_model_source
    from delta_transcoders.texts import sources

    check_model_source(model)
    _check_disk(Path(out), tokens + validation_tokens)
    with files.new_output(out, OUTPUT_KIND) as folder:
        installed = sources.packages() if source == sources.DOCSTRINGS else {}
        prose = sources.docstrings(installed, seed) if installed else sources.own_text(source, seed)
        others = {
            "chats": sources.chats(replies, seed) if replies else iter(()),
            "requests": sources.requests(seed),
        }
        collector, splits = Collector(model), {}
        for split, n_tokens in (("validation", validation_tokens), ("train", tokens)):
            print(f"{split}: {n_tokens:,} tokens", flush=True)
            splits[split] = _take_split(collector, others, prose, n_tokens, source)
            texts = [text.example for taken in splits[split].values() for text, _ in taken]
            random.Random(f"base text {split} {seed}").shuffle(texts)
            _write(folder / f"{split}.jsonl", texts)
        composition = origin(model, collector.tokenizer, replies, source, seed, folder)
        composition["splits"] = {
            split: of_split(splits[split], n)
            for split, n in (("train", tokens), ("validation", validation_tokens))
        }
        composition["left_out"] = collector.left_out
        composition["packages"] = of_packages(splits, installed)
        files.write_json(folder / "composition.json", composition)
        files.finish_output(out)
    return composition


def _take_split(
    collector: Collector,
    others: Mapping[str, Documents],
    prose: Documents,
    n_tokens: int,
    source: str,
) -> dict[str, list[tuple[Text, int]]]:
    """By kind; prose fills up."""
    taken = {}
    for kind, documents in others.items():
        asked = round(SHARES[kind] * n_tokens)
        taken[kind] = collector.take(documents, asked)
        if (n := tokens_in(taken[kind])) < asked:
            print(f"  {kind}: {n:,} of {asked:,} tokens, all there are; prose fills up", flush=True)
    asked = n_tokens - sum(map(tokens_in, taken.values()))
    kind = "docstrings" if source == "docstrings" else "own_text"
    taken[kind] = collector.take(prose, asked)
    if (n := tokens_in(taken[kind])) < asked:
        raise ValueError(
            f"too little text: --source {source} has {n:,} of the {asked:,} tokens that are still needed; "
            "give another source, or fewer --tokens"
        )
    return taken


def _write(path: Path, examples: list[Example]) -> None:
    from delta_transcoders.tasks.examples import Examples

    Examples(str(path), judge="refusal").write(path, examples)


def _check_disk(out: Path, n_tokens: int) -> None:
    free, need = files.free_bytes(out) / 1e6, n_tokens * BYTES_PER_TOKEN / 1e6
    if free < need:
        raise ValueError(f"{out} needs {need:,.0f} MB of disk, {out.parent} has {free:,.0f} free")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "number above 0"  # as argparse names it


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Collect the text that a real model's base dictionaries are trained on: 70 % prose, "
        "20 % chats (the model's own replies), 10 % requests of the task's kind. Prose fills up what there "
        "is too little of."
    )
    parser.add_argument("out", help="folder to write, for example runs/smollm2_base/base_text")
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument(
        "--tokens",
        type=_positive,
        default=1_500_000,
        metavar="N",
        help="for training (default: %(default)s)",
    )
    parser.add_argument(
        "--validation-tokens",
        type=_positive,
        default=60_000,
        metavar="N",
        help="held out (default: %(default)s)",
    )
    parser.add_argument(
        "--replies",
        metavar="FILE",
        help="replies.jsonl of delta_transcoders.tasks.three_tools.replies",
    )
    parser.add_argument(
        "--source",
        default="docstrings",
        help="of the prose: docstrings of the installed packages (default), file:PATH, folder:PATH (*.txt, "
        "*.md) or hub:DATASET[:CONFIG]",
    )
    parser.add_argument("--seed", type=int, default=0)
    composition = collect(**vars(parser.parse_args()))
    for split, of in composition["splits"].items():
        kinds = ", ".join(
            f"{kind} {k['tokens']:,} ({k['share']:.0%})" for kind, k in of["kinds"].items()
        )
        print(f"{split}: {of['texts']:,} texts, {of['tokens']:,} tokens: {kinds}")


if __name__ == "__main__":
    run_command(main)
