"""Register a study: `python -m delta_transcoders.study.register STUDY.yaml`.

Writes `plan.json` into the folder that the file names (`registered: docs/smollm2`), beside the claims that
are written there by hand; `registration` says what it holds and what it is for. Once all three files are
committed the study is registered, and its seeds follow from that commit.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.files import write_json
from delta_transcoders.report.results import table_of
from delta_transcoders.study.registration import SEED, digest, plan_of
from delta_transcoders.study.seeds import CLAIMS, CONDITIONS, PLAN, REGISTERED
from delta_transcoders.study.stage_config import StageConfig
from delta_transcoders.study.study_file import SIZES, Stage, Study, read_study


def register(file: str) -> Path:
    """Write the plan of a study file.

    Raises:
        ValueError: the file names no folder for it; claims name a figure of a table that no stage writes.
        FileNotFoundError: there are no claims yet.
    """
    from delta_transcoders.report.findings import figure_names, read_conditions  # takes a while

    study = read_study(file, seeds=[SEED])
    if not study.registered:
        raise ValueError(f"{file} is not to be registered: give `registered: docs/NAME` there")
    folder = Path(study.registered)
    for name in (CLAIMS, CONDITIONS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {folder / name}: write the claims first")
    names = figure_names(folder, read_conditions(folder))
    written = _written(study)
    if nowhere := [name for name in names if Path(table_of(name)).parent.as_posix() not in written]:
        raise ValueError(
            f"no stage of {file} writes the table of {nowhere[0]!r} ({len(nowhere)} of {len(names)} figures "
            f"of {folder}): mend the figure or the study"
        )
    plan = plan_of(file)
    of_a_seed = {label for label in study.stages if label.startswith(f"{SEED}/")}
    sizes = {
        name: _sizes([study.stages[label] for label in study.stages if label in labels])
        for name, labels in (("once", study.stages.keys() - of_a_seed), ("each seed", of_a_seed))
    }
    content = {"format": "delta_transcoders plan 1", "study": file, "digest": digest(plan)}
    write_json(folder / PLAN, content | {"guessed": sizes} | plan)
    for name, size in sizes.items():
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in size.items())}")
    return folder


def _written(study: Study) -> set[str]:
    """Folders that stages write, within the studies whose tables are kept."""
    outputs = [
        output
        for stage in study.stages.values()
        for output in StageConfig(stage, study.texts).outputs
    ]
    return {os.path.relpath(output, folder) for output in outputs for folder in study.keeps}


def _sizes(stages: Sequence[Stage]) -> dict[str, float | str]:
    """What stages take by their file's guesses."""
    seconds, megabytes, memory = (
        {stage.label: stage.takes.get(size, 0) for stage in stages} for size in SIZES
    )
    longest = max(seconds, key=seconds.get, default="")
    return {
        "stages": len(stages),
        "hours": round(sum(seconds.values()) / 3600, 1),
        "gigabytes": round(sum(megabytes.values()) / 1000, 1),
        "memory_gb": max(memory.values(), default=0),
        "longest": f"{longest}, {seconds.get(longest, 0) / 60:.0f} minutes",
    }


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", metavar="STUDY.yaml", help="a file with `registered` and `seeds`")
    folder = register(parser.parse_args(args).study)
    files = " ".join((folder / name).as_posix() for name in REGISTERED)
    print(
        f"written: {folder / PLAN}\nCommit {files}: then they are registered. The seeds:\n"
        f"  python -m delta_transcoders.study.seeds --registered {folder}"
    )


if __name__ == "__main__":
    run(main)
