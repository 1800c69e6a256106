"""Running the stages of a study, one after the other or several at once, and recording each."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta_transcoders import files
from delta_transcoders.study.environment import environment, memory_bytes
from delta_transcoders.study.plan import Graph, Step, checkpoint, outputs_of, recorded, sizes
from delta_transcoders.study.records import RECORD, Record, megabytes
from delta_transcoders.study.running import (
    ENVIRONMENT,
    SECONDS_BETWEEN_LOOKS,
    Ended,
    command_of,
    end_of,
    make_links,
    pass_on,
    passing_on,
    run_command,
    start_command,
)
from delta_transcoders.study.study_file import SCRIPTS, Study
from delta_transcoders.study.turns import needs_of, next_step, share_of_cpus

SECONDS_BETWEEN_LINES = 30
LAST_LINES = 20


@dataclass
class Job:
    """A stage that runs.

    Attributes:
        place: among the stages of this run, as in `[3/15]`.
        record: of its study.
        log: the file with what it shows; None where that is on the terminal.
        run: the id of its outputs.
        megabytes: of the inputs that it may add to, as it was started.
        began: by `time.perf_counter`.
    """

    step: Step
    place: str
    record: Record
    log: Path | None
    run: str
    megabytes: float
    began: float
    process: subprocess.Popen

    @property
    def label(self) -> str:
        return self.step.stage.label

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


def run_steps(
    graph: Graph,
    steps: Sequence[Step],
    records: Mapping[str, Record],
    keep: Sequence[int],
    n_jobs: int = 1,
) -> None:
    """Run stages, and record each. After one that fails no other is started, and those that run may finish.

    Args:
        steps: in an order in which they can run one after the other.
        keep: file descriptors that every stage holds too.
        n_jobs: how many run at once, at most. Where it is several, each has its share of the CPUs, unless the
            user has set OMP_NUM_THREADS, and what it shows goes to `logs/STAGE.txt` in its study's folder.
            Stages whose memory the machine does not have together run one after the other.

    Raises:
        SystemExit: a stage ended with an error, whose status it is.
        signals.Stopped: a signal came, and all that ran has ended.
    """
    variables = ENVIRONMENT | share_of_cpus(n_jobs) | os.environ
    numbers = {step.stage.label: n for n, step in enumerate(steps, start=1)}
    needs, waiting = needs_of(graph, steps), list(steps)
    memory = {s.stage.label: sizes(s, records[s.stage.study])[2] or 0 for s in steps}
    room = memory_bytes() / 1e9
    jobs: list[Job] = []
    failed, said = 0, time.monotonic()
    if n_jobs > 1 and steps:
        print(
            f"{n_jobs} stages at once, each with OMP_NUM_THREADS={variables['OMP_NUM_THREADS']}; what they "
            "show is in logs/STAGE.txt in the study's folder\n"
        )
    with passing_on() as given:
        try:
            while True:
                # Of all before any is recorded, which takes time.
                ended = [(job, end, job.seconds) for job in jobs if (end := end_of(job.process))]
                is_new = False
                for job, end, seconds in ended:
                    jobs.remove(job)
                    status = _end(job, end, seconds, is_stopped=bool(given))
                    is_new |= status == 0
                    if status and not (failed or given):
                        failed = status
                        _say_who_may_finish(jobs)
                if is_new and n_jobs == 1:
                    keep_tables(graph.study, keep)
                while len(jobs) < n_jobs and not (failed or given):
                    step = next_step(waiting, [job.step for job in jobs], needs, memory, room)
                    if step is None:
                        break
                    waiting.remove(step)
                    make_links(graph.study, step.stage.study)
                    place = f"[{numbers[step.stage.label]}/{len(steps)}]"
                    record = records[step.stage.study]
                    jobs.append(_start(step, place, record, variables, keep, n_jobs > 1))
                    pass_on(given)  # what came before there was a process
                if is_new and n_jobs > 1:  # it takes seconds, in which no job is left free
                    keep_tables(graph.study, keep)
                if not jobs:
                    break
                if n_jobs > 1 and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    print(f"running: {', '.join(map(_how_long, jobs))}", flush=True)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:  # also where a record could not be written
            for job in jobs:
                job.process.wait()
    if failed:
        raise SystemExit(failed)


def _start(
    step: Step,
    place: str,
    record: Record,
    variables: Mapping[str, str],
    keep: Sequence[int],
    has_log: bool,
) -> Job:
    stage = step.stage
    resume = checkpoint(step, record.stages.get(stage.name, {}).get("started"))
    command, run = command_of(stage, resume), uuid.uuid4().hex
    print(f"{place} {stage.label}: {shlex.join(command)}", flush=True)
    how: dict[str, Any] = {"run": run, "command": shlex.join(command), "began": time.time()}
    how["environment"] = environment(variables)  # now: a study runs for hours, and code changes
    if resume:  # what that start has left may be gone on from again
        how["began"] = record.stages[stage.name]["started"]["began"]
    record.start(stage.name, how | recorded(step))
    log = Path(stage.study, "logs", f"{stage.name}.txt") if has_log else None
    began, read = time.perf_counter(), megabytes(step.adds_to)
    # What pages and reports print is long, and in the files that they write.
    quiet = stage.run.startswith(("delta_transcoders.report.", "delta_transcoders.pages."))
    process = start_command(command, {**variables, files.RUN: run}, keep, quiet, log)
    return Job(step, place, record, log, run, read, began, process)


def _end(job: Job, ended: Ended, seconds: float, is_stopped: bool) -> int:
    """Record a stage that has ended well, and say how it has ended; returns its status."""
    status, outputs = ended.status, outputs_of(job.step)
    is_written = all(
        found == job.run if job.step.stage.run in SCRIPTS else found for found in outputs.values()
    )
    if status == 0 and is_written:
        _finish(job, seconds, ended.memory_gb, outputs)
    elif is_stopped:
        if job.log:
            print(f"{job.place} {job.label}: stopped after {seconds:.0f} s", flush=True)
    else:
        if job.log and (text := _last_lines(job.log)):
            print(f"{text}\n(the end of {job.log})", file=sys.stderr)
        if status == 0:
            print(f"error: {job.label} ended without writing its output", file=sys.stderr)
            status = 1
        print(f"error: {job.label} ended with status {status}", file=sys.stderr)
    return status


def _finish(job: Job, seconds: float, memory_gb: float, outputs: Mapping[str, str | None]) -> None:
    # As the delta stage adds its targets to the cache; to other inputs only stages beside it add.
    added = max(0, megabytes(job.step.adds_to) - job.megabytes)
    measured = {
        "seconds": round(seconds, 1),
        "megabytes": round(megabytes(job.step.config.outputs) + added, 2),
        "memory_gb": round(memory_gb, 2),
    }
    job.record.finish(job.step.stage.name, measured | {"outputs": outputs})
    if job.log:
        print(f"{job.place} {job.label}: done in {seconds:.0f} s", flush=True)
        if text := _last_lines(job.log):
            print(text, flush=True)


def keep_tables(study: Study, keep: Sequence[int] = ()) -> None:
    """Copy what is small of a registered study's parts, where a stage has been run since the last time.

    Args:
        keep: see `run_command`.
    """
    for folder, out in study.keeps.items():
        records = {path.relative_to(folder): path for path in Path(folder).rglob(RECORD)}
        copies = {name: Path(out) / name for name in records}
        if all(
            copy.is_file() and copy.read_bytes() == records[name].read_bytes()
            for name, copy in copies.items()
        ):
            continue
        command = ["python", "-m", "delta_transcoders.report.results", folder, out]
        command += ["--docs", study.registered]
        if run_command(command, keep, quiet=True).status:
            again = shlex.join(command)
            print(f"warning: {out} lacks something of {folder}: {again}", file=sys.stderr)


def _say_who_may_finish(jobs: Sequence[Job]) -> None:
    if jobs:
        names = ", ".join(job.label for job in jobs)
        print(f"no other stage is started; waiting for {names} to finish", file=sys.stderr)


def _how_long(job: Job) -> str:
    """How long a stage has run, and how long it took the last time, as in `delta 1:05 of about 1:30`."""
    last = sizes(job.step, job.record)[0]
    about = f" of about {_minutes(last)}" if last else ""
    return f"{job.label} {_minutes(job.seconds)}{about}"


def _minutes(seconds: float) -> str:
    """
    >>> _minutes(65.2)
    '1:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _last_lines(log: Path) -> str:
    """The end of what a stage has shown, as it would stand on a terminal, indented."""
    text = log.read_bytes().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([f"  {line}" for line in lines if line.strip()][-LAST_LINES:])
