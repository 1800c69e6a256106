"""Which stages of a study must run, in which order, and why."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from delta_transcoders.command import nearest
from delta_transcoders.files import DONE, check_no_strangers, free_bytes, staged_output
from delta_transcoders.hub import is_hub_id
from delta_transcoders.report.tables import format_table
from delta_transcoders.study.records import RECORD, Record, fingerprint, megabytes
from delta_transcoders.study.stage_config import StageConfig, path_of
from delta_transcoders.study.study_file import SCRIPTS, SIZES, Stage, Study

CHECKPOINTS = ("stopped.ckpt", "last.ckpt")


@dataclass
class Step:
    """A stage with all that is known of it.

    Attributes:
        inputs: paths that it reads; by path, the stage that writes it, or "" for a path from elsewhere.
        holds: folders that no other stage may write into at the same time (see `StageConfig`).
        adds_to: those of its inputs that it holds.
        why: it must run; empty where it need not.
    """

    stage: Stage
    config: StageConfig
    inputs: dict[str, str] = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)
    adds_to: list[str] = field(default_factory=list)
    why: str = ""


class Graph:
    """A study's stages and what they read of each other.

    Raises:
        ValueError: two stages write one folder, stages that need each other, a path within the study that
            no stage writes.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.links = {path_of(link): path_of(target) for link, target in study.links.items()}
        steps = {label: Step(s, StageConfig(s, study.texts)) for label, s in study.stages.items()}
        self.writers: dict[str, tuple[str, str]] = {}  # by output: its stage, and how that calls it
        for label, step in steps.items():
            for output in step.config.outputs:
                other = self.writers.setdefault(self._real(output), (label, output))[0]
                if other != label:
                    raise ValueError(f"{other} and {label} both write {output}")
        for step in steps.values():
            step.holds = {self._real(path) for path in step.config.holds}
            for text in step.config.reads:
                self._add_input(step, text)
            step.adds_to = [path for path in step.inputs if self._real(path) in step.holds]
        self.steps = _in_order(steps)

    def _real(self, text: str) -> str:
        """A path with the links of the study followed, which may not be there yet."""
        path = path_of(text)
        for link, target in self.links.items():
            if _within(path, link):
                return target + path.removeprefix(link)
        return path

    def maker(self, text: str) -> str:
        """The stage that writes a path, or what the path lies in; empty where none does."""
        real = self._real(text)
        outer = [path for path in self.writers if _within(real, path)]
        return self.writers[max(outer, key=len)][0] if outer else ""

    def _add_input(self, step: Step, text: str) -> None:
        stage, real = step.stage, self._real(text)
        is_module = stage.run not in SCRIPTS
        named = stage.label.removesuffix(stage.name) + text
        if is_module and named in self.study.stages:
            found = [pair for pair in self.writers.values() if pair[0] == named]
        elif outer := [path for path in self.writers if _within(real, path)]:
            found = [self.writers[max(outer, key=len)]]
        elif is_module and (inner := [path for path in self.writers if _within(path, real)]):
            found = [self.writers[path] for path in inner]
        elif os.path.exists(os.path.expanduser(text)):
            # A word such as `tool` is no path, even where a file of that name lies about.
            is_path = is_module or os.sep in text or Path(text).suffix
            found = [("", text)] if is_path else []
        elif _within(real, path_of(stage.study)) or (is_module and not is_hub_id(text)):
            raise ValueError(
                f"{stage.label} reads {text}, which is not there and which no stage writes"
            )
        else:
            found = []
        step.inputs |= {path: label for label, path in found if label != stage.label}

    def needed(self, label: str) -> set[str]:
        """A stage and all that it needs."""
        found, todo = set(), [label]
        while todo:
            found.add(label := todo.pop())
            todo += [
                name for name in self.steps[label].inputs.values() if name and name not in found
            ]
        return found

    def labels(self, name: str) -> list[str]:
        """Stages by label, or by their name in whatever study.

        Raises:
            ValueError: there is none; names the nearest.
        """
        found = [name] if name in self.steps else []
        found = found or [label for label, s in self.steps.items() if s.stage.name == name]
        if not found:
            known = dict.fromkeys([*(s.stage.name for s in self.steps.values()), *self.steps])
            raise ValueError(f"there is no stage {name!r}; {nearest(name, known)}")
        return found


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _in_order(steps: dict[str, Step]) -> dict[str, Step]:
    """Each after what it reads, and otherwise as they stand in the file."""
    sorter = TopologicalSorter(
        {label: {name for name in step.inputs.values() if name} for label, step in steps.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(f"stages that need each other: {' → '.join(error.args[1])}") from None
    place = {label: number for number, label in enumerate(steps)}
    ordered, ready = {}, []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
        label = ready.pop(0)
        ordered[label] = steps[label]
        sorter.done(label)
    return ordered


def recorded(step: Step) -> dict[str, Any]:
    """What a record keeps of a step's configuration and inputs, as they are now.

    The study's own folder is called `${study}`, so that a folder can be moved.
    """
    folder = step.stage.study
    return {
        "config": _without(step.config.values, folder),
        "inputs": {_without(path, folder): fingerprint(path) for path in step.inputs},
    }


def outputs_of(step: Step) -> dict[str, str | None]:
    return {_without(path, step.stage.study): fingerprint(path) for path in step.config.outputs}


def _without(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        inside = value == folder or value.startswith(folder.rstrip("/") + "/")
        return "${study}" + value.removeprefix(folder.rstrip("/")) if inside else value
    if isinstance(value, dict):
        return {_without(key, folder): _without(part, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [_without(part, folder) for part in value]
    return value


def decide(
    graph: Graph, records: dict[str, Record], wanted: Collection[str], *, alone: bool = False
) -> list[Step]:
    """Those of the wanted stages that must run, each with `why`.

    Args:
        records: by folder of a study.
        alone: the stages' inputs are taken as they are.

    Raises:
        FileNotFoundError: an input of a stage that runs is not there, and nothing that runs writes it.
        FileExistsError: what a stage would write is another study's, or holds files that no stage wrote.
    """
    running: list[Step] = []
    for label, step in graph.steps.items():
        if label not in wanted:
            continue
        record = records[step.stage.study].stages.get(step.stage.name, {})
        earlier = [s.stage.label for s in running if s.stage.label in step.inputs.values()]
        step.why = _why(step, record, [] if alone else earlier)
        if not step.why:
            continue
        for path, writer in step.inputs.items():
            if not os.path.exists(os.path.expanduser(path)) and writer not in earlier:
                raise FileNotFoundError(
                    f"{label} reads {path}, which is not there: run {writer or 'what writes it'} first"
                )
        for output in step.config.outputs:
            owner = Path(output).resolve().parent
            if owner != Path(step.stage.study).resolve() and (owner / RECORD).is_file():
                raise FileExistsError(
                    f"{output} is a link into the study {owner}, which shares it: run the file that made the "
                    "link"
                )
            # A module adds to folders of others; where one has an output of its own, it is checked too.
            if step.stage.run in SCRIPTS or (Path(output) / DONE).is_file():
                check_no_strangers(output)
        running.append(step)
    return running


def _why(step: Step, record: dict[str, Any], earlier: list[str]) -> str:
    now, outputs = recorded(step), outputs_of(step)
    done, started = record.get("done"), record.get("started")
    if started and set(outputs.values()) == {started["run"]}:  # killed before this was noted
        done, started = started | {"outputs": outputs}, None
    if started and started["config"] == now["config"]:
        at = checkpoint(step, started)
        return f"not finished; goes on from {at.name}" if at and not earlier else "not finished"
    if not done:
        return "its output has no record" if any(outputs.values()) else "never run"
    if changed := changes(done["config"], now["config"]):
        return changed
    if earlier:
        return f"after {', '.join(earlier)}"
    if not all(outputs.values()):
        return "its output is missing"
    if done["outputs"] != outputs:
        return "its output was changed by something else"
    for path in {**now["inputs"], **done["inputs"]}:
        if now["inputs"].get(path) != done["inputs"].get(path):
            return f"input changed: {path}"
    return ""


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In what two configurations of a stage differ.

    >>> changes({"model.lr": 0.008, "a": 1}, {"model.lr": 0.004, "a": 1})
    'model.lr 0.008 → 0.004'
    >>> changes({"arguments": ["--k", "3", "x"]}, {"arguments": ["--k", "5", "x"]})
    'arguments 3 → 5'
    """
    missing = "nothing"
    changed = []
    for key in {**old, **new}:
        before, after = old.get(key, missing), new.get(key, missing)
        if before == after:
            continue
        if key == "arguments":  # of a module: only those that differ, as there may be many
            before, after = (
                " ".join(text for text in one if text not in other) or missing
                for one, other in ((before, after), (after, before))
            )
        changed.append(f"{key} {before} → {after}")
    return ", ".join(changed)


def checkpoint(step: Step, started: dict[str, Any] | None) -> Path | None:
    """The newest whole checkpoint of an interrupted training, if it may go on from there.

    Only one of the same configuration on the same inputs may, and what is older than that start is another's.
    """
    now = recorded(step)
    if not (started and step.config.checkpoints):
        return None
    if any(started[key] != now[key] for key in ("config", "inputs")):
        return None
    files = [step.config.checkpoints / name for name in CHECKPOINTS]
    whole = [
        file
        for file in files
        if file.is_file()
        and file.stat().st_mtime >= started["began"]
        and zipfile.is_zipfile(
            file
        )  # its table of contents stands at the end: a torn file has none
    ]
    return max(whole, key=lambda file: file.stat().st_mtime, default=None)


def sizes(step: Step, record: Record) -> tuple[float | None, float | None, float | None]:
    """`SIZES` of the last time, or what the study file guesses."""
    done = record.stages.get(step.stage.name, {}).get("done", {})
    return tuple(done.get(key, step.stage.takes.get(key)) for key in SIZES)


def table(steps: Sequence[Step], records: dict[str, Record]) -> str:
    """The plan as a user sees it; memory, where it is known of any stage."""
    found = [sizes(step, records[step.stage.study]) for step in steps]
    rows = [
        {
            "stage": step.stage.label,
            "seconds": "?" if seconds is None else f"{seconds:.0f}",
            "MB": "?" if megabytes is None else f"{megabytes:.0f}",
            "GB of memory": "?" if memory is None else f"{memory:.1f}",
            "why": step.why,
        }
        for step, (seconds, megabytes, memory) in zip(steps, found, strict=True)
    ]
    seconds, megabytes, memory = zip(*found, strict=True)
    most = max((value for value in memory if value is not None), default=None)
    rows.append(
        {
            "stage": "together",
            "seconds": _total(seconds),
            "MB": _total(megabytes),
            "GB of memory": "?" if most is None else f"{most:.1f}",
        }
    )
    columns = ["seconds", "MB", "GB of memory"]
    return format_table(rows, ["stage", *(columns[:2] if most is None else columns), "why"])


def _total(values: Sequence[float | None]) -> str:
    """
    >>> _total([1.2, 3.0]), _total([1.2, None]), _total([None, None])
    ('4', 'at least 1', '?')
    """
    known = [value for value in values if value is not None]
    total = f"{sum(known):.0f}" if known else "?"
    return f"at least {total}" if 0 < len(known) < len(values) else total


def check_disk(steps: Iterable[Step], records: dict[str, Record], folder: str) -> None:
    """
    Raises:
        OSError: the stages that are to run would take more than is free.
    """
    needed = 0.0
    for step in steps:
        # What an interrupted run has left: the stage goes on with it, or removes it first.
        staged = megabytes(str(staged_output(path)) for path in step.config.outputs)
        needed += max(0, (sizes(step, records[step.stage.study])[1] or 0) - staged)
    free = free_bytes(folder) / 1e6
    if needed > free:
        raise OSError(
            f"the stages that are to run take {needed:.0f} MB, and {free:.0f} MB are free in {folder}: make "
            "room, or give another folder (--study)"
        )
