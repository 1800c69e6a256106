"""Before a study is run: is everything there, does it fit together, and what will it take?

    delta-transcoders check STUDY.yaml [--until PART] [options of study.py]

A line for each thing that is looked at, with ✓ or ✗, in these parts:

access    models, dictionaries, datasets and files are there, may be read, and their licence
files     they are whole and of a known format, their hashes; the task's examples; the disk
site      public dictionaries fit the base model where the study puts them, beside other hook sites
pass      every stage, with five prompts of each subset and two steps, in a temporary folder (TMPDIR)
estimate  memory, time and disk of the whole study

Nothing of the study is changed. Where a line has ✗, it says what to do, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders.command import packaged_configs, run
from delta_transcoders.study.__main__ import parse_options as parse_study_options
from delta_transcoders.study.check.lines import Lines
from delta_transcoders.study.check.sources import dictionary_uses, sources_of
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.records import Record
from delta_transcoders.study.study_file import Study, read_study

PARTS = ("access", "files", "site", "pass", "estimate")
PASS_FOLDER = "checked"


def main(args: Sequence[str] | None = None) -> int:
    """Look, and print what was found.

    Args:
        args: the command line after the program; the process's own where None.

    Returns:
        The exit status: 1 where something must be done first.

    Raises:
        ValueError, OSError: the study file or an option cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="delta-transcoders check",
        description=__doc__,
        epilog=f"study files:\n{packaged_configs('study')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="STUDY.yaml", help="a study file")
    parser.add_argument("--until", choices=PARTS, default=PARTS[-1], help="the last part")
    given, rest = parser.parse_known_args(sys.argv[1:] if args is None else args)
    study_options, options = parse_study_options(["--config", given.file, *rest])
    for name in ("dry_run", "only", "until"):
        if getattr(study_options, name):
            raise ValueError(f"--{name.replace('_', '-')}: check looks at the whole study")
    if study_options.jobs > 1 or study_options.unregistered:
        name = "unregistered" if study_options.unregistered else "jobs"
        raise ValueError(f"--{name} is an option of study.py alone: check needs none")
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    how = {
        "seed": study_options.seed,
        "seeds": study_options.seeds,
        "task": study_options.task,
        "options": options,
    }
    study = read_study(given.file, folder=study_options.study, **how)
    graph, lines = Graph(study), Lines()
    parts = PARTS[: PARTS.index(given.until) + 1]
    usable = _access(lines, graph, given.file)
    if "files" in parts:
        _files(lines, graph, usable)
    if "site" in parts:
        _sites(lines, graph, usable)
    if "pass" in parts:
        if Path(study.folder).is_absolute():  # what is made there must not be touched
            study = read_study(given.file, folder=PASS_FOLDER, **how)
        _pass(lines, study, graph, given.file, "estimate" in parts)
    print(f"\n{lines.n_failed} of these lines say what to do first." if lines.n_failed else "")
    return 1 if lines.n_failed else 0


def _access(lines: Lines, graph: Graph, file: str) -> set[str]:
    """Names of what can be had."""
    from delta_transcoders.study.check.access import access

    sources, usable = sources_of(graph), set()
    lines.part("access" if sources else "access: the study makes all that it reads")
    for source in sources:
        with lines.look(str(source)) as say:
            say(access(source, graph, file))
            usable.add(source.name)
    return usable


def _files(lines: Lines, graph: Graph, usable: set[str]) -> None:
    from delta_transcoders.study.check import hashes, sites, tasks, whole

    lines.part("files")
    download = 0.0
    for source in sources_of(graph):
        if source.kind == "model" and source.name in usable:
            with lines.look(str(source)) as say:
                text, size = whole.check_model(source)
                download += size
                say(text)
                if not size:
                    say(hashes.model_hash(source, graph))
    for use in dictionary_uses(graph):
        if use.dictionaries in usable:
            with lines.look(f"dictionaries {use.dictionaries}") as say:
                text, size = whole.check_dictionaries(use)
                download += size
                say(text)
                if not size:
                    layers = sites.some([entry.layer for entry in whole.taken(use)])
                    say(hashes.dictionary_hashes(use, layers, graph))
    for spec, model in tasks.tasks_of(graph):
        if model in usable:
            with lines.look(f"task {spec['class_path'].rpartition('.')[2]} for {model}") as say:
                say(tasks.check_task(spec, model))
    with lines.look("disk") as say:
        say(whole.check_free(graph.steps.values(), graph.study.folder, download))


def _sites(lines: Lines, graph: Graph, usable: set[str]) -> None:
    from delta_transcoders.study.check.sites import SiteCheck, some
    from delta_transcoders.study.check.whole import taken

    uses = [u for u in dictionary_uses(graph) if {u.dictionaries, u.base_model} <= usable]
    lines.part("site" if uses else "site: no public dictionaries to be tried")
    for use in uses:
        opened = None
        with lines.look(f"{use.base_model} opened") as say:
            opened = SiteCheck(use)
            say(f"{sum(map(len, opened.rows))} tokens of English, on {opened.device}")
            layers = some([entry.layer for entry in taken(use)])
        for layer in layers if opened else ():
            with lines.look(f"{use.dictionaries}, layer {layer}") as say:
                say(opened.layer(layer))


def _pass(lines: Lines, study: Study, real: Graph, file: str, with_estimate: bool) -> None:
    from delta_transcoders.study.check import estimate
    from delta_transcoders.study.check.before import make_command, missing
    from delta_transcoders.study.check.passing import Pass

    lines.part("pass")
    graph = Graph(study)
    absent = missing(graph)
    for step in absent:
        with lines.look(step.stage.label):
            again = make_command(graph, file, step.stage.label)
            raise FileNotFoundError(f"it is made first, once, at its full size: {again}")
    passed = Pass(study, graph, {step.stage.label for step in absent}).run(lines)
    if not (with_estimate and passed):
        return
    lines.part("estimate")
    found = estimate.estimates(passed, graph)
    records = {folder: Record(folder, name) for folder, name in real.study.files.items()}
    print(f"\n{estimate.table(found, real, records)}\n\n{estimate.METHOD}\n", flush=True)
    with lines.look("this machine") as say:
        say(estimate.check_fits(found, real.study.folder))


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
