"""The features without which most changes, as a study's page lists them."""

from __future__ import annotations

from typing import Any

from delta_transcoders.report.columns import ranked_measures, title
from delta_transcoders.report.formatting import table_number
from delta_transcoders.report.one_feature import dropped_rows, feature_name, one_word
from delta_transcoders.report.study_results import StudyResults, number_of

N_LISTED = 8
N_TOKENS = 4


def feature_lists(results: StudyResults) -> list[dict[str, Any]]:
    """Two lists of one subset: by the measure that the ranking is by, and by ΔCE; none without a ranking."""
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
        mine = [row for row in dropped if row["subset"] == subset]
        mine = [row for row in mine if number_of(row, measure) == number_of(row, measure)]
        mine.sort(key=lambda row: -abs(number_of(row, measure)))
        listed = []
        for row in mine[:N_LISTED]:
            place = row["layer"], row["feature"]
            name = feature_name(row)
            by_subset = [cells.get((*place, other), {}) for other in (subset, *others)]
            listed.append(
                {
                    "name": name,
                    "tokens": features.get(name, []),
                    "cells": [
                        table_number(r, measure, "not measured", is_difference=True)
                        for r in by_subset
                    ],
                }
            )
        lists.append(
            {
                "title": f"Without it, most changes in {title(measure)} on {subset}",
                "columns": [f"{title(measure)}, {name}" for name in (subset, *others)],
                "has_tokens": bool(features),
                "rows": listed,
            }
        )
    return lists


def _statistics(results: StudyResults) -> dict[str, list[str]]:
    """Each feature's most telling tokens; empty without statistics."""
    if not (results.study / "features" / "features.json").is_file():
        return {}
    from delta_transcoders.features.files import read_features

    found = read_features(results.study / "features")
    return {f.name: [one_word(t.token) for t in f.tokens[:N_TOKENS]] for f in found}
