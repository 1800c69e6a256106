"""One feature to look at: chosen by attributions on half A of the wordings, told by half B without it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.report.columns import verdict
from delta_transcoders.report.study_results import FULL, Row, StudyResults, number_of
from delta_transcoders.report.tables import write_table
from delta_transcoders.tasks.wordings import half_of

FOLDERS = ("effects", "ranking")
"""Of rankings of features, the first that is there."""
CHOSEN_BY = "ig_target"


class Removal(NamedTuple):
    """Answers on half B of the wordings, with all features and without one: how many of n have a verdict."""

    feature: str
    subset: str
    measure: str
    n: int
    with_it: int
    without_it: int

    @property
    def change(self) -> int:
        return abs(self.with_it - self.without_it)


class OneFeature(NamedTuple):
    """
    Attributes:
        effects: its rows of the ranking, where those are of half B alone.
        n_dropped: features that were removed, one at a time.
        is_none_felt: whether no rate changes with any of them gone: all intervals of the changes hold 0.
    """

    name: str
    removals: tuple[Removal, ...]
    effects: tuple[Row, ...]
    n_dropped: int
    is_none_felt: bool


def feature_name(row: Row) -> str:
    return f"L{row['layer']}F{row['feature']}"


def dropped_rows(results: StudyResults) -> list[Row]:
    """Rows of the study's ranking about features that were removed one at a time; empty without a ranking."""
    for name in FOLDERS:
        if rows := results.table(f"{name}/ranking.csv"):
            return [row for row in rows if row["ablation"] == "dropped"]
    return []


def one_feature(results: StudyResults) -> OneFeature | None:
    """The feature with the largest attribution, its mean over subsets; None where half B was not answered."""
    scores: dict[str, list[float]] = defaultdict(list)
    rows = dropped_rows(results)
    for row in rows:
        score = abs(number_of(row, CHOSEN_BY))
        scores[feature_name(row)] += [score] if score == score else []
    best = max(scores, key=lambda name: sum(scores[name]) / max(1, len(scores[name])), default="")
    if not best or not sum(scores[best]):
        return None
    found, halves = removals(results)
    mine = tuple(removal for removal in found if removal.feature == best)
    effects = tuple(r for r in rows if feature_name(r) == best) if halves == {"B"} else ()
    changes = [f"d_{rate}_distinct" for rate in results.rates if f"d_{rate}_distinct" in rows[0]]
    felt = any(row[name] == "true" for row in rows for name in changes)
    return (
        OneFeature(best, mine, effects, len(scores), bool(changes) and not felt) if mine else None
    )


def removals(results: StudyResults) -> tuple[list[Removal], set[str]]:
    """Of every feature that was dropped alone, subset and measure; and the halves that were answered."""
    path = next(
        (file for f in FOLDERS if (file := results.study / f / "generations.jsonl").is_file()), None
    )
    names = {
        f"layer_{row['layer']}_dropped_{row['feature']}": feature_name(row)
        for row in dropped_rows(results)
    }
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    halves = set()
    for number, line in text_lines(path) if path else ():
        record = parse_json(line, f"{path}, line {number}")
        condition = record["condition"]
        halves.add(half := half_of(record["wording"]))
        if half == "A" or (condition not in names and condition != FULL):
            continue
        for rate in results.rates:
            if (found := record.get(verdict(rate))) is not None:
                count = counts[names.get(condition, ""), record["subset"], rate]
                count[0] += 1
                count[1] += found
    return [
        Removal(feature, subset, rate, n, counts["", subset, rate][1], n_true)
        for (feature, subset, rate), (n, n_true) in list(counts.items())
        if feature and counts["", subset, rate][0] == n
    ], halves


def fires_on(study: Path, feature: str) -> str:
    """The token that holds most of a feature's activity; empty where no statistics are there."""
    if not (study / "features" / "features.json").is_file():
        return ""
    from delta_transcoders.features.files import read_features

    layer, _, number = feature[1:].partition("F")
    tokens = read_features(study / "features").feature(int(layer), int(number)).tokens
    return one_word(tokens[0].token) if tokens else ""


def one_word(token: str) -> str:
    """A token that no terminal can be harmed by.

    >>> one_word(" of"), one_word(chr(27) + "[0m")
    ('␣of', '\\\\x1b[0m')
    """
    shown = token.replace(" ", "␣").replace("\n", "⏎")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)[:20]


def write_removals(path: Path, found: list[Removal]) -> None:
    write_table(path, Removal._fields, [removal._asdict() for removal in found])
