"""Features as the JSON that the pages' scripts draw: short, safe inside a page, without nan."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from typing import Any

from delta_transcoders.features.feature import Context, Feature
from delta_transcoders.foreign_text import UNSEEN
from delta_transcoders.pages.words import measure_of, sentences

DIGITS = 6
"""Significant ones of every number, as in CSV files, but of the activations in contexts."""
ACTIVATION_DIGITS = 3
"""As many as a float16 cache has."""


def json_text(value: Any) -> str:
    r"""JSON for a page or a script: ASCII only, no <, > or &.

    Raises:
        ValueError: it holds nan, see `short`.

    >>> print(json_text(["</script>", "\u2028", None]))
    ["\u003c/script\u003e","\u2028",null]
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def short(value: Any, digits: int = DIGITS) -> Any:
    """With few digits, and None for what is no number, in whatever holds it.

    >>> short({"a": [0.12345678, 2.0, float("nan"), 123456]})
    {'a': [0.123457, 2, None, 123456]}
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = float(f"{value:.{digits}g}")
        return int(rounded) if rounded.is_integer() else rounded
    if isinstance(value, dict):
        return {key: short(held) for key, held in value.items()}
    return [short(held) for held in value] if isinstance(value, list | tuple) else value


class Texts:
    """The stretches of text of several features' contexts, each once, and the strings of their tokens."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, bool], int] = {}
        self._texts: dict[tuple, int] = {}

    def number(self, context: Context) -> int:
        """Of the context's stretch of text."""
        pairs = zip(context.tokens, context.special, strict=True)
        ids = tuple(self._tokens.setdefault(pair, len(self._tokens)) for pair in pairs)
        ends = (context.target_from, context.cut_left, context.cut_right)
        unread = tuple(i for i, value in enumerate(context.activations) if math.isnan(value))
        text = (context.subset, context.example, *ends, ids, unread)
        return self._texts.setdefault(text, len(self._texts))

    def value(self) -> dict[str, Any]:
        return {
            "tokens": [token for token, _ in self._tokens],
            "special": [i for (_, is_special), i in self._tokens.items() if is_special],
            "texts": list(self._texts),
        }


def block(features: Iterable[Feature], study: str, with_contexts: bool) -> dict[str, Any]:
    """What `register` takes: some features and the texts that their contexts share."""
    texts = Texts()
    encoded = [_feature(feature, study, texts if with_contexts else None) for feature in features]
    return {"features": encoded} | texts.value()


def _feature(feature: Feature, study: str, texts: Texts | None) -> dict[str, Any]:
    about = {
        "name": feature.name,
        "layer": feature.layer,
        "number": feature.number,
        "maximum": feature.maximum,
        "words": sentences(feature),
        "activity": {subset: vars(a) for subset, a in feature.activity.items()},
        "tokens": [[t.token, t.share, t.fires, t.mean] for t in feature.tokens],
        "promotes": feature.promotes,
        "suppresses": feature.suppresses,
        "together": [[f"L{layer}F{number}", j] for layer, number, j in feature.together],
        "matches": [
            [folder, f"L{feature.layer}F{number}", c] for folder, number, c in feature.matches
        ],
        "effects": _effects(feature),
        "attributions": feature.attributions,
        "command": drop_command(feature, study, with_prompt=texts is not None),
    }
    contexts = [_context(c, texts) for c in feature.contexts] if texts else []
    return short(about) | {"contexts": contexts}


def _effects(feature: Feature) -> list[dict[str, Any]]:
    """One entry for each ablation and measure, with its rows by subset, in the measure's unit."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for effect in feature.effects:
        measure = measure_of(effect.measure)
        if (effect.ablation, effect.measure) not in found:
            found[effect.ablation, effect.measure] = {
                "ablation": effect.ablation,
                "title": measure.title,
                "unit": measure.unit,
                "decimals": measure.decimals,
                "rows": {},
            }
        ends = [measure.scale * x for x in (effect.value, effect.low, effect.high)]
        found[effect.ablation, effect.measure]["rows"][effect.subset] = [*ends, effect.n_examples]
    return list(found.values())


def _context(context: Context, texts: Texts) -> list[Any]:
    """[text, kind, peak, n_alike, [token, activation, …] where it is active]."""
    digits = ACTIVATION_DIGITS
    active = [(i, short(value, digits)) for i, value in enumerate(context.activations) if value > 0]
    sparse = [number for pair in active for number in pair]
    return [texts.number(context), context.kind, context.peak, context.n_alike, sparse]


def drop_command(feature: Feature, study: str, with_prompt: bool) -> str:
    """What shows a prompt's answers without the feature; the prompt is that of its strongest context."""
    strongest = sorted(
        (context for context in feature.contexts if context.kind == "top"),
        key=lambda context: -context.activations[context.peak],
    )
    prompt = next(filter(None, map(_prompt, strongest)), None) if with_prompt else None
    words = [
        "delta-transcoders",
        "inspect",
        study,
        prompt or "PROMPT",
        "--drop",
        f"{feature.layer}:{feature.number}",
    ]
    return shlex.join(words)


def _prompt(context: Context) -> str | None:
    """A context's prompt, where it is whole and can be typed."""
    if context.cut_left or context.target_from is None:
        return None
    pairs = zip(context.tokens[: context.target_from], context.special, strict=False)
    text = "".join(token for token, is_special in pairs if not is_special).strip()
    is_plain = text.isprintable() and not UNSEEN.search(text) and "\\x" not in text
    return text if text and is_plain else None
