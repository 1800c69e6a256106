"""Charts by layer: the rates with its MLP replaced, what that costs, what dictionaries leave unexplained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from delta_transcoders.report.charts import (
    BLUE,
    CONDITION_COLORS,
    GREY,
    INK,
    LINE,
    MUTED,
    ORANGE,
    SERIES,
    SIZE,
    cell,
    cut,
    ends_of,
    heading,
    logarithmic,
    new_figure,
    ordered,
    percent,
    plain,
)
from delta_transcoders.report.columns import title, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, object]


def layer_matrix(
    rows: Sequence[Row], columns: Sequence[str], subset: str, names: Mapping[str, str] | None = None
) -> Figure:
    """Rates by condition and replaced layers, in percent, a panel per rate; darker is nearer to 100."""
    mine = [row for row in rows if row["subset"] == subset and row["layer"] not in ("", None)]
    labels, keys = (ordered([row[name] for row in mine]) for name in ("layer", "condition"))
    names = dict(names or {})
    width = 60 * len(labels)
    figure, panels = new_figure(
        190 + max(width, 380), len(columns) * (64 + 32 * len(keys)), len(columns), 1
    )
    found = {(row["layer"], row["condition"]): row for row in mine}
    for column, axes in zip(columns, panels[:, 0], strict=True):
        for x, label in enumerate(labels):
            for y, key in enumerate(keys):
                value = cell(found[label, key], column) if (label, key) in found else math.nan
                if value == value:
                    box = axes.axhspan(
                        y - 0.47, y + 0.47, 0, 1, color=BLUE, alpha=0.04 + 0.46 * value
                    )
                    box.set(x=x - 0.47, width=0.94, transform=axes.transData, lw=0)
                text = percent(value) if value == value else "–"
                axes.text(x, y, text, ha="center", va="center", fontsize=SIZE, color=INK)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(keys) - 0.5, -0.5)
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(labels)), [cut(str(label), 9) for label in labels])
        axes.set_yticks(range(len(keys)), [names.get(key, str(key)) for key in keys], color=INK)
        heading(axes, f"{title(verdict(column))} on {subset}, %, by layers replaced")
        axes.title.set_y(1.0)
    return plain(figure)


def dce_per_layer(rows: Sequence[Row]) -> Figure:
    """ΔCE by replaced layers, a panel per subset, a dot with its interval per condition, logarithmic."""
    mine = [row for row in rows if row["layer"] not in ("", None)]
    subsets, labels, keys = (
        ordered([row[name] for row in mine]) for name in ("subset", "layer", "condition")
    )
    step = 0.7 / max(1, len(keys))
    height = 110 + max(26, 9 * len(keys)) * len(labels)
    figure, (panels,) = new_figure(
        120 + 270 * len(subsets), height, 1, len(subsets), sharex=True, sharey=True
    )
    for axes, subset in zip(panels, subsets, strict=True):
        axes.grid(axis="x", color=LINE)
        axes.axvline(0, color=MUTED, lw=1)
        for k, (key, (color, marker, _)) in enumerate(
            zip(keys, SERIES * (len(keys) // len(SERIES) + 1), strict=False)
        ):
            points = [
                row
                for row in mine
                if (row["subset"], row["condition"]) == (subset, key)
                and not math.isnan(cell(row, "dce"))
            ]
            y = [labels.index(row["layer"]) + (k + 0.5) * step - 0.35 for row in points]
            axes.errorbar(
                [cell(row, "dce") for row in points],
                y,
                xerr=ends_of(points, "dce"),
                fmt=marker,
                ms=5,
                lw=1.5,
                color=CONDITION_COLORS.get(str(key), color),
                label=str(key).replace("_", " "),
            )
        logarithmic(axes.xaxis, [cell(row, "dce") for row in mine])
        heading(axes, f"{subset}: ΔCE, nats a token")
    panels[0].set_yticks(range(len(labels)), [f"layers {label}" for label in labels], color=INK)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False
    )
    return plain(figure)


def fvu_per_layer(rows: Sequence[Row]) -> Figure:
    """What no_delta and full leave unexplained at single layers, joined; other conditions as small dots."""
    mine = [
        row for row in rows if not math.isnan(cell(row, "fvu")) and row["layer"] not in ("", None)
    ]
    subsets, labels = (ordered([row[name] for row in mine]) for name in ("subset", "layer"))
    figure, (panels,) = new_figure(
        120 + 240 * len(subsets), 110 + 24 * len(labels), 1, len(subsets), sharex=True, sharey=True
    )
    for axes, subset in zip(panels, subsets, strict=True):
        axes.grid(axis="x", color=LINE)
        for y, label in enumerate(labels):
            at = {
                row["condition"]: cell(row, "fvu")
                for row in mine
                if (row["subset"], row["layer"]) == (subset, label)
            }
            if {"no_delta", "full"} <= at.keys():
                axes.plot([at["no_delta"], at["full"]], [y, y], color=GREY, lw=2)
            for condition, value in at.items():
                known = {"no_delta": (ORANGE, "s", 7), "full": (BLUE, "o", 7)}
                color, marker, size = known.get(condition, (GREY, "D", 5))
                name = condition.replace("_", " ") if y == 0 else None
                axes.plot([value], [y], marker, color=color, ms=size, label=name)
        heading(axes, f"{subset}: FVU")
        axes.locator_params(axis="x", nbins=4)
    panels[0].set_xlim(left=0)
    panels[0].set_yticks(range(len(labels)), [f"layer {label}" for label in labels], color=INK)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    found = [axes.get_legend_handles_labels() for axes in panels]
    by_name = {
        name: handle
        for handles, names in found
        for handle, name in zip(handles, names, strict=True)
    }
    figure.legend(
        by_name.values(),
        by_name.keys(),
        loc="outside lower left",
        ncols=4,
        frameon=False,
        fontsize=SIZE - 1,
    )
    return plain(figure)
