"""Results as Markdown, for TensorBoard's text tab."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from delta_transcoders.report.columns import ranked_measures, rates, title
from delta_transcoders.report.formatting import cell_text, table_number
from delta_transcoders.tasks.task import Example

LABELS = {"layer": "layers", "d_new": "d_new", "percentile": "percentile"}
"""Columns that tell rows apart beside the condition, where there are several values."""
CONDITIONS = {
    "base_model": "the base model",
    "raw": "the model that is studied, untouched",
    "no_delta": "base dictionaries in place of the MLPs",
    "full": "base dictionaries + delta in their place",
    "base_mlp": "the base model's MLPs in their place",
    "dictionary_error": "the MLPs + what the base dictionaries get wrong of the base model's",
}
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


def measured(row: Mapping[str, Any]) -> list[str]:
    """What a reader looks for first in a row of a result table: rates, ΔCE (cross-entropy without it), FVU.

    >>> measured({"mean_ce": 1.0, "dce": 0.5, "right_rate": 1.0, "l0_base": 2.0, "fvu": float("nan")})
    ['right_rate', 'dce']
    """
    loss = "dce" if "dce" in row else "mean_ce"
    return [n for n in (*rates(row), loss, "fvu") if not math.isnan(row.get(n, math.nan))]


def results(rows: Sequence[Mapping[str, Any]]) -> str:
    """A result table with its intervals, subset by subset; what no row of a subset has is left out.

    Args:
        rows: numbers as numbers, see `report.columns`.
    """
    labels = ["condition", *(n for n in LABELS if len({r.get(n) for r in rows if r.get(n)}) > 1)]
    parts = []
    for subset in dict.fromkeys(row["subset"] for row in rows):
        ours = [row for row in rows if row["subset"] == subset]
        names = list(dict.fromkeys(name for row in ours for name in measured(row)))
        header = [*(LABELS.get(name, name) for name in labels), *map(title, names)]
        cells = []
        for row in ours:
            text = {name: cell_text(value) for name, value in row.items()}
            estimates = [table_number(text, name) for name in names]
            cells.append([*(text.get(name, "") for name in labels), *estimates])
        n_examples = max(row["n_examples"] for row in ours)
        parts.append(f"**{subset}**, {n_examples} examples\n\n{table(header, cells)}")
    return "\n\n".join([*parts, "Intervals are at 95 %. `metrics.csv` has more columns."])


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
    known = "".join(f"- `{name}`: {CONDITIONS[name]}\n" for name in answers if name in CONDITIONS)
    return "\n\n".join([*parts, known])


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
