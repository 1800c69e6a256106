"""One feature to look at: chosen by attributions on half A of the wordings, told by half B without it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.metrics.intervals import paired_rates
from delta_transcoders.report.columns import verdict
from delta_transcoders.report.study_results import FULL, Row, StudyResults, number_of
from delta_transcoders.report.tables import write_table
from delta_transcoders.tasks.wordings import half_of

if TYPE_CHECKING:
    from delta_transcoders.features.files import FeatureSet

FOLDERS = ("effects", "ranking")
"""Of rankings of features: the first with answers counts, or else the first."""
CHOSEN_BY = "ig_target"
LABELS = ("layer", "feature", "ablation", "subset")


class Removal(NamedTuple):
    """Answers on half B of the wordings, with all features and without one: how many of n have a verdict."""

    feature: str
    subset: str
    measure: str
    n: int
    with_it: int
    without_it: int
    change: float
    """Of the rate, without minus with the feature; its interval is `metrics.intervals.paired_rates`'s."""
    change_ci_low: float
    change_ci_high: float

    @property
    def is_felt(self) -> bool:
        return self.change_ci_low > 0 or self.change_ci_high < 0

    @property
    def missed(self) -> float:
        """The largest change of the rate that the interval does not rule out."""
        return max(abs(self.change_ci_low), abs(self.change_ci_high))


class OneFeature(NamedTuple):
    """
    Attributes:
        removals: its own.
        all_removals: of every feature that was removed, one at a time.
        effects: its rows of the ranking, where those are of half B alone.
        n_dropped: features that were removed, one at a time.
    """

    name: str
    removals: tuple[Removal, ...]
    all_removals: tuple[Removal, ...]
    effects: tuple[Row, ...]
    n_dropped: int

    @property
    def is_none_felt(self) -> bool:
        """Whether no rate changes with any of them gone: all intervals of the changes hold 0."""
        return not any(removal.is_felt for removal in self.all_removals)


def feature_name(row: Row) -> str:
    return f"L{row['layer']}F{row['feature']}"


def ranking_folder(results: StudyResults) -> str:
    """Name of the folder with the study's ranking of features; empty without one."""
    there = [name for name in FOLDERS if (results.study / name / "ranking.csv").is_file()]
    answered = [n for n in there if (results.study / n / "generations.jsonl").is_file()]
    return next(iter([*answered, *there]), "")


def dropped_rows(results: StudyResults) -> list[Row]:
    """Rows of the study's ranking about features that were removed one at a time; empty without a ranking.

    Raises:
        ValueError: a damaged ranking.
    """
    path = f"{ranking_folder(results)}/ranking.csv"
    rows = results.table(path)
    if rows and (missing := [name for name in LABELS if rows[0].get(name) is None]):
        raise ValueError(f"{results.study / path} has no column {missing[0]!r}; make it anew")
    return [row for row in rows if row["ablation"] == "dropped"]


def one_feature(results: StudyResults) -> OneFeature | None:
    """The feature with the largest attribution, its mean over subsets; None where half B was not answered,
    or where the ranking is damaged."""
    return results.attempt(lambda: _one_feature(results))


def _one_feature(results: StudyResults) -> OneFeature | None:
    scores: dict[str, list[float]] = defaultdict(list)
    rows = dropped_rows(results)
    for row in rows:
        score = abs(number_of(row, CHOSEN_BY))
        scores[feature_name(row)] += [score] if score == score else []
    best = max(scores, key=lambda name: sum(scores[name]) / max(1, len(scores[name])), default="")
    if not best or not sum(scores[best]):
        return None
    found, halves = removals(results, rows)
    mine = tuple(removal for removal in found if removal.feature == best)
    effects = tuple(r for r in rows if feature_name(r) == best) if halves == {"B"} else ()
    return OneFeature(best, mine, tuple(found), effects, len(scores)) if mine else None


def removals(results: StudyResults, rows: list[Row]) -> tuple[list[Removal], set[str]]:
    """Of every feature that was dropped alone, subset and measure; and the halves that were answered.

    Args:
        rows: `dropped_rows`.

    Raises:
        ValueError: a damaged file of answers; names the line.
    """
    path = results.study / ranking_folder(results) / "generations.jsonl"
    names = {f"layer_{row['layer']}_dropped_{row['feature']}": feature_name(row) for row in rows}
    names[FULL] = ""
    answers: dict[tuple[str, str, str], dict[Any, tuple[bool, str]]] = defaultdict(dict)
    halves = set()
    for number, line in text_lines(path) if path.is_file() else ():
        record = parse_json(line, f"{path}, line {number}")
        if not isinstance(record, dict) or not isinstance(record.get("wording"), str):
            raise ValueError(f"{path}, line {number} is no answer: it has no wording")
        halves.add(half := half_of(record["wording"]))
        if half == "A" or (name := names.get(record.get("condition"))) is None:
            continue
        for rate in results.rates:
            if (found := record.get(verdict(rate))) is not None:
                asked = answers[name, str(record.get("subset")), rate]
                asked[record.get("example")] = bool(found), record["wording"]
    found = []
    for (name, subset, rate), without in answers.items():
        full = answers.get(("", subset, rate), {})
        if name and without.keys() == full.keys():
            ours, wordings = zip(*without.values(), strict=True)
            theirs = [full[example][0] for example in without]
            change = paired_rates(ours, theirs, wordings)
            found.append(Removal(name, subset, rate, len(ours), sum(theirs), sum(ours), *change))
    return found, halves


def feature_set(results: StudyResults) -> FeatureSet | None:
    """The study's statistics of features; None where there are none, or where they are damaged."""
    if not (results.study / "features" / "features.json").is_file():
        return None
    from delta_transcoders.features.files import read_features

    return results.attempt(lambda: read_features(results.study / "features"))


def is_of_ranking(results: StudyResults, found: FeatureSet) -> bool:
    """Whether statistics are of the delta that the study's ranking is of."""
    return results.study / ranking_folder(results) in map(Path, found.rankings)


def fires_on(results: StudyResults, feature: str) -> str:
    """The token that holds most of a ranked feature's activity; empty where there are no statistics of it."""
    layer, _, number = feature[1:].partition("F")
    found = feature_set(results)
    if not found or not is_of_ranking(results, found):
        return ""
    known = results.attempt(lambda: found.feature(int(layer), int(number)).tokens)
    return one_word(known[0].token) if known else ""


def one_word(token: str) -> str:
    """A token that no terminal can be harmed by.

    >>> one_word(" of"), one_word(chr(27) + "[0m")
    ('␣of', '\\\\x1b[0m')
    """
    shown = token.replace(" ", "␣").replace("\n", "⏎")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)[:20]


def write_removals(path: Path, found: Sequence[Removal]) -> None:
    write_table(path, Removal._fields, [removal._asdict() for removal in found])
