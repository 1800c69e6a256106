"""The features without which most changes, as a study's page lists them."""

from __future__ import annotations

from typing import Any

from delta_transcoders.report.columns import ranked_measures, title
from delta_transcoders.report.formatting import table_number
from delta_transcoders.report.one_feature import dropped_rows, one_word
from delta_transcoders.report.study_results import Row, StudyResults, number_of

N_LISTED = 8
N_TOKENS = 4


def feature_lists(results: StudyResults) -> list[dict[str, Any]]:
    """Two lists: by ΔCE and by the measure that the ranking is by, by subset; none without a ranking."""
    if not (dropped := dropped_rows(results)):
        return []
    subsets = list(dict.fromkeys(row["subset"] for row in dropped))
    subset = results.subset if results.subset in subsets else subsets[0]
    measures = ranked_measures(dropped[0])
    others = [name for name in subsets if name != subset]
    cells = {(row["layer"], row["feature"], row["subset"]): row for row in dropped}
    features = _statistics(results)
    lists = []
    for measure in dict.fromkeys(["dce", measures[0]]):
        if measure not in measures:
            continue
        largest: dict[tuple[str, str], float] = {}
        for row in dropped:
            place, change = (row["layer"], row["feature"]), abs(number_of(row, measure))
            if change == change:
                largest[place] = max(change, largest.get(place, 0.0))
        listed = []
        for place in sorted(largest, key=lambda place: -largest[place])[:N_LISTED]:
            name = f"L{place[0]}F{place[1]}"
            by_subset = [cells.get((*place, other), {}) for other in (subset, *others)]
            listed.append(
                {
                    "name": name,
                    "tokens": features.get(name, []),
                    "cells": [_change(r, measure) for r in by_subset],
                }
            )
        lists.append(
            {
                "title": f"By {title(measure)}, the largest change on any subset",
                "columns": [f"{title(measure)}, {name}" for name in (subset, *others)],
                "has_tokens": bool(features),
                "rows": listed,
            }
        )
    return lists


def _change(row: Row, measure: str) -> str:
    """With four decimals: what one feature does is small."""
    text = table_number(row, measure, "not measured", is_difference=True, decimals=4)
    return text.replace("-", "−")


def _statistics(results: StudyResults) -> dict[str, list[str]]:
    """Each feature's most telling tokens; empty without statistics."""
    if not (results.study / "features" / "features.json").is_file():
        return {}
    from delta_transcoders.features.files import read_features

    found = read_features(results.study / "features")
    return {f.name: [one_word(t.token) for t in f.tokens[:N_TOKENS]] for f in found}
