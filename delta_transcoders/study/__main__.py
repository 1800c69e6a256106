"""Run what is not done of a study: `python study.py --config configs/tiny/study.yaml`.

A stage runs where it never has, where its configuration or something that it reads has changed, and where its
output is missing: as the command that is shown, which can be typed as well.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from delta_transcoders import signals
from delta_transcoders.command import packaged_configs, run, script_command
from delta_transcoders.files import write_text
from delta_transcoders.report.tables import format_table
from delta_transcoders.study.environment import memory_bytes
from delta_transcoders.study.plan import Graph, Step, check_disk, decide, sizes, table
from delta_transcoders.study.records import Record
from delta_transcoders.study.registration import check_development, registered_seeds
from delta_transcoders.study.running import locks, run_command
from delta_transcoders.study.steps import keep_tables, run_steps
from delta_transcoders.study.study_file import Study, read_study
from delta_transcoders.study.turns import least_seconds, needs_of


def main(args: Sequence[str] | None = None) -> None:
    """Plan, run, and show.

    Args:
        args: the command line after the program; the process's own where None.

    Raises:
        SystemExit: a stage ended with an error, or after a signal.
        ValueError, OSError: what was given cannot be used.
    """
    args = list(sys.argv[1:] if args is None else args)
    given, options = parse_options(args)
    study = _read(given, options)
    graph = Graph(study)
    wanted = set(graph.steps)
    if given.only or given.until:
        labels = graph.labels(given.only or given.until)
        wanted = set(labels) if given.only else set().union(*map(graph.needed, labels))
    if given.dry_run:
        records = {folder: Record(folder, file) for folder, file in study.files.items()}
        steps = decide(graph, records, wanted, alone=bool(given.only))
        _print_plan(graph, steps, records, study.notes, given.jobs)
        return
    with locks(list(study.files)) as held:
        records = {folder: Record(folder, file) for folder, file in study.files.items()}
        steps = decide(graph, records, wanted, alone=bool(given.only))
        _print_plan(graph, steps, records, study.notes, given.jobs)
        check_disk(steps, records, study.folder)
        for path, text in study.texts.items():
            write_text(path, text)
        try:
            run_steps(graph, steps, records, held, given.jobs)
            keep_tables(study, held)  # a run may have been killed before it did
            if steps:
                print(f"\n{_done_table(steps, records)}", flush=True)
            if wanted == set(graph.steps):
                _show(study.shows)
        except signals.Stopped as stopped:
            again = shlex.join([*script_command("study"), *args])
            print(f"stopped by {stopped}. Go on with: {again}", file=sys.stderr)
            raise SystemExit(128 + stopped.signum) from None


def _read(given: argparse.Namespace, options: Mapping[str, Mapping[str, Any]]) -> Study:
    """The study that the command line asks for.

    Raises:
        ValueError: it differs from what was registered (see `registration`).
    """
    over = {"task": given.task, "options": options}
    asked = over | {"folder": given.study, "seed": given.seed}
    study = read_study(given.config, seeds=given.seeds, **asked)
    if given.unregistered:
        if not study.registered:
            raise ValueError(f"--unregistered: {given.config} is not registered anywhere")
        check_development(study.registered, given.seeds or ())
        study.keeps.clear()
    elif study.registered:
        seeds = registered_seeds(given.config, study.registered, given.seeds, **over)
        study = read_study(given.config, seeds=seeds, **asked)
    return study


def parse_options(args: Sequence[str]) -> tuple[argparse.Namespace, dict[str, dict[str, Any]]]:
    """Our own options, and those of stages by stage."""
    parser = argparse.ArgumentParser(
        prog=" ".join(script_command("study")),
        description=__doc__,
        epilog="options of stages: --STAGE.KEY VALUE, as in --finetune.model.lr 0.001; --all.KEY VALUE\n\n"
        f"study files:\n{packaged_configs('study')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", "-c", metavar="FILE", help="study file")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=1,
        help="stages that may run at once, where none needs another and all have room in memory "
        "(default: 1); each has its share of the CPUs",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--until", metavar="STAGE", help="run this stage and what it needs")
    group.add_argument("--only", metavar="STAGE", help="run this stage on what is there")
    parser.add_argument(
        "--study", metavar="DIR", help="folder of the study, in place of the file's"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="seed, in place of the file's")
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", help="of a study of several")
    parser.add_argument("--task", metavar="FILE", help="a task for every stage (docs/NEW_TASK.md)")
    parser.add_argument(
        "--unregistered",
        action="store_true",
        help="run a registered study otherwise than registered, for development; keep no results",
    )
    given, rest = parser.parse_known_args(args)
    if given.config is None:
        raise ValueError(f"give a study file: {parser.prog} --config FILE (see --help)")
    if given.jobs < 1:
        raise ValueError(f"--jobs is {given.jobs}, expected a whole number from 1")
    options: dict[str, dict[str, Any]] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        stage, dot, option = name.removeprefix("--").partition(".")
        if not (name.startswith("--") and dot):
            raise ValueError(f"{word}: no option of {parser.prog} (see --help)")
        text = value if equals else next(words, None)
        if text is None:
            raise ValueError(f"{word}: expected a value")
        try:
            options.setdefault(stage, {})[option] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or error
            raise ValueError(f"{name}: {text!r} is no YAML ({problem})") from None
    return given, options


def _print_plan(
    graph: Graph,
    steps: Sequence[Step],
    records: Mapping[str, Record],
    notes: Sequence[str],
    n_jobs: int,
) -> None:
    for note in notes:
        print(note)
    folder = graph.study.folder
    if steps:
        found = {s.stage.label: sizes(s, records[s.stage.study]) for s in steps}
        seconds = {label: seconds or 0 for label, (seconds, _, _) in found.items()}
        print(f"{folder}: {len(steps)} of {len(graph.steps)} stages are to run{_hours(seconds)}\n")
        print(f"{table(steps, records)}\n", flush=True)
        if n_jobs > 1:
            least = least_seconds(needs_of(graph, steps), seconds, n_jobs)
            print(f"with {n_jobs} stages at once at least {_time(least)}", end="")
            memory = sorted((gb for _, _, gb in found.values() if gb), reverse=True)[:n_jobs]
            if memory:
                print(f"; the {len(memory)} largest take {sum(memory):.1f} GB of memory", end="")
                if sum(memory) > (room := memory_bytes() / 1e9):
                    print(f", of {room:.1f}: what does not fit waits", end="")
            print("\n", flush=True)
    else:
        print(f"{folder}: nothing to do", flush=True)


def _time(seconds: float) -> str:
    """
    >>> _time(115.2), _time(35472)
    ('115 seconds', '9.9 hours')
    """
    return f"{seconds:.0f} seconds" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def _hours(seconds: Mapping[str, float]) -> str:
    """Of stages that take long, how long they do together, and the longest, which is the most that is lost.

    >>> _hours({"a": 4000, "b": 1400}), _hours({"a": 300})
    (', about 1.5 hours; the longest, a, takes 67 minutes', '')
    """
    if sum(seconds.values()) < 3600:
        return ""
    longest = max(seconds, key=seconds.get)
    return (
        f", about {sum(seconds.values()) / 3600:.1f} hours; the longest, {longest}, takes "
        f"{seconds[longest] / 60:.0f} minutes"
    )


def _done_table(steps: Sequence[Step], records: Mapping[str, Record]) -> str:
    rows = []
    for step in steps:
        seconds, size, memory = sizes(step, records[step.stage.study])
        rows.append(
            {
                "stage": step.stage.label,
                "seconds": f"{seconds:.0f}",
                "MB": f"{size:.0f}",
                "GB of memory": f"{memory:.1f}",
                "folder": ", ".join(step.config.outputs),
            }
        )
    return format_table(rows, ["stage", "seconds", "MB", "GB of memory", "folder"])


def _show(shows: Sequence[Sequence[str]]) -> None:
    for show in shows:
        if status := run_command(["python", "-m", *show]).status:
            raise SystemExit(status)


if __name__ == "__main__":
    run(main)
