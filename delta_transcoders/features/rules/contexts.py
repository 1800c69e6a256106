"""What a person or a model reads before writing a unit's rule: places of half A, each with the text before.

    100 %  …is 12 * 34?⏎<call>mul«(»⟦12⟧

The token in question stands in ⟦⟧, others on which the unit fires in «»; what comes after a token
cannot have changed an activation, and is left out. Line breaks are ⏎, in rules `\\n`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from delta_transcoders.features.rules.firing import FiringTable
from delta_transcoders.foreign_text import shown

WINDOW = 40
"""Tokens that are shown, the one in question last."""
N_STRONGEST, N_OTHERS, N_SAME_TOKEN, N_SILENT = 12, 10, 6, 6
HOW_TO_READ = """\
Where each unit fires on half A of the wordings: the token in ⟦⟧ with the text before it, others on which
the unit fires in «», line breaks as ⏎ (`\\n` in a rule). In front of each, the activation above the unit's
threshold in % of its largest. Of texts that are the same but for digits one is shown.
"""


def contexts_text(firing: FiringTable, seed: int = 0) -> str:
    """Contexts of all units, by name."""
    parts = [HOW_TO_READ]
    for u, unit in enumerate(firing.units):
        parts.append(f"{unit.name}: fires on {100 * unit.rate:.1f} % of the tokens\n")
        rng = np.random.default_rng([seed, u])
        for title, places in _chosen(firing, u, rng):
            lines = "".join(f"{_line(firing, u, place)}\n" for place in places)
            parts.append(f"{title}\n{lines}" if lines else f"{title}: none\n")
    return "\n".join(parts)


def _chosen(
    firing: FiringTable, u: int, rng: np.random.Generator
) -> Iterator[tuple[str, Sequence[int]]]:
    """Kinds of places with a title; of each kind one place a text, and none twice."""
    margins_P = firing.margins_PU[:, u]
    tokens = [token for text in firing.texts for token in text.tokens]
    fires = np.flatnonzero(margins_P > 0)
    strongest = fires[np.argsort(-margins_P[fires], kind="stable")]
    silent = rng.permutation(np.flatnonzero(margins_P <= 0))
    fired_on = {tokens[place] for place in fires}
    is_same = np.array([tokens[place] in fired_on for place in silent], dtype=bool)
    seen: set[str] = set()
    yield "strongest", _different(firing, strongest, N_STRONGEST, seen)
    others = _different(firing, rng.permutation(fires), N_OTHERS, seen)
    yield "others, at random", sorted(others, key=lambda place: -margins_P[place])
    same = _different(firing, silent[is_same], N_SAME_TOKEN, seen)
    yield "silent, though the token is one on which it fires", same
    yield "silent on another token", _different(firing, silent[~is_same], N_SILENT, seen)


def _different(firing: FiringTable, places: np.ndarray, n: int, seen: set[str]) -> list[int]:
    """The first n that are not like one in `seen`, each of another text."""
    chosen: dict[int, int] = {}
    for place in places.tolist():
        e, tokens, _ = _window(firing, place)
        alike = "\0".join(re.sub(r"\d+", "#", part) for part in ("".join(tokens[:-1]), tokens[-1]))
        if e not in chosen and alike not in seen:
            seen.add(alike)
            chosen[e] = place
        if len(chosen) == n:
            break
    return list(chosen.values())


def _window(firing: FiringTable, place: int) -> tuple[int, tuple[str, ...], bool]:
    """The text that a place is in, the tokens that are shown of it, and whether it starts before them."""
    e = int(np.searchsorted(firing.starts_E, place, side="right")) - 1
    end = place + 1 - int(firing.starts_E[e])
    first = max(0, end - WINDOW)
    return e, firing.texts[e].tokens[first:end], first > 0


def _line(firing: FiringTable, u: int, place: int) -> str:
    _, tokens, is_cut = _window(firing, place)
    margins_P = firing.margins_PU[:, u]
    before = zip(tokens[:-1], margins_P[place + 1 - len(tokens) :], strict=False)
    marked = "".join(f"«{token}»" if margin > 0 else token for token, margin in before)
    text = shown(f"{marked.replace('»«', '')}⟦{tokens[-1]}⟧").replace("\n", "⏎")
    share = 100 * margins_P[place] / np.nanmax(margins_P)
    strength = f"{share:.0f} %" if share > 0 else "–"
    return f"{strength:>7}  {'…' if is_cut else ''}{text}"
