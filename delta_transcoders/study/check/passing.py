"""A pass of few prompts and steps through every stage of a study, in a folder that is thrown away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from delta_transcoders.files import write_text
from delta_transcoders.study.check.before import is_inside, there
from delta_transcoders.study.check.lines import Lines
from delta_transcoders.study.check.small import Small, small
from delta_transcoders.study.environment import environment
from delta_transcoders.study.plan import Graph, Step, outputs_of, recorded
from delta_transcoders.study.records import Record, megabytes
from delta_transcoders.study.running import command_of, make_links, run_command
from delta_transcoders.study.study_file import SCRIPTS, Study

MEASUREMENTS = "callbacks.measurements.Measurements"


@dataclass
class Passed:
    """What a stage took in the pass.

    Attributes:
        seconds: of the whole process.
        megabytes: that it wrote; `added`, of these, to what other stages wrote.
        measured: what `callbacks.measurements` found; empty of a stage without options.
        tokens: of caches that it wrote or reads.
        cache_megabytes: of the inputs and outputs in that cache.
    """

    step: Step
    small: Small
    seconds: float
    megabytes: float
    added: float
    measured: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    cache_megabytes: float = 0.0


@contextlib.contextmanager
def shadow(written: Collection[str], taken: Collection[str]) -> Iterator[Path]:
    """Work in a temporary folder that shows the working directory, but for what is written.

    It lies in a tree of links to everything else, so that paths with `..` lead where they did.

    Args:
        written: paths in the working directory that are left out; they may be written there anew.
        taken: paths that are shown even where they lie in one of these.
    """
    here, left_out = Path.cwd(), {Path(os.path.abspath(path)) for path in written}
    with tempfile.TemporaryDirectory(prefix="check-") as name:
        root = Path(name).resolve()
        _mirror(Path(here.anchor), root, left_out, left_out | {here / "x"})
        for path in map(Path, map(os.path.abspath, taken)):
            at = root / path.relative_to(path.anchor)
            if not at.exists():
                at.parent.mkdir(parents=True, exist_ok=True)
                at.symlink_to(path)
        with contextlib.chdir(root / here.relative_to(here.anchor)):
            yield Path.cwd()


def _mirror(
    source: Path, target: Path, left_out: Collection[Path], opened: Collection[Path]
) -> None:
    """Links to what is in a folder.

    Args:
        left_out: of these there is none.
        opened: folders that hold one of these are folders in the mirror too.
    """
    try:
        entries = set(source.iterdir())
    except PermissionError:  # one may go through other users' folders, and not see what is in them
        entries = {source / p.relative_to(source).parts[0] for p in opened if source in p.parents}
    for entry in sorted(entries - set(left_out)):
        at = target / entry.name
        if any(entry in path.parents for path in opened):
            at.mkdir()
            _mirror(entry, at, left_out, opened)
        else:
            at.symlink_to(entry)


class Pass:
    """The stages of a study, made small, one after the other.

    Args:
        study: as the user gave it.
        graph: of it.
        absent: labels of stages that must be made first; what needs them is not tried.
    """

    def __init__(self, study: Study, graph: Graph, absent: Collection[str] = ()) -> None:
        self.small = {
            label: small(step, graph)
            for label, step in graph.steps.items()
            if step.stage.run in SCRIPTS
        }
        self.there = {step.stage.label for step in there(graph)}
        self.absent = set(absent)
        self.study = study
        self.graph = graph

    def run(self, lines: Lines) -> dict[str, Passed]:
        """Run all stages that can be; a line for each. By label, what each took."""
        graph, passed, failed = self.graph, {}, set(self.absent)
        made = [s for label, s in graph.steps.items() if label not in self.there | self.absent]
        written = {out for step in made for out in step.config.outputs} | set(self.study.files)
        taken = {out for label in self.there for out in graph.steps[label].config.outputs}
        taken |= {path for step in made for path, writer in step.inputs.items() if not writer}
        outside = [out for out in sorted(written) if not is_inside(out, ".")]
        if outside:
            with lines.look(outside[0]):
                raise ValueError(
                    "it lies outside of the working directory, where a pass would overwrite it: give a path "
                    "inside, or go there"
                )
            return {}
        with shadow(written, taken) as folder:
            for path, text in self.study.texts.items():
                write_text(path, text)
            records = {name: _record(name, file) for name, file in self.study.files.items()}
            for step in made:
                label = step.stage.label
                lacking = [name for name in step.inputs.values() if name in failed]
                if lacking:
                    failed.add(label)
                    print(f"  – {label}: not tried, it needs {', '.join(dict.fromkeys(lacking))}")
                    continue
                with lines.look(label) as say:
                    failed.add(label)
                    passed[label] = self._one(step, records[step.stage.study], folder)
                    failed.discard(label)
                    say(_took(passed[label]))
        return passed

    def _one(self, step: Step, record: Record, folder: Path) -> Passed:
        """
        Raises:
            ValueError: the stage failed; its own last error.
        """
        stage, options = step.stage, {}
        made_small = self.small.get(stage.label, Small("evaluation", {}))
        file = folder / "measured.json"
        if stage.run in SCRIPTS:
            measures = {"trainer.callbacks+": MEASUREMENTS, "trainer.callbacks.file": str(file)}
            options = made_small.options | measures
        stage = replace(stage, options={**stage.options, **options})
        make_links(self.study, stage.study)
        run, log = uuid.uuid4().hex, folder / "log.txt"
        how = {"run": run, "command": "", "began": time.time(), "environment": environment()}
        record.start(stage.name, how | recorded(step))
        read, started = megabytes(step.inputs), time.perf_counter()
        status = run_command(command_of(stage), log=log, run=run).status
        seconds = time.perf_counter() - started
        outputs = outputs_of(step)
        if status or not all(outputs.values()):
            raise ValueError(_problem(log.read_text(encoding="utf-8"), status))
        wrote, added = megabytes(step.config.outputs), max(0.0, megabytes(step.inputs) - read)
        record.finish(stage.name, {"outputs": outputs, "seconds": seconds, "megabytes": wrote})
        passed = Passed(step, made_small, seconds, wrote + added, added)
        if file.is_file():
            passed.measured = json.loads(file.read_text(encoding="utf-8"))
            file.unlink()
        passed.tokens, passed.cache_megabytes = _cache(step)
        return passed


def _record(folder: str, file: str) -> Record:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Record(folder, file)


def _problem(log: str, status: int) -> str:
    """
    >>> _problem("x\\nerror: lr is -1\\n(DELTA_TRACEBACK=1 shows where)\\n", 2)
    'lr is -1'
    """
    errors = re.findall(r"^error: (.*)", log, re.MULTILINE)
    if errors:
        return errors[-1]
    if status == 137:
        return (
            "it was killed, as the system does where memory runs out: close other programs, or give fewer "
            "rows a pass"
        )
    last = [line for line in log.splitlines() if line.strip()][-1:] or ["it said nothing"]
    return f"ended with status {status}: {last[0]}" if status else "it wrote no output"


def _cache(step: Step) -> tuple[int, float]:
    """Training tokens of the cache that a stage wrote or reads, and its size; (0, 0) of other stages."""
    for path in (*step.config.outputs, step.config.values.get("data.cache")):
        manifest = Path(str(path)) / "manifest.json"
        if manifest.is_file():
            splits: Mapping[str, Any] = json.loads(manifest.read_text("utf-8"))["splits"]
            return splits["train"]["n_tokens"], megabytes([str(path)])
    return 0, 0.0


def _took(passed: Passed) -> str:
    measured = passed.measured
    said = [f"{passed.megabytes:.1f} MB"]
    if not measured:
        return said[0]
    said.append(f"memory {measured['peak_bytes'] / 1e9:.2f} GB")
    if measured["peak_device_bytes"]:
        said.append(f"{measured['peak_device_bytes'] / 1e9:.2f} GB of the GPU")
    if measured["batches"]:
        said.append(f"{measured['batch_seconds']:.3g} s a batch")
    return ", ".join(said)
