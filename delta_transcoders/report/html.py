"""A study's page: `python -m delta_transcoders.report.html STUDY`.

Writes `STUDY/report/index.html`, which needs no other file and no JavaScript, and beside it what no other
table holds of what it says: `dictionaries.csv` (what each delta's config.json says was measured) and
`one_feature.csv` (answers without single features, on half B of the wordings).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from delta_transcoders.command import run
from delta_transcoders.files import write_text
from delta_transcoders.report.answer import about, feature_sentence, question
from delta_transcoders.report.feature_lists import feature_lists
from delta_transcoders.report.missing import not_a_number, not_shown, unmeasured
from delta_transcoders.report.one_feature import (
    OneFeature,
    feature_set,
    one_feature,
    ranking_folder,
    write_removals,
)
from delta_transcoders.report.sections import sections, tiles
from delta_transcoders.report.sentences import condition_title
from delta_transcoders.report.side_by_side import CONDITIONS, side_by_side, visible
from delta_transcoders.report.study_results import StudyResults
from delta_transcoders.report.summary import (
    EXPERIMENTS,
    FVU_TITLE,
    LEGEND,
    NO_SPILLOVER,
    RANKING_TITLE,
    SPLIT_TITLE,
    SPLITS_TITLE,
    behaviour_table,
    fvu_table,
    has_spillover,
    intervention_table,
    measured_on,
    put_back,
    ranking_table,
    reconstruction_rows,
    reconstruction_table,
    reconstruction_title,
    split_table,
    splits_table,
    times_line,
)
from delta_transcoders.report.svg import BASE_CSS
from delta_transcoders.report.tables import write_table
from delta_transcoders.report.templates import environment
from delta_transcoders.report.verdict import answer, change

UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Characters that no page should hold: they turn, join or end what stands beside them."""


def render(results: StudyResults, found: OneFeature | None = None) -> str:
    """The page of a study; what has not been run or is damaged is left out, and named.

    Args:
        found: `one_feature` of the results.
    """
    study, features = results.study, _features(results, found)
    templates = environment()
    templates.filters |= {"visible": visible, "together": together}
    css = templates.loader.get_source(templates, "report.css")[0]
    page = templates.get_template("report.html.j2").render(
        css=BASE_CSS.read_text(encoding="utf-8") + css,
        about=[str(study), *about(results)],
        answer=answer(results),
        question=question(results),
        change=change(results),
        notes=[line for line in (put_back(study), measured_on(study)) if line],
        tiles=tiles(results),
        sections=sections(results),
        features=features,
        prompts=side_by_side(results),
        conditions=[condition_title(results, name) for name in CONDITIONS],
        missing=_missing(results),
        legend=LEGEND,
        tables=_tables(study),
        times=times_line(study),
        provenance=_provenance(results),
    )
    return UNSEEN.sub("\ufffd", page)


def together(text: str) -> str:
    """A text whose lines part no number from its percent sign, and no interval."""
    return re.sub(r" %|\[[^\[\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), text)


def _features(results: StudyResults, found: OneFeature | None) -> dict[str, Any] | None:
    lists = feature_lists(results)
    are_linked = feature_set(results) is not None
    if not (lists or are_linked):
        return None
    sentence = feature_sentence(results, found)
    return {
        "heading": sentence.heading if sentence else "the features, one by one",
        "text": sentence.text if sentence else "",
        "lists": lists,
        "are_linked": are_linked,
        "caption": lists
        and "Changes when one feature is removed and all else stays, with 95 % intervals, strongest "
        "first: sorted by the same numbers that are shown, so the first are somewhat too large. The feature "
        "that the sentence names was not chosen by them but by the largest attribution on half A of the "
        "wordings, its rates are of half B (report/one_feature.csv). From "
        f"{ranking_folder(results)}/ranking.csv.",
    }


def _missing(results: StudyResults) -> list[str]:
    lines = [f"Not measured: {name}." for name in not_shown(results)]
    if names := unmeasured(results):
        lines.append(f"The delta was not measured on {', '.join(names)}.")
    lines += [f"Damaged: {line}." for line in [*not_a_number(results), *results.damaged]]
    if results.layer not in ("", "all"):
        lines.append(
            f"Only the MLPs of layers {results.layer} were replaced, the others are as finetuned."
        )
    if (
        len(
            {tuple(r.get(k, "") for k in results.dictionaries) for r in results.exp2a if r["layer"]}
        )
        > 1
    ):
        which = ", ".join(f"{k} {v}" for k, v in results.dictionaries.items() if v)
        lines.append(
            f"The answer and the figures are of one of several sets of dictionaries: {which}."
        )
    lines.append("Intervals are over wordings and prompts of this run, not over seeds.")
    return lines


def _tables(study: Path) -> list[dict[str, str]]:
    def table(title: str, text: str) -> dict[str, str]:
        return {"title": title, "text": text}

    is_own = bool(splits_table(study))
    missing = NO_SPILLOVER if is_own and not has_spillover(study) else ""
    found = [
        table(SPLITS_TITLE, splits_table(study)),
        table("What the models do", behaviour_table(study)),
        table(reconstruction_title(study), reconstruction_table(study)),
        table(FVU_TITLE, fvu_table(study)),
        *(
            table(title, intervention_table(study, name))
            for name, title in EXPERIMENTS.items()
            if name != "spillover" or has_spillover(study)
        ),
        table(SPLIT_TITLE, split_table(study)),
        table(RANKING_TITLE, ranking_table(study)),
        table(missing, missing),
    ]
    return [one for one in found if one["text"]]


def _provenance(results: StudyResults) -> dict[str, Any]:
    """What ran, on what, and each stage's configuration; one value of each fact where all stages agree."""
    facts = {"study file": {results.record.get("file", "")}}
    for run_ in results.done.values():
        noted = run_.get("environment", {})
        for name in ("commit", "cpu", "threads", "versions"):
            facts.setdefault(name, set()).add(noted.get(name) or "not recorded")
        seed = run_.get("config", {}).get("seed_everything")
        facts.setdefault("seed", set()).update([str(seed)] if seed is not None else [])
    return {
        "facts": [
            (name, "; ".join(sorted(values))) for name, values in facts.items() if any(values)
        ],
        "stages": [
            {
                "name": f"{name}: {done['command']}",
                "text": json.dumps(done.get("config", {}), indent=1, ensure_ascii=False),
            }
            for name, done in results.done.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study, for example runs/tiny")
    parser.add_argument(
        "--measure",
        help="what the answer is about, a verdict of the task's judge; its first where not given",
    )
    args = parser.parse_args()
    results = StudyResults(args.study, args.measure)
    results.check()
    folder = args.study / "report"
    found = one_feature(results)
    page = render(results, found)
    if rows := reconstruction_rows(args.study):
        write_table(folder / "dictionaries.csv", max(rows, key=len), rows)
    if found:
        write_removals(folder / "one_feature.csv", found.all_removals)
    write_text(folder / "index.html", page)
    print(f"report: {folder / 'index.html'}")


if __name__ == "__main__":
    run(main)
