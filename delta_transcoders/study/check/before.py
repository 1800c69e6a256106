"""Stages that a study needs made first, at their full size: they have no options that make them small."""

from __future__ import annotations

import os
from pathlib import Path

from delta_transcoders.command import script_command
from delta_transcoders.study.plan import Graph, Step
from delta_transcoders.study.registration import is_registered
from delta_transcoders.study.study_file import SCRIPTS

LONG = 60
"""Seconds that a stage without options may take in a pass."""


def made_before(graph: Graph) -> list[Step]:
    """Stages without options that read nothing which the pass makes anew: a model that is fetched, say.

    What they have made is taken as it is.
    """
    before: list[str] = []
    for label, step in graph.steps.items():
        writers = {writer for writer in step.inputs.values() if writer}
        if step.stage.run not in SCRIPTS and writers <= set(before):
            before.append(label)
    return [graph.steps[label] for label in before]


def there(graph: Graph) -> list[Step]:
    """Those of them that have been made."""
    return [step for step in made_before(graph) if _is_there(step)]


def _is_there(step: Step) -> bool:
    return all(Path(out).exists() for out in step.config.outputs)


def missing(graph: Graph) -> list[Step]:
    """Those of them that must be made first: elsewhere than in the study's folder, or at length."""
    return [
        step
        for step in made_before(graph)
        if not _is_there(step)
        and (
            step.stage.takes.get("seconds", 0) > LONG
            or not all(is_inside(out, step.stage.study) for out in step.config.outputs)
        )
    ]


def make_command(graph: Graph, file: str, label: str) -> str:
    """What makes a stage; before its study is registered no other command is taken."""
    command = f"{' '.join(script_command('study'))} --config {file} --until {label}"
    folder = graph.study.registered
    return f"{command} --unregistered" if folder and not is_registered(folder) else command


def is_inside(path: str, folder: str) -> bool:
    """Whether a path lies in a folder; links are not followed."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
