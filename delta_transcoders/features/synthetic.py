"""Made-up features of any number, to try pages, exports and files on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from delta_transcoders.features.feature import (
    WINDOW,
    Activity,
    Context,
    Effect,
    Feature,
    Kind,
    TokenActivity,
)

SUBSETS = {"tool": False, "copy": False, "tool (held out)": True, "tool_ood": True}
"""Names, and whether they are held out."""
WORDS = (
    "What",
    " is",
    " #",
    "7",
    "12",
    " *",
    " +",
    "\n",
    "<tool_call>",
    "calculator",
    "(",
    ")",
    "\\xf0",
)
HOSTILE = (
    "</script><script>document.title='x'</script>",
    "<img src=x onerror=\"document.title='x'\">",
    "\u202e",
    "\u2028",
    "\x00",
    "&quot;{{7*7}}",
    "'\"",
)
_KINDS: tuple[tuple[Kind, int], ...] = (
    ("top", 12), ("fifth_4", 4), ("fifth_3", 4), ("fifth_2", 4), ("fifth_1", 4), ("silent", 4),
)  # fmt: skip


def synthetic_features(
    n_layers: int, n_features: int, seed: int = 0, *, hostile: bool = False
) -> Iterator[Feature]:
    """All features by layer and number. In every layer, feature 2 is silent everywhere.

    Args:
        hostile: put texts among the tokens that break a page which does not escape them.
    """
    words = np.array(WORDS + (HOSTILE if hostile else ()), dtype=object)
    for layer in range(n_layers):
        for number in range(n_features):
            generator = np.random.default_rng([seed, layer, number])
            maximum = 0.0 if number == 2 else float(generator.uniform(0.5, 8))
            yield _feature(generator, layer, number, n_features, maximum, words)


def _feature(
    generator: np.random.Generator,
    layer: int,
    number: int,
    n_features: int,
    maximum: float,
    words: np.ndarray,
) -> Feature:
    silent = maximum == 0
    shown = [str(word) for word in generator.permutation(words)[:10]]
    others = [(layer, k) for k in range(n_features) if k != number][:5]
    contexts = [
        _context(generator, subset, kind, maximum, words)
        for subset in SUBSETS
        for kind, n in _KINDS
        for _ in range(n if kind == "silent" or not silent else 0)
    ]
    return Feature(
        layer=layer,
        number=number,
        maximum=maximum,
        activity={name: _activity(generator, maximum, out) for name, out in SUBSETS.items()},
        tokens=() if silent else tuple(
            TokenActivity(t, 0.3 / (i + 1), float(generator.random()), maximum / (i + 2))
            for i, t in enumerate(shown)
        ),
        promotes=tuple((t, 2.0 - 0.1 * i) for i, t in enumerate(shown)),
        suppresses=tuple((t, -2.0 + 0.1 * i) for i, t in enumerate(reversed(shown))),
        together=() if silent else tuple((*o, 0.5 / (i + 1)) for i, o in enumerate(others)),
        matches=(("runs/other/delta", number, float(generator.random())),),
        effects=tuple(_effects(generator, number)),
        attributions={"ig_target": {"tool": float(generator.normal()), "copy": 0.0}},
        contexts=tuple(contexts),
    )  # fmt: skip


def _activity(generator: np.random.Generator, maximum: float, held_out: bool) -> Activity:
    n_tokens, density = 2000, float(generator.uniform(0.001, 0.3))
    fired = 0 if maximum == 0 else round(n_tokens * density)
    counts = generator.multinomial(fired, np.full(20, 0.05))
    return Activity(
        held_out=held_out,
        n_tokens=n_tokens,
        n_examples=100,
        density=fired / n_tokens,
        example_density=min(1.0, fired / 100),
        mean=maximum / 2 if fired else math.nan,
        maximum=maximum,
        histogram=tuple(counts.tolist()),
    )


def _effects(generator: np.random.Generator, number: int) -> Iterator[Effect]:
    for subset in ("tool", "tool_ood", "copy"):
        for measure in ("dce", "d_tool_call_rate"):
            value = float(generator.normal(scale=0.1))
            if number == 1:
                value = math.nan
            yield Effect("dropped", subset, measure, value, value - 0.05, value + 0.05, 100)


def _context(
    generator: np.random.Generator, subset: str, kind: Kind, maximum: float, words: np.ndarray
) -> Context:
    n = int(generator.integers(8, WINDOW + 1))
    peak = n - 1 if kind == "silent" else int(generator.integers(1, n))
    strength = {"top": 0.95, "silent": 0.0}.get(
        kind, 0.2 * int(kind[-1]) - 0.1 if kind[-1].isdigit() else 0
    )
    activations = np.where(generator.random(n) < 0.2, 0.5 * strength * maximum, 0.0)
    activations[peak] = strength * maximum
    activations[0] = math.nan
    tokens = ("<bos>", *(str(word) for word in generator.choice(words, n - 1)))
    return Context(
        kind=kind,
        subset=subset,
        example=str(generator.integers(1000)),
        tokens=tokens,
        special=(True, *[False] * (n - 1)),
        activations=tuple(float(a) for a in activations.astype(np.float32)),
        peak=peak,
        target_from=n // 2 if n % 2 else None,
        cut_left=bool(generator.random() < 0.3),
        cut_right=bool(generator.random() < 0.3),
        n_alike=int(generator.integers(0, 20)),
    )
