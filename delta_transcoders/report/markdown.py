"""Results as Markdown, for TensorBoard's text tab."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from delta_transcoders.report.columns import logprobs, ranked_measures, rates, title
from delta_transcoders.report.formatting import cell_text, table_number
from delta_transcoders.tasks.task import Example

N_FEATURES = 10
N_SAMPLES = 12
LONGEST = 300
"""Characters of a prompt or an answer that are shown."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    >>> print(table(["a", "b"], [["1", "x|y"]]))
    | a | b |
    | --- | --- |
    | 1 | x¦y |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '¦') for c in line)} |" for line in lines)


def measured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures of a result table that a reader looks for first and that any row has.

    >>> measured([{"mean_ce": 1.0, "dce": 0.5, "right_rate": 1.0, "l0_base": 2.0, "fvu": float("nan")}])
    ['right_rate', 'dce']
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    change = [name for name in ("dce", "mean_kl", "fvu", "l0_delta") if name in names]
    first = [*rates(names), *logprobs(names), *([] if "dce" in names else ["mean_ce"]), *change]
    return [n for n in first if any(not math.isnan(row.get(n, math.nan)) for row in rows)]


def results(rows: Sequence[Mapping[str, Any]]) -> str:
    """A result table with its intervals, subset by subset; what no row has is left out.

    Args:
        rows: numbers as numbers, see `report.columns`.
    """
    names = measured(rows)
    labels = [
        n for n in ("condition", "layer", "d_new", "percentile") if any(r.get(n) for r in rows)
    ]
    parts = []
    for subset in dict.fromkeys(row["subset"] for row in rows):
        ours = [row for row in rows if row["subset"] == subset]
        shown = [n for n in names if any(not math.isnan(r.get(n, math.nan)) for r in ours)]
        header = [
            *("layers" if n == "layer" else n for n in labels),
            "examples",
            *map(title, shown),
        ]
        cells = []
        for row in ours:
            text = {name: cell_text(value) for name, value in row.items()}
            estimates = [table_number(text, name) for name in shown]
            cells.append([*(text.get(n, "") for n in labels), text["n_examples"], *estimates])
        parts.append(f"**{subset}**\n\n{table(header, cells)}")
    return "\n\n".join([*parts, "Intervals are at 95 %. All columns are in `metrics.csv`."])


def samples(examples: Sequence[Example], answers: Mapping[str, Mapping[int, str]]) -> str:
    """Prompts with the answers of every condition below each other, as code: Markdown would eat their tags.

    The first prompts of each subset on which conditions differ, then others, `N_SAMPLES` in all.

    Args:
        answers: by condition, by index of the example.
    """
    shared = [i for i in range(len(examples)) if any(i in of for of in answers.values())]
    subsets = list(dict.fromkeys(examples[i].subset for i in shared))
    parts = []
    for subset in subsets:
        ours = [i for i in shared if examples[i].subset == subset]
        ours.sort(key=lambda i: len({of[i] for of in answers.values() if i in of}) == 1)
        for i in ours[: max(1, N_SAMPLES // len(subsets))]:
            prompt = examples[i].prompt_record
            lines = {"prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"]}
            lines |= {name: of[i] for name, of in answers.items() if i in of}
            width = max(map(len, lines))
            block = "\n".join(f"    {n:{width}}  {one_line(text)}" for n, text in lines.items())
            parts.append(f"**{subset}**, example {i}\n\n{block}")
    return "\n\n".join(parts)


def one_line(text: str) -> str:
    """
    >>> one_line("a\\nb\\n"), one_line("a\\tb\\x00\\u202e")
    ('a⏎b', 'a b\\\\x00\\\\u202e')
    """
    text = text.rstrip("\n").replace("\n", "⏎").replace("\t", " ")
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def features(rows: Sequence[Mapping[str, Any]]) -> str:
    """The delta features whose removal changes the first subset most, by each ranked measure.

    Args:
        rows: of `ranking.csv`, numbers as numbers.
    """
    subsets = list(dict.fromkeys(row["subset"] for row in rows))
    cells = {(r["layer"], r["feature"], r["subset"]): r for r in rows if r["ablation"] == "dropped"}
    parts = []
    for measure in ranked_measures(rows[0]):
        ours = [r for (*_, subset), r in cells.items() if subset == subsets[0]]
        ours = [row for row in ours if not math.isnan(row[measure])]
        ours.sort(key=lambda row: -abs(row[measure]))
        others = [n for n in ranked_measures(rows[0]) if n != measure]
        shown = [(measure, subset) for subset in subsets] + [(n, subsets[0]) for n in others]
        header = ["feature", *(f"{title(n)}, {subset}" for n, subset in shown), "density"]
        lines = []
        for row in ours[:N_FEATURES]:
            where = row["layer"], row["feature"]
            of = {s: {k: cell_text(v) for k, v in cells[*where, s].items()} for s in subsets}
            estimates = [table_number(of[s], n, is_difference=True) for n, s in shown]
            density = table_number(of[subsets[0]], "density")
            lines.append([f"L{where[0]}F{where[1]}", *estimates, density])
        if lines:
            heading = f"**Dropped alone: largest change of {title(measure)} on {subsets[0]}**"
            parts.append(f"{heading}\n\n{table(header, lines)}")
    note = "Differences to all features in place, with 95 % intervals; ~0 marks one that holds 0."
    return "\n\n".join([*parts, note])
