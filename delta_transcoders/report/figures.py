"""Figures of the experiments, drawn from result rows (as `metrics.csv` has them, numbers as numbers)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = {
    "tool_call_rate": "tool call rate",
    "valid_tool_format_rate": "valid format rate",
    "math_correct_rate": "math correct rate",
}
Row = dict[str, object]


def _new(n_rows: int, n_columns: int) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps every figure alive and wants a display.
    figure = Figure(figsize=(4.2 * n_columns, 3.0 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _number(row: Row, column: str) -> float:
    value = row.get(column)
    return math.nan if value in (None, "") else float(value)


def _ordered(values: Sequence[object]) -> list:
    return list(dict.fromkeys(values))


def _with_intervals(axes: Axes, x: Sequence[float], rows: Sequence[Row], column: str, label: str):
    y = [_number(row, column) for row in rows]
    low = [_number(row, f"{column}_ci_low") for row in rows]
    high = [_number(row, f"{column}_ci_high") for row in rows]
    if any(not math.isnan(value) for value in low):
        # An interval may miss its estimate by rounding; matplotlib refuses negative lengths.
        below = [max(0.0, b - a) for a, b in zip(low, y, strict=True)]
        above = [max(0.0, a - b) for a, b in zip(high, y, strict=True)]
        axes.errorbar(x, y, yerr=[below, above], marker="o", ms=3, capsize=2, lw=1, label=label)
    else:
        axes.plot(x, y, marker="o", ms=3, lw=1, label=label)


def per_layer(rows: Sequence[Row], columns: dict[str, str]) -> Figure:
    """Columns against the layers that were replaced, a panel per column and subset, a line per condition.

    A horizontal line is raw.
    """
    subsets = _ordered([row["subset"] for row in rows])
    figure, panels = _new(len(columns), len(subsets))
    for (column, title), line in zip(columns.items(), panels, strict=True):
        for subset, axes in zip(subsets, line, strict=True):
            chosen = [row for row in rows if row["subset"] == subset]
            layers = _ordered([row["layer"] for row in chosen if row["layer"] != ""])
            for raw in (row for row in chosen if row["condition"] == "raw"):
                if not math.isnan(_number(raw, column)):
                    axes.axhline(_number(raw, column), color="gray", lw=0.8, ls="--", label="raw")
            for condition in _ordered([r["condition"] for r in chosen if r["condition"] != "raw"]):
                points = [row for row in chosen if row["condition"] == condition]
                x = [layers.index(row["layer"]) for row in points]
                _with_intervals(axes, x, points, column, str(condition))
            axes.set_xticks(range(len(layers)), layers, fontsize=8)
            axes.set_title(f"{subset}: {title}", fontsize=9)
            axes.set_xlabel("layers replaced", fontsize=8)
    panels[0][0].legend(fontsize=7)
    return figure


def dose_response(rows: Sequence[Row], columns: dict[str, str]) -> Figure:
    """Columns against α, a panel per column and subset, a line per group of layers."""
    swept = [row for row in rows if row.get("alpha") not in (None, "")]
    subsets = _ordered([row["subset"] for row in swept])
    figure, panels = _new(len(columns), len(subsets))
    for (column, title), line in zip(columns.items(), panels, strict=True):
        for subset, axes in zip(subsets, line, strict=True):
            chosen = [row for row in swept if row["subset"] == subset]
            for layer in _ordered([row["layer"] for row in chosen]):
                points = sorted(
                    (row for row in chosen if row["layer"] == layer),
                    key=lambda row: float(row["alpha"]),
                )
                alphas = [float(row["alpha"]) for row in points]
                _with_intervals(axes, alphas, points, column, f"layers {layer}")
            axes.set_title(f"{subset}: {title}", fontsize=9)
            axes.set_xlabel("α", fontsize=8)
    panels[0][0].legend(fontsize=7)
    return figure


def effects_by_rank(rows: Sequence[Row]) -> Figure:
    """A feature ranking: change of log p(call) against rank, a line of panels per layer, one per subset."""
    layers, subsets = (_ordered([row[name] for row in rows]) for name in ("layer", "subset"))
    figure, panels = _new(len(layers), len(subsets))
    for layer, line in zip(layers, panels, strict=True):
        for subset, axes in zip(subsets, line, strict=True):
            chosen = [row for row in rows if row["layer"] == layer and row["subset"] == subset]
            for ablation in _ordered([row["ablation"] for row in chosen]):
                points = [row for row in chosen if row["ablation"] == ablation]
                points.sort(key=lambda row: _number(row, "rank"))
                x = [_number(row, "rank") for row in points]
                _with_intervals(axes, x, points, "d_call_logprob", str(ablation))
            axes.axhline(0.0, color="gray", lw=0.8, ls="--")
            axes.set_title(f"layer {layer}, {subset}: Δ log p(call)", fontsize=9)
            axes.set_xlabel("rank of the feature", fontsize=8)
    panels[0][0].legend(fontsize=7)
    return figure


def heat_map(rows: Sequence[Row], column: str, title: str) -> Figure:
    """A column over d_new × percentile, for the summary of a sweep; nan where there is no row."""
    widths = sorted({int(row["d_new"]) for row in rows})
    percentiles = sorted({float(row["percentile"]) for row in rows})
    grid = [
        [
            next(
                (
                    _number(r, column)
                    for r in rows
                    if int(r["d_new"]) == width and float(r["percentile"]) == percentile
                ),
                math.nan,
            )
            for percentile in percentiles
        ]
        for width in widths
    ]
    figure, panels = _new(1, 1)
    axes = panels[0][0]
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    for i, line in enumerate(grid):
        for j, value in enumerate(line):
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", color="white", fontsize=8)
    axes.set_xticks(range(len(percentiles)), [f"{p:g}" for p in percentiles])
    axes.set_yticks(range(len(widths)), widths)
    axes.set_xlabel("percentile")
    axes.set_ylabel("d_new")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image)
    return figure


def experiment_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figures that an experiment's rows allow, by name."""
    figures: dict[str, Callable[[], Figure]] = {}
    swept = any(row.get("alpha") not in (None, "") for row in rows)
    generated = any(not math.isnan(_number(row, "tool_call_rate")) for row in rows)
    measures = {"mean_ce": "cross-entropy"} | (RATES if generated else {})
    if swept:
        figures["dose_response"] = lambda: dose_response(rows, measures)
    else:
        figures["dce_per_layer"] = lambda: per_layer(rows, {"dce": "ΔCE to raw"})
        if generated:
            figures["rates_per_layer"] = lambda: per_layer(rows, RATES)
        figures["activations_per_layer"] = lambda: per_layer(
            rows, {"mean_abs_base_acts": "Σ|a| base", "mean_abs_delta_acts": "Σ|a| delta"}
        )
    if any(not math.isnan(_number(row, "fvu")) for row in rows):
        figures["reconstruction_per_layer"] = lambda: per_layer(
            rows, {"fvu": "FVU", "mean_cos": "cosine", "mean_l2": "relative L2"}
        )
    return {name: draw() for name, draw in figures.items()}
