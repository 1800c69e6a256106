"""Figures of the experiments, drawn from result rows (as `metrics.csv` has them, numbers as numbers)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from delta_transcoders.report.charts import (
    GREY,
    LINE,
    MUTED,
    SIZE,
    cell,
    conditions,
    dose_response,
    ends_of,
    heading,
    new_figure,
    ordered,
    plain,
    series,
)
from delta_transcoders.report.columns import ranked_measures, rates, title, whole_model
from delta_transcoders.report.layer_charts import dce_per_layer, fvu_per_layer, layer_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, object]


def _new(n_rows: int, n_columns: int) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps every figure alive and wants a display.
    figure = Figure(figsize=(4.2 * n_columns, 3.0 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _with_intervals(axes: Axes, x: Sequence[float], rows: Sequence[Row], column: str, label: str):
    y = [cell(row, column) for row in rows]
    low = [cell(row, f"{column}_ci_low") for row in rows]
    high = [cell(row, f"{column}_ci_high") for row in rows]
    if any(not math.isnan(value) for value in low):
        # An interval may miss its estimate by rounding; matplotlib refuses negative lengths.
        below = [max(0.0, b - a) for a, b in zip(low, y, strict=True)]
        above = [max(0.0, a - b) for a, b in zip(high, y, strict=True)]
        axes.errorbar(x, y, yerr=[below, above], marker="o", ms=3, capsize=2, lw=1, label=label)
    else:
        axes.plot(x, y, marker="o", ms=3, lw=1, label=label)


def effects_by_rank(rows: Sequence[Row]) -> Figure:
    """A feature ranking: the change that features are ranked by against rank, a line of panels per layer, one
    per subset."""
    effect = ranked_measures(rows[0])[0]
    layers, subsets = (ordered([row[name] for row in rows]) for name in ("layer", "subset"))
    figure, panels = _new(len(layers), len(subsets))
    for layer, line in zip(layers, panels, strict=True):
        for subset, axes in zip(subsets, line, strict=True):
            chosen = [row for row in rows if row["layer"] == layer and row["subset"] == subset]
            for ablation in ordered([row["ablation"] for row in chosen]):
                points = [row for row in chosen if row["ablation"] == ablation]
                points.sort(key=lambda row: cell(row, "rank"))
                x = [cell(row, "rank") for row in points]
                _with_intervals(axes, x, points, effect, str(ablation))
            axes.axhline(0.0, color="gray", lw=0.8, ls="--")
            axes.set_title(f"layer {layer}, {subset}: {title(effect)}", fontsize=9)
            axes.set_xlabel("rank of the feature", fontsize=8)
    panels[0][0].legend(fontsize=7)
    return figure


def feature_curve(rows: Sequence[Row], fidelity: Sequence[Row]) -> Figure:
    """Correct answers, side subsets and fidelity against the number of features, a line per delta.

    Small points are sets of features drawn at random.

    Args:
        rows, fidelity: of `report.feature_curve.write_curve`.
    """
    panels = [
        (subset, column)
        for column in ("share_of_finetuned", "side_change")
        for subset in ordered([row["subset"] for row in rows if column in row])
    ]
    figure, ((*axes_of, last),) = new_figure(60 + 290 * (len(panels) + 1), 300, 1, len(panels) + 1)
    deltas = ordered([row["delta"] for row in rows])
    for delta, (color, marker, line) in zip(deltas, series(len(deltas)), strict=False):
        style = {"color": color, "marker": marker, "ls": line, "lw": 2, "ms": 6}
        ours = [row for row in rows if row["delta"] == delta and row["n"]]
        for (subset, column), axes in zip(panels, axes_of, strict=True):
            of_subset = [row for row in ours if row["subset"] == subset]
            drawn = [row for row in of_subset if row["draw"] is not None]
            axes.plot([r["n"] for r in drawn], [r[column] for r in drawn], ".", color=GREY, ms=4)
            chosen = [row for row in of_subset if row["draw"] is None]
            y = [cell(row, column) for row in chosen]
            axes.errorbar([row["n"] for row in chosen], y, yerr=ends_of(chosen, column), **style)
        layers = [row for row in fidelity if row["delta"] == delta and row["norm_ratio"] > 0]
        sizes = sorted({row["n"] for row in layers} - {0})
        cosines = [[row["cos"] for row in layers if row["n"] == n] for n in sizes]
        last.plot(sizes, [sum(of_n) / len(of_n) for of_n in cosines], label=str(delta), **style)
    for (subset, column), axes in zip(panels, axes_of, strict=True):
        heading(axes, f"{subset}: {title(column)}")
        # One scale for all of a kind: a hundredth should not look like all of it.
        axes.set_ylim(*((-0.05, 1.1) if column == "share_of_finetuned" else (-1.05, 0.15)))
    heading(last, "cosine with finetuning's change")
    last.set_ylim(-0.05, 1.1)
    sizes = sorted({int(row["n"]) for row in rows if row["n"]})
    for axes in (*axes_of, last):
        axes.grid(axis="y", color=LINE)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("features in all layers", fontsize=SIZE - 1, color=MUTED)
    last.legend(frameon=False, fontsize=SIZE - 1)
    return plain(figure)


def heat_map(rows: Sequence[Row], column: str, heading: str) -> Figure:
    """A column over d_new × percentile, for the summary of a sweep; nan where there is no row."""
    import pandas

    table = pandas.DataFrame(rows).pivot(index="d_new", columns="percentile", values=column)
    grid, widths, percentiles = table.to_numpy(), table.index, table.columns
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
    axes.set_title(heading, fontsize=9)
    figure.colorbar(image)
    return figure


def control_dots(rows: Sequence[Row], measures: Sequence[str], pooled: str) -> Figure:
    """Differences to one reference for one group of layers, as `differences.csv` has them.

    A panel per measure and subset, a line per condition; whiskers for the rows whose seed is `pooled`,
    small points for the single seeds.
    """
    subsets = ordered([row["subset"] for row in rows])
    keys = [rows[0]["reference"], *ordered([row["condition"] for row in rows])]
    figure, panels = _new(len(measures), len(subsets))
    for measure, line in zip(measures, panels, strict=True):
        for axes in line[1:]:
            axes.sharex(line[0])
        for subset, axes in zip(subsets, line, strict=True):
            mine = [r for r in rows if (r["subset"], r["measure"]) == (subset, measure)]
            if not mine:
                axes.set_axis_off()
                continue
            singly = [r for r in mine if r["seed"] != pooled]
            y = [keys.index(r["condition"]) + 0.25 for r in singly]
            axes.plot([r["estimate"] for r in singly], y, ".", color="dimgray", ms=4)
            points = [r for r in mine if r["seed"] == pooled]
            y = [keys.index(r["condition"]) for r in points]
            x = [r["estimate"] for r in points]
            axes.errorbar(x, y, xerr=_whiskers(points), fmt="o", ms=3, capsize=2, lw=1)
            axes.axvline(0, color="gray", lw=0.8, ls="--")
            axes.plot([0], [0], "D", color="black", ms=4)  # the reference itself
            axes.set_yticks(range(len(keys)), keys, fontsize=7)
            axes.invert_yaxis()
            axes.tick_params(axis="x", labelsize=7)
            axes.set_title(f"{subset}: Δ {title(measure)} to {rows[0]['reference']}", fontsize=9)
    return figure


def _whiskers(rows: Sequence[Row]) -> list[list[float]]:
    """Lengths below and above the estimates."""
    # A percentile interval may miss its estimate; matplotlib refuses negative lengths.
    below = [max(0.0, row["estimate"] - row["ci_low"]) for row in rows]
    return [below, [max(0.0, row["ci_high"] - row["estimate"]) for row in rows]]


def experiment_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figures that an experiment's rows allow, by name.

    `conditions`, `dose_response` and `rates_per_layer` are of the first rate that applies anywhere; of
    several sets of dictionaries they show the first.
    """
    figures: dict[str, Figure] = {}
    names = dict.fromkeys(name for row in rows for name in row)
    sets = ordered([_dictionaries(row) for row in rows if row["layer"] not in ("", None)])
    rows = [r for r in rows if r["layer"] in ("", None) or _dictionaries(r) == sets[0]]

    def measured(name: str) -> list[Row]:
        return [row for row in rows if not math.isnan(cell(row, name))]

    of_rates = [rate for rate in rates(names) if measured(rate)]
    if measured("alpha"):
        figures["dose_response"] = dose_response(rows, [*of_rates[:1], "mean_ce"])
        return figures
    if any(row["layer"] not in ("", None) for row in measured("dce")):
        figures["dce_per_layer"] = dce_per_layer(rows)
    if of_rates:
        whole = whole_model(str(row["layer"] or "") for row in rows)
        at_once = [row for row in rows if row["layer"] in ("", None, whole)]
        keys = ordered([row["condition"] for row in at_once])
        shown = {key: str(key).replace("_", " ") for key in keys}
        figures["conditions"] = conditions(at_once, of_rates[0], shown)
        subset = next(row["subset"] for row in measured(of_rates[0]))
        if any(row["subset"] == subset and row["layer"] for row in rows):
            figures["rates_per_layer"] = layer_matrix(rows, of_rates[:1], subset, shown)
    if measured("fvu"):
        figures["reconstruction_per_layer"] = fvu_per_layer(rows)
    return figures


def _dictionaries(row: Row) -> tuple:
    return tuple(row.get(name) for name in ("d_new", "percentile", "target"))
