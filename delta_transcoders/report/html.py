"""A study's tables and figures as one page: `python -m delta_transcoders.report.html STUDY`.

Writes `STUDY/report/index.html`, which holds its images and needs no other file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.files import write_text
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
    reconstruction_table,
    reconstruction_title,
    split_table,
    splits_table,
    times_line,
)
from delta_transcoders.report.templates import environment


def render(study: Path) -> str:
    """The page of a study; experiments that have not been run are left out."""

    def section(title: str, table: str, figures: str = "") -> dict:
        return {
            "title": title,
            "table": table,
            "figures": sorted((study / figures).glob("*.png")) if figures else [],
        }

    is_own = bool(splits_table(study))
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            study=study,
            times=times_line(study),
            legend=LEGEND,
            put_back=put_back(study),
            measured_on=measured_on(study),
            missing=NO_SPILLOVER if is_own and not has_spillover(study) else "",
            sections=[
                section(SPLITS_TITLE, splits_table(study)),
                section("What the models do", behaviour_table(study)),
                section(reconstruction_title(study), reconstruction_table(study)),
                section(FVU_TITLE, fvu_table(study)),
                *(
                    section(title, intervention_table(study, name), f"{name}/plots")
                    for name, title in EXPERIMENTS.items()
                    if name != "spillover" or has_spillover(study)
                ),
                section(SPLIT_TITLE, split_table(study), "exp2a/comparisons"),
                section(RANKING_TITLE, ranking_table(study), "ranking/plots"),
            ],
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study, for example runs/tiny")
    study = parser.parse_args().study
    path = study / "report" / "index.html"
    write_text(path, render(study))
    print(f"report: {path}")


if __name__ == "__main__":
    run(main)
