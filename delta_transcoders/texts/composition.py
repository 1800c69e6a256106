"""What the text of base dictionaries consists of: `composition.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from transformers import PreTrainedTokenizerBase

    from delta_transcoders.texts.sources import Text

FORMAT_VERSION = 1
SHARES = {"chats": 0.2, "requests": 0.1}
"""Of the tokens; the rest is prose."""


def tokens_in(taken: Sequence[tuple[Text, int]]) -> int:
    return sum(n for _, n in taken)


def of_split(taken: Mapping[str, Sequence[tuple[Text, int]]], asked: int) -> dict[str, Any]:
    """What a split consists of.

    Args:
        taken: texts with their tokens, by kind.
        asked: tokens.
    """
    total = sum(map(tokens_in, taken.values()))
    kinds = {}
    for kind, texts in taken.items():
        n = tokens_in(texts)
        share = SHARES.get(kind, 1 - sum(SHARES.values()))
        kinds[kind] = {
            "texts": len(texts),
            "tokens": n,
            "asked": round(share * asked),
            "share": round(n / total, 4),
        }
    return {"texts": sum(map(len, taken.values())), "tokens": total, "kinds": kinds}


def of_packages(
    splits: Mapping[str, Mapping[str, Sequence[tuple[Text, int]]]],
    installed: Mapping[str, Distribution],
) -> list[dict[str, Any]]:
    """Of each package that text was taken from: version, licence, and how much it is, the most first."""
    from delta_transcoders.texts.sources import licence

    texts = [text for taken in splits.values() for of_kind in taken.values() for text in of_kind]
    paragraphs = Counter(text.origin for text, _ in texts if text.origin)
    tokens: Counter[str] = Counter()
    for text, n in texts:
        tokens[text.origin] += n
    return [
        {
            "package": name,
            "version": installed[name].version,
            "licence": licence(installed[name]),
            "paragraphs": n,
            "tokens": tokens[name],
        }
        for name, n in sorted(paragraphs.items(), key=lambda item: (-tokens[item[0]], item[0]))
    ]


def origin(
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    replies: str | None,
    source: str,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """What a text was made from, and the hashes of its files.

    Args:
        folder: of the text; the others are those of `collect.collect`.
    """
    from delta_transcoders.fingerprints import hash_texts, tokenizer_fingerprint
    from delta_transcoders.hub import portable_name
    from delta_transcoders.weights import StoredWeights

    def hashed(path: Path) -> str:
        return hash_texts([path.read_text(encoding="utf-8")])

    return {
        "format_version": FORMAT_VERSION,
        "model": portable_name(model),
        "model_fingerprint": StoredWeights(model).fingerprint(),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "source": source,
        "replies_sha256": hashed(Path(replies)) if replies else None,
        "seed": seed,
        "text_sha256": {
            split: hashed(folder / f"{split}.jsonl") for split in ("train", "validation")
        },
    }
