"""Charts with a line for each layer: what replacing its MLP costs, what dictionaries leave unexplained."""

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
    ends_of,
    heading,
    logarithmic,
    new_figure,
    ordered,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, object]


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
    return figure


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
    return figure
