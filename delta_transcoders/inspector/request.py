"""What is asked of a study: a prompt, what to leave out, and how much of the delta."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

WHOLE = ("base_model", "raw", "no_delta", "full")
"""Conditions that features are never dropped from."""
STRONGEST = 3
"""Features that are shown of each token and layer."""
LARGEST_ALPHA = 10.0
MOST_ALPHAS = 16
LONGEST_ANSWER = 1024
"""Tokens: a request must not keep the models busy for hours."""
LONGEST_PROMPT = 20_000
"""Letters: what would not fit any context is refused before it is tokenized."""

_FEATURE = re.compile(r"[lL]?(\d{1,6})\s*[:fF]\s*(\d{1,9})")


@dataclass(frozen=True)
class Request:
    """One prompt, and what is to be done with it.

    Attributes:
        prompt: as it is typed; `Session` brings it into the form of the study's own prompts.
        conditions: of `WHOLE`.
        alphas: answers of base + α·delta beside them; 1 where features are dropped and none is given.
        layers: where MLPs are replaced; None: all that have a delta.
        drop: layer and number of features that are left out of each α·delta.
        max_new_tokens: longest answer, `LONGEST_ANSWER` at most; the study's own where None.

    Raises:
        ValueError: a value of another type, or out of range; names it.
    """

    prompt: str
    conditions: tuple[str, ...] = WHOLE
    alphas: tuple[float, ...] = ()
    layers: tuple[int, ...] | None = None
    drop: tuple[tuple[int, int], ...] = ()
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"the prompt is {self.prompt!r:.60}, expected a text")
        if not self.prompt.strip():
            raise ValueError("the prompt is empty: write something that the model can answer")
        if len(self.prompt) > LONGEST_PROMPT:
            raise ValueError(
                f"the prompt has {len(self.prompt)} letters, at most {LONGEST_PROMPT} are read"
            )
        if any(0xD800 <= ord(letter) < 0xE000 for letter in self.prompt):
            raise ValueError("the prompt holds half of a character (a lone surrogate), no text")
        for name in (
            "conditions",
            "alphas",
            "drop",
            *(["layers"] if self.layers is not None else []),
        ):
            value = getattr(self, name)
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise ValueError(f"{name} is {value!r:.60}, expected a list")
        for name in self.conditions:
            if name not in WHOLE:
                raise ValueError(f"there is no condition {name!r:.60}; there is {', '.join(WHOLE)}")
        if len(self.alphas) > MOST_ALPHAS:
            raise ValueError(f"{len(self.alphas)} values of alpha, at most {MOST_ALPHAS} at once")
        for alpha in self.alphas:
            if not _is_number(alpha) or not abs(alpha) <= LARGEST_ALPHA:
                raise ValueError(
                    f"alpha is {alpha!r:.60}, expected a number from -{LARGEST_ALPHA:g} to {LARGEST_ALPHA:g}"
                )
            if round(alpha, 2) != alpha:
                raise ValueError(f"alpha is {alpha!r}, expected two decimals at most")
        for layer in self.layers or ():
            _check_count(layer, "a layer")
        for feature in self.drop:
            if not isinstance(feature, Sequence) or isinstance(feature, str) or len(feature) != 2:
                raise ValueError(f"drop holds {feature!r:.60}, expected [layer, feature]")
            _check_count(feature[0], "the layer of a feature")
            _check_count(feature[1], "the number of a feature")
        if self.max_new_tokens is not None:
            _check_count(self.max_new_tokens, "max_new_tokens", least=1)
            if self.max_new_tokens > LONGEST_ANSWER:
                raise ValueError(
                    f"max_new_tokens is {self.max_new_tokens!r:.60}, at most {LONGEST_ANSWER} are written"
                )


def request_of(content: Any) -> Request:
    """The request that a JSON value says.

    Raises:
        ValueError: no object, an unknown key, no prompt, or as `Request`.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"the request is {content!r:.60}, expected a JSON object")
    known = [field.name for field in fields(Request)]
    for key in content:
        if key not in known:
            raise ValueError(
                f"the request has the unknown key {key!r:.60}; known are {', '.join(known)}"
            )
    if "prompt" not in content:
        raise ValueError("the request has no prompt")
    frozen = {name: _frozen(value) for name, value in content.items()}
    return Request(**frozen)


def feature_of(text: str) -> tuple[int, int]:
    """Layer and number of a feature.

    >>> feature_of("0:31"), feature_of("L12F3")
    ((0, 31), (12, 3))
    """
    found = _FEATURE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no feature: give layer and number, as in 0:31 or L0F31")
    return int(found[1]), int(found[2])


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float)


def _check_count(value: Any, what: str, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} is {value!r:.60}, expected a whole number from {least}")
