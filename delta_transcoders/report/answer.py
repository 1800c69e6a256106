"""What a study found, on one screen: `python -m delta_transcoders.report.answer STUDY`.

At most 25 lines of at most 100 columns: the answer in words, the rates behind it, what else was found, and
where to look further. All of it is by rule, from the study's tables.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.report.formatting import table_number
from delta_transcoders.report.missing import not_a_number, not_shown, unmeasured
from delta_transcoders.report.one_feature import OneFeature, fires_on, one_feature
from delta_transcoders.report.sentences import (
    Sentence,
    attention,
    condition_title,
    control,
    curve,
    dose,
    elsewhere,
    layers,
    percent,
    side,
    split,
    spoken,
)
from delta_transcoders.report.study_results import (
    BASE_MODEL,
    FULL,
    NO_DELTA,
    RAW,
    StudyResults,
    number_of,
)
from delta_transcoders.report.verdict import answer, change, delta_size

N_LINES, N_COLUMNS = 25, 100
N_SUBSETS = 4
"""Columns that fit beside the conditions."""
LABEL = 28
FIRST = ("attention", "one_feature", "dose", "control", "split", "side", "layers")
"""Kinds of sentences, those first that stay where there is no room for all."""


def question(results: StudyResults) -> str:
    return f"What did finetuning change, and do {delta_size(results)}delta features hold it?"


def about(results: StudyResults) -> list[str]:
    """What the study is of, in a few words each."""
    found, model = [], results.model
    if kind := model.get("model_type"):
        found.append(kind)
    if n_layers := model.get("num_hidden_layers", model.get("n_layer")):
        found.append(f"{n_layers} layers")
    if n := model.get("n_parameters"):
        found.append(f"{n / 1e6:.1f} M parameters" if n < 1e9 else f"{n / 1e9:.1f} B parameters")
    if results.seed is not None:
        found.append(f"seed {results.seed}")
    if seconds := sum(run.get("seconds", 0) for run in results.done.values()):
        found.append(f"{seconds / 60:.1f} min")
    return found


def feature_sentence(results: StudyResults, found: OneFeature | None) -> Sentence | None:
    """The feature with the largest attribution, chosen on half A of the wordings, told by half B."""
    if not found:
        return None
    token = fires_on(results, found.name)
    text = found.name + (f", strongest on “{token}”" if token else "") + ": without it "
    costs = [row for row in found.effects if not math.isnan(number_of(row, "dce"))]
    if costs:
        row = min(costs, key=lambda row: row["subset"] != results.subset)
        change = table_number(row, "dce", decimals=4).replace("-", "−")
        text += f"ΔCE on {row['subset']} is {change}, "
    if found.is_none_felt:
        n = sorted({removal.n for removal in found.all_removals})
        missed = max(removal.missed for removal in found.all_removals)
        text += (
            f"no rate changes, nor without others of {_of_all(results, found.n_dropped)} "
            f"({'–'.join(map(str, dict.fromkeys((n[0], n[-1]))))} prompts of half B: changes "
            f"up to {100 * missed:.0f} points go unseen)"
        )
        return Sentence("no feature decides alone", text)
    told = [r for r in found.removals if r.measure == results.measure] or list(found.removals)
    first = max(told, key=lambda removal: (removal.subset == results.subset, abs(removal.change)))
    text += f"{spoken(first.measure)} on {first.without_it} of {first.n} {first.subset} prompts"
    return Sentence("one feature to look at", f"{text}, with it on {first.with_it}")


def _of_all(results: StudyResults, n_dropped: int) -> str:
    n_features = sum(config.get("d_new") or 0 for config in results.deltas)
    return (
        f"the {n_dropped} strongest of {n_features}" if n_features > n_dropped else f"{n_dropped}"
    )


def sentences(results: StudyResults) -> dict[str, Sentence]:
    """What else was found, in the order in which it is told."""
    if results.measure is None:
        return {"split": found} if (found := split(results)) else {}
    found = {
        "attention": attention(results),
        "dose": dose(results),
        "layers": layers(results),
        "control": control(results),
        "split": split(results),
        "side": next(iter(side(results)), None),
        "curve": curve(results),
        **{f"elsewhere {i}": sentence for i, sentence in enumerate(elsewhere(results))},
        "one_feature": feature_sentence(results, one_feature(results)),
    }
    return {kind: sentence for kind, sentence in found.items() if sentence}


def matrix(results: StudyResults) -> list[str]:
    """The measure by condition and subset; a second one, where the task has one that asks for more."""
    if results.measure is None:
        return []
    subsets, width = results.subsets[:N_SUBSETS], 17
    asked = [r for r in results.rates if results.level(RAW, results.subset, r)]
    lines = [_line(f"{spoken(results.measure)}, %"[:LABEL], [s[:width] for s in subsets], width)]
    for name in (BASE_MODEL, RAW, NO_DELTA, FULL):
        cells = [_cell(results, name, subset) for subset in subsets]
        lines.append(_line(condition_title(results, name), cells, width))
    if asked[-1:] not in ([], [results.measure]):
        cells = [_pair(results, subset, asked[-1]) for subset in subsets]
        lines.append(_line(f"{spoken(asked[-1])[: LABEL - 13]}, delta (raw)", cells, width))
    return lines


def _pair(results: StudyResults, subset: str, measure: str) -> str:
    """With the delta, and the finetuned model's in brackets."""
    full, raw = (results.level(name, subset, measure) for name in (FULL, RAW))
    if full and raw:
        return f"{percent(full.value)} ({percent(raw.value)})"
    return "not measured" if raw else "–"


def _cell(results: StudyResults, condition: str, subset: str) -> str:
    if level := results.level(condition, subset):
        ends = (f"{100 * end:.0f}" for end in (level.low, level.high))
        return f"{percent(level.value)} [{', '.join(ends)}]"
    if results.no_number(condition, subset):
        return "no number"
    return "–" if results.was_measured(condition, subset) else "not measured"


def _line(label: str, cells: list[str], width: int) -> str:
    return f"  {label:<{LABEL}}{''.join(f'{cell:>{width}}' for cell in cells)}".rstrip()


def screen(results: StudyResults) -> str:
    """All of it as text."""
    head = f"── {' · '.join([str(results.study), *about(results)])} "[: N_COLUMNS - 1]
    found = answer(results)
    meaning = found.headline.replace(f"{delta_size(results)}delta features", "they", 1)
    words = (question(results), change(results), f"{found.verdict}: {meaning}: {found.sentence}")
    top = [head.ljust(N_COLUMNS, "─"), *_wrapped("  ".join(filter(None, words)))]
    top += ["", *matrix(results), ""]
    told = {kind: _folded(*sentence) for kind, sentence in sentences(results).items()}
    further = _further(results)
    # What is damaged is known when all has been read.
    notes = _wrapped(_footnote(results))
    room = N_LINES - len(top) - len(further) - 1
    end = [*notes[: max(1, room)], "", *further]
    room -= len(notes)
    kept = set()
    for kind in sorted(told, key=lambda kind: FIRST.index(kind) if kind in FIRST else len(FIRST)):
        if len(told[kind]) <= room:
            room -= len(told[kind])
            kept.add(kind)
    body = [line for kind, lines in told.items() if kind in kept for line in lines]
    # What a study calls its subsets is nothing that a terminal should obey.
    lines = [*top, *body, *end]
    return "\n".join("".join(c if c.isprintable() else "�" for c in line) for line in lines)


def _wrapped(text: str, width: int = N_COLUMNS) -> list[str]:
    """Lines that do not part a number from its percent sign."""
    lines = textwrap.wrap(text.replace(" %", "\u00a0%"), width)
    return [line.replace("\u00a0", " ") for line in lines]


def _folded(heading: str, text: str) -> list[str]:
    first, *more = _wrapped(text, N_COLUMNS - LABEL - 4)
    return [f"  {heading:<{LABEL}}  {first}", *(f"{'':{LABEL + 4}}{line}" for line in more)]


def _footnote(results: StudyResults) -> str:
    level = results.level(RAW, results.subset)
    n = f", {level.n} prompts" if level and level.n else ""
    absent = not_shown(results)
    absent += [f"the delta on {', '.join(names)}"] if (names := unmeasured(results)) else []
    text = f"[95 % interval{n}]  not shown: {', '.join(absent)}"
    damaged = [*not_a_number(results), *results.damaged]
    return f"{text}  damaged: {'; '.join(damaged)}" if damaged else text


def _further(results: StudyResults) -> list[str]:
    """Files and commands to go on with, each whole, so that it can be copied; two a line where they fit."""
    study = results.study
    pages = [
        (name, [str(study / "report" / file)])
        for name, file in (("read", "index.html"), ("features", "features.html"))
        if (study / "report" / file).exists()
    ]
    ask = []
    prompt = results.task.get("prompt")
    if isinstance(prompt, str) and prompt.strip().isprintable() and len(prompt) <= 60:
        program_ = program("delta-transcoders")
        ask = [("ask", [*program_, "inspect", str(study), prompt.strip()])]
    commands = [
        ("numbers", [*program("delta-transcoders"), "summary", str(study)]),
        ("curves", [*program("tensorboard"), "--logdir", str(study)]),
    ]
    lines: list[str] = []
    for name, words in [*pages, *ask, *commands]:
        found = _command(name, [shlex.quote(word) for word in words])
        if lines and len(lines[-1]) <= 48 and len(found) == 1 and len(found[0]) <= N_COLUMNS - 48:
            lines[-1] = f"{lines[-1]:<50}{found[0].strip()}"
        else:
            lines += found
    return lines


def _command(name: str, words: list[str]) -> list[str]:
    """Folded as a shell reads on, between words: one that is longer than a line stays whole."""
    lines = [f"  {name:<9}"]
    for i, word in enumerate(words):
        if i and len(lines[-1]) + len(word) + 3 > N_COLUMNS:
            lines[-1] += " \\"
            lines.append(f"{'':11}")
        lines[-1] += f" {word}"
    return lines


def program(name: str) -> list[str]:
    """How a user calls an installed program, which may lie in an environment that is not active."""
    beside = Path(sys.executable).parent / name
    return [name if shutil.which(name) or not beside.is_file() else os.path.relpath(beside)]


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
    print(screen(results))


if __name__ == "__main__":
    run(main)
