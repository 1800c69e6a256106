"""Single features removed one at a time: chosen on half A of the wordings, reported on half B."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.report.columns import verdict
from delta_transcoders.report.study_results import FULL, StudyResults
from delta_transcoders.report.tables import write_table
from delta_transcoders.tasks.wordings import half_of

FOLDERS = ("effects", "ranking")
DROPPED = re.compile(r"layer_(\d+)_dropped_(\d+)")
COLUMNS = ("half", "feature", "subset", "measure", "n", "with_it", "without_it", "lost")


class Removal(NamedTuple):
    """How many of n answers of a half have a verdict, with all features and without one."""

    half: str
    feature: str
    subset: str
    measure: str
    n: int
    with_it: int
    without_it: int

    @property
    def change(self) -> float:
        return abs(self.with_it - self.without_it) / self.n


def removals(results: StudyResults) -> list[Removal]:
    """Of every feature that was dropped alone, half, subset and measure; empty where nobody generated."""
    path = next(
        (
            results.study / name / "generations.jsonl"
            for name in FOLDERS
            if (results.study / name / "generations.jsonl").is_file()
        ),
        None,
    )
    if path is None:
        return []
    counts: dict[tuple[str, str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for line_number, line in text_lines(path):
        record = parse_json(line, f"{path}, line {line_number}")
        condition = str(record.get("condition"))
        dropped = DROPPED.fullmatch(condition)
        if condition != FULL and not dropped:
            continue
        feature = f"L{dropped[1]}F{dropped[2]}" if dropped else ""
        for rate in results.rates:
            if (found := record.get(verdict(rate))) is not None:
                where = half_of(record["wording"]), feature, record["subset"], rate
                counts[where][0] += 1
                counts[where][1] += found
    return [
        Removal(half, feature, subset, rate, n, counts[half, "", subset, rate][1], n_true)
        for (half, feature, subset, rate), (n, n_true) in list(counts.items())
        if feature and counts[half, "", subset, rate][0] == n
    ]


def chosen(found: list[Removal]) -> tuple[Removal, ...]:
    """What changes most on half A, as half B has it; then the same feature's other measures there.

    Empty where nothing was generated, or where nothing changes on half A.
    """
    on_a = [removal for removal in found if removal.half == "A" and removal.n]
    first = max(on_a, key=lambda removal: removal.change, default=None)
    if first is None or not first.change:
        return ()
    on_b = [r for r in found if r.half == "B" and r.feature == first.feature]
    same = [r for r in on_b if (r.subset, r.measure) == (first.subset, first.measure)]
    others = [r for r in on_b if r.subset == first.subset and r.measure != first.measure]
    return (*same, *others) if same else ()


def fires_on(study: Path, feature: str) -> str:
    """The token that holds most of a feature's activity; empty where no statistics are there."""
    if not (study / "features" / "features.json").is_file():
        return ""
    from delta_transcoders.features.files import read_features

    layer, _, k = feature[1:].partition("F")
    tokens = read_features(study / "features").feature(int(layer), int(k)).tokens
    return tokens[0].token if tokens else ""


def one_word(token: str) -> str:
    """A token that no terminal can be harmed by.

    >>> one_word(" of"), one_word(chr(27) + "[0m")
    ('␣of', '\\\\x1b[0m')
    """
    shown = token.replace(" ", "␣").replace("\n", "⏎")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)[:20]


def write_removals(path: Path, found: list[Removal]) -> None:
    write_table(path, COLUMNS, [r._asdict() | {"lost": r.with_it - r.without_it} for r in found])
