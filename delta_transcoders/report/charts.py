"""Charts of rates and cross-entropy: one function each, drawn for PNG files and for pages (`report.svg`).

A point of a chart is one unit of a page, so that text has the size that it has there. Colours are those of
`pages/base.css`, by shape too, and `report.svg` puts the page's own in their place.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from delta_transcoders.report.columns import title, verdict, whole_model
from delta_transcoders.report.formatting import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Row = Mapping[str, object]
INK, MUTED, LINE = "#1a1d21", "#5b6470", "#dfe3e8"
BLUE, ORANGE, GREY, VIOLET = "#0072b2", "#b34700", "#6b747f", "#8a4f9e"
SERIES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREY, "D", ":"),
    (VIOLET, "^", "-."),
    (INK, "v", "-"),
)
"""Colour, marker and line of each series, in their order."""
SIZE = 13
CONDITION_COLORS = {"full": BLUE, "no_delta": ORANGE, "raw": INK}
SMALLEST = 1e-3
"""Nats below which a logarithmic axis is linear."""


def new_figure(width: float, height: float, n_rows: int = 1, n_columns: int = 1, **options):
    """A figure of so many points, and its panels [n_rows][n_columns] without frames."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps every figure alive and wants a display.
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, **options)
    for axes in panels.flat:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=SIZE - 1, labelcolor=MUTED)
        axes.set_axisbelow(True)
    return figure, panels


def plain(figure: Figure) -> Figure:
    """A figure whose texts are shown to the letter: a study's names may hold dollar signs, and worse."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text("".join(c if c.isprintable() or c == "\n" else "�" for c in text.get_text()))
    return figure


def cell(row: Row, column: str) -> float:
    value = row.get(column)
    return math.nan if value in (None, "") else float(value)


def logarithmic(axis: Axis, values: Sequence[float]) -> None:
    """A scale on which nats from a thousandth upwards are seen, and 0 and negative ones too."""
    known = [value for value in values if value == value]
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    set_scale("symlog", linthresh=SMALLEST, linscale=0.3)
    ticks = [sign * 10.0**k for sign in (-1, 1) for k in range(-2, 3)]
    inside = [t for t in ticks if known and min(*known, 0) * 2 <= t <= max(*known, 0) * 2]
    axis.set_ticks([0.0, *inside], [f"{tick:g}".replace("-", "−") for tick in (0.0, *inside)])
    axis.set_ticks([], minor=True)


def ordered(values: Sequence[object]) -> list:
    return list(dict.fromkeys(values))


def ends_of(rows: Sequence[Row], column: str) -> list[list[float]]:
    """Lengths of the intervals below and above the estimates; 0 where there is none."""
    y = [cell(row, column) for row in rows]
    lengths = []
    for end, sign in (("_ci_low", -1), ("_ci_high", 1)):
        found = (cell(row, f"{column}{end}") for row in rows)
        # An interval may miss its estimate by rounding; matplotlib refuses negative lengths.
        lengths.append(
            [max(0.0, sign * (e - v)) if e == e else 0.0 for e, v in zip(found, y, strict=True)]
        )
    return lengths


def heading(axes: Axes, text: str, below: str = "") -> None:
    n_lines = below.count("\n") + 1 if below else 0
    axes.set_title(
        text, fontsize=SIZE, fontweight="bold", loc="left", color=INK, pad=8 + 15 * n_lines
    )
    if below:
        axes.annotate(
            below, (0, 1), (0, 8), "axes fraction", "offset points", fontsize=SIZE - 1, color=MUTED
        )


def conditions(
    rows: Sequence[Row],
    column: str,
    names: Mapping[str, str],
    whole_models: Sequence[str] = ("raw", "base_model"),
    below: Mapping[str, str] | None = None,
) -> Figure:
    """A rate by condition, a panel per subset, on one axis from 0 to 100 %.

    Args:
        rows: one per condition and subset.
        names: of the conditions, from the top.
        whole_models: conditions in which nothing is replaced, above a line.
        below: a few words on each subset.
    """
    subsets, keys = ordered([row["subset"] for row in rows]), list(names)
    height = 126 + 30 * len(keys)
    figure, (panels,) = new_figure(
        190 + 215 * len(subsets), height, 1, len(subsets), sharex=True, sharey=True
    )
    found = {(row["condition"], row["subset"]): row for row in rows}
    n_above = sum(key in whole_models for key in keys)
    for axes, subset in zip(panels, subsets, strict=True):
        axes.grid(axis="x", color=LINE)
        if 0 < n_above < len(keys):
            axes.axhline(n_above - 0.5, color=LINE, lw=1)
        for y, key in enumerate(keys):
            row = found.get((key, subset))
            value = cell(row, column) if row else math.nan
            if value != value:
                text = "does not apply" if row else "not measured"
                axes.text(0.5, y, text, ha="center", va="center", fontsize=SIZE - 1, color=MUTED)
                continue
            color = CONDITION_COLORS.get(key, GREY)
            marker = "o" if key in ("raw", "full") else "s" if key == "no_delta" else "D"
            axes.errorbar(
                [value], [y], xerr=ends_of([row], column), fmt=marker, ms=7, lw=2, color=color
            )
            right = value < 0.6
            axes.annotate(
                f"{percent(value)} %",
                (value, y),
                (9 if right else -9, 7),
                textcoords="offset points",
                ha="left" if right else "right",
                fontsize=SIZE - 1,
                color=INK,
            )
        heading(axes, str(subset), folded((below or {}).get(str(subset), ""), 32))
        axes.set_xlim(-0.06, 1.06)
        axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    panels[0].set_yticks(range(len(keys)), [names[key] for key in keys], color=INK)
    panels[0].set_ylim(len(keys) - 0.4, -0.8)
    return plain(figure)


def percent(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0")


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def folded(text: str, width: int) -> str:
    """At most three lines of text."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder="…"))


def dose_response(rows: Sequence[Row], columns: Sequence[str]) -> Figure:
    """Columns against α, a panel each, a line per subset: rates from 0 to 100 %, cross-entropy logarithmic.

    Of the group of layers that stands for the whole model; the first where none does.
    """
    swept = [row for row in rows if row.get("alpha") not in (None, "")]
    labels = ordered([row["layer"] for row in swept])
    layer = whole_model(map(str, labels)) or labels[0]
    swept = [row for row in swept if row["layer"] == layer]
    figure, (panels,) = new_figure(80 + 460 * len(columns), 340, 1, len(columns))
    for column, axes in zip(columns, panels, strict=True):
        is_rate, ends = column.endswith("_rate"), []
        axes.grid(axis="y", color=LINE)
        for subset, (color, marker, line) in zip(
            ordered([row["subset"] for row in swept]), series(len(swept)), strict=False
        ):
            points = [
                r for r in swept if r["subset"] == subset and cell(r, column) == cell(r, column)
            ]
            if not points:
                continue
            points.sort(key=lambda row: float(row["alpha"]))
            x = [float(row["alpha"]) for row in points]
            y = [cell(row, column) for row in points]
            axes.errorbar(
                x, y, yerr=ends_of(points, column), color=color, marker=marker, ls=line, lw=2, ms=6
            )
            last = f"{percent(y[-1])} %" if is_rate else number(y[-1])
            ends.append((y[-1], f"{subset} {last}", color, x[-1]))
        if is_rate:
            axes.set_ylim(-0.04, 1.04)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        else:
            logarithmic(axes.yaxis, [cell(row, column) for row in swept])
        _labels(axes, ends, is_rate)
        alphas = sorted({float(row["alpha"]) for row in swept})
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
        axes.set_xlabel(
            "α, strength of the delta (0: off, 1: as trained)", fontsize=SIZE - 1, color=MUTED
        )
        heading(axes, title(verdict(column)) if is_rate else f"{title(column)}, nats a token")
    return plain(figure)


def series(n: int):
    return (SERIES * (n // len(SERIES) + 1))[:n]


def _labels(axes: Axes, ends: list[tuple[float, str, str, float]], is_rate: bool) -> None:
    """Names at the ends of lines, moved apart where they would cover each other."""
    placed: list[float] = []
    for y, text, color, x in sorted(ends, key=lambda end: end[0]):
        place = axes.transData.transform((x, y))[1]
        shift = 0.0
        if placed and place < placed[-1] + 17 and is_rate:
            shift = placed[-1] + 17 - place
        placed.append(place + shift)
        axes.annotate(
            text,
            (x, y),
            (9, shift * 0.72 - 4),
            textcoords="offset points",
            fontsize=SIZE - 1,
            fontweight="bold",
            color=INK if color == INK else color,
            annotation_clip=False,
        )


def split_parts(rows: Sequence[Row], measure: str, pooled: str) -> Figure:
    """The gap from raw to no_delta and its two parts, a panel per subset.

    Dots with intervals are the rows whose seed is `pooled`, small points single seeds.
    """
    mine = [row for row in rows if row["measure"] == measure]
    subsets = ordered([row["subset"] for row in mine])
    parts = {
        "total": ("lost without the delta", INK, "o"),
        "finetuning": ("finetuning", BLUE, "s"),
        "dictionary_error": ("dictionary error", ORANGE, "D"),
    }
    figure, (panels,) = new_figure(
        190 + 260 * len(subsets), 170, 1, len(subsets), sharex=True, sharey=True
    )
    for axes, subset in zip(panels, subsets, strict=True):
        axes.grid(axis="x", color=LINE)
        axes.axvline(0, color=MUTED, lw=1)
        for y, (part, (_, color, marker)) in enumerate(parts.items()):
            ours = [r for r in mine if (r["subset"], r["part"]) == (subset, part)]
            for row in (r for r in ours if r["seed"] == pooled):
                value = cell(row, "estimate")
                ends = row | {"estimate_ci_low": row["ci_low"], "estimate_ci_high": row["ci_high"]}
                axes.errorbar(
                    [value],
                    [y],
                    xerr=ends_of([ends], "estimate"),
                    fmt=marker,
                    ms=7,
                    lw=2,
                    color=color,
                )
                text = number(value).replace("-", "−")
                axes.annotate(
                    text,
                    (value, y),
                    (0, 8),
                    textcoords="offset points",
                    ha="center",
                    fontsize=SIZE - 1,
                )
            singly = [cell(r, "estimate") for r in ours if r["seed"] != pooled]
            axes.plot(singly, [y + 0.25] * len(singly), ".", color=GREY, ms=5)
        heading(axes, f"{subset}: {title(measure)}")
        axes.margins(x=0.15)
    panels[0].set_yticks(range(len(parts)), [name for name, *_ in parts.values()], color=INK)
    panels[0].set_ylim(len(parts) - 0.5, -0.8)
    return plain(figure)
