"""The list beside the features: what it is searched, filtered and sorted by."""

from __future__ import annotations

import math
from typing import Any

from delta_transcoders.features.feature import HELD_OUT, Feature
from delta_transcoders.pages.encoding import short
from delta_transcoders.pages.words import measure_of

N_TOKENS = 5
"""Tokens of a feature that the list shows and finds."""
ATTRIBUTIONS = {
    "ig_target": "log p(target)",
    "ig_kl": "−KL from the finetuned model",
    "ig_prefix": "log p of how the behaviour begins",
}
"""What the integrated gradients of a ranking are taken of."""
ABLATIONS = {"dropped": "without it", "kept": "with it alone"}


class Index:
    """Of features that are added one by one."""

    def __init__(self) -> None:
        self._features: list[list[Any]] = []
        self._columns: dict[tuple[str, str], dict[str, Any]] = {}
        self._subsets: dict[str, tuple[bool, int]] = {}
        self._effect_subsets: dict[str, None] = {}

    def add(self, feature: Feature) -> None:
        position = len(self._features)
        tokens = [token.token for token in feature.tokens[:N_TOKENS]]
        self._features.append([feature.layer, feature.number, tokens])
        for name, activity in feature.activity.items():
            self._subsets.setdefault(name, (activity.held_out, activity.n_tokens))
            self._effect_subsets.setdefault(name.removesuffix(HELD_OUT))
            self._put("density", name, position, activity.density)
        self._put("rarity", "", position, _density(feature))
        for effect in feature.effects:
            measure = measure_of(effect.measure)
            group = ABLATIONS.get(effect.ablation, effect.ablation)
            name = f"{group}: {measure.title}, {effect.subset}"
            self._effect_subsets.setdefault(effect.subset)
            column = self._put(group, name, position, measure.scale * effect.value)
            column["decimals"] = measure.decimals
        for name, by_subset in feature.attributions.items():
            for subset, value in by_subset.items():
                title = f"attribution to {ATTRIBUTIONS.get(name, name)}, {subset}"
                self._put("attribution", title, position, value)

    def _put(self, group: str, title: str, position: int, value: float) -> dict[str, Any]:
        column = self._columns.setdefault((group, title), {"values": {}})
        if not math.isnan(value):
            column["values"][position] = short(value)
        return column

    def value(self) -> dict[str, Any]:
        """For the page's script: columns hold a number or null for each feature."""
        positions = range(len(self._features))
        columns = [
            {"group": group, "title": title, "decimals": column.get("decimals")}
            | {"values": [column["values"].get(position) for position in positions]}
            for (group, title), column in self._columns.items()
        ]
        return {
            "features": self._features,
            "columns": columns,
            "subsets": [[name, *known] for name, known in self._subsets.items()],
            "effectSubsets": list(self._effect_subsets),
            "attributionTitles": ATTRIBUTIONS,
        }


def _density(feature: Feature) -> float:
    """Over the tokens of all subsets."""
    known = [a for a in feature.activity.values() if not math.isnan(a.density)]
    n_tokens = sum(a.n_tokens for a in known)
    return sum(a.density * a.n_tokens for a in known) / n_tokens if n_tokens else math.nan
