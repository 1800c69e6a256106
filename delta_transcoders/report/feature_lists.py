"""The features without which most changes, as a study's page lists them."""

from __future__ import annotations

import math
from typing import Any

from delta_transcoders.report.columns import ranked_measures, title
from delta_transcoders.report.formatting import table_number
from delta_transcoders.report.one_feature import dropped_rows, feature_set, one_word
from delta_transcoders.report.study_results import Row, StudyResults, number_of

N_LISTED = 8
N_TOKENS = 4


def feature_lists(results: StudyResults) -> list[dict[str, Any]]:
    """Two lists, by ΔCE and by the measure that the ranking is by, on the subset that the answer is about;
    none without a ranking, or where it is damaged."""
    dropped = results.attempt(lambda: dropped_rows(results))
    if not dropped or not ranked_measures(dropped[0]):
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
        changes = {
            (row["layer"], row["feature"]): abs(number_of(row, measure))
            for row in dropped
            if row["subset"] == subset and not math.isnan(number_of(row, measure))
        }
        listed = []
        for place in sorted(changes, key=lambda place: -changes[place])[:N_LISTED]:
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
                "title": f"By {title(measure)} on {subset}",
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
    if not (found := feature_set(results)):
        return {}
    known = results.attempt(
        lambda: {f.name: [one_word(t.token) for t in f.tokens[:N_TOKENS]] for f in found}
    )
    return known or {}
