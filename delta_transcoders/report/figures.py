"""Figures of the experiments, drawn from result rows (as `metrics.csv` has them, numbers as numbers)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from delta_transcoders.report.columns import ranked_measures, rates, title

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


def _off_where_empty(axes: Axes, rows: Sequence[Row], column: str) -> None:
    """No frame where a column does not apply to a subset."""
    if all(math.isnan(_number(row, column)) for row in rows):
        axes.set_axis_off()


def per_layer(rows: Sequence[Row], columns: Sequence[str]) -> Figure:
    """Columns against the layers that were replaced, a panel per column and subset, a line per condition.

    A horizontal line is raw.
    """
    subsets = _ordered([row["subset"] for row in rows])
    figure, panels = _new(len(columns), len(subsets))
    for column, line in zip(columns, panels, strict=True):
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
            axes.set_title(f"{subset}: {title(column)}", fontsize=9)
            axes.set_xlabel("layers replaced", fontsize=8)
            _off_where_empty(axes, chosen, column)
    panels[0][0].legend(fontsize=7)
    return figure


def dose_response(rows: Sequence[Row], columns: Sequence[str]) -> Figure:
    """Columns against α, a panel per column and subset, a line per group of layers."""
    swept = [row for row in rows if row.get("alpha") not in (None, "")]
    subsets = _ordered([row["subset"] for row in swept])
    figure, panels = _new(len(columns), len(subsets))
    for column, line in zip(columns, panels, strict=True):
        for subset, axes in zip(subsets, line, strict=True):
            chosen = [row for row in swept if row["subset"] == subset]
            for layer in _ordered([row["layer"] for row in chosen]):
                points = sorted(
                    (row for row in chosen if row["layer"] == layer),
                    key=lambda row: float(row["alpha"]),
                )
                alphas = [float(row["alpha"]) for row in points]
                _with_intervals(axes, alphas, points, column, f"layers {layer}")
            axes.set_title(f"{subset}: {title(column)}", fontsize=9)
            axes.set_xlabel("α", fontsize=8)
            _off_where_empty(axes, chosen, column)
    panels[0][0].legend(fontsize=7)
    return figure


def effects_by_rank(rows: Sequence[Row]) -> Figure:
    """A feature ranking: the change that features are ranked by against rank, a line of panels per layer, one
    per subset."""
    effect = ranked_measures(rows[0])[0]
    layers, subsets = (_ordered([row[name] for row in rows]) for name in ("layer", "subset"))
    figure, panels = _new(len(layers), len(subsets))
    for layer, line in zip(layers, panels, strict=True):
        for subset, axes in zip(subsets, line, strict=True):
            chosen = [row for row in rows if row["layer"] == layer and row["subset"] == subset]
            for ablation in _ordered([row["ablation"] for row in chosen]):
                points = [row for row in chosen if row["ablation"] == ablation]
                points.sort(key=lambda row: _number(row, "rank"))
                x = [_number(row, "rank") for row in points]
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
        for subset in _ordered([row["subset"] for row in rows if column in row])
    ]
    figure, ((*axes_of, last),) = _new(1, len(panels) + 1)
    for delta in _ordered([row["delta"] for row in rows]):
        ours = [row for row in rows if row["delta"] == delta and row["n"]]
        for (subset, column), axes in zip(panels, axes_of, strict=True):
            of_subset = [row for row in ours if row["subset"] == subset]
            drawn = [row for row in of_subset if row["draw"] is not None]
            axes.plot([r["n"] for r in drawn], [r[column] for r in drawn], ".", color="gray", ms=3)
            chosen = [row for row in of_subset if row["draw"] is None]
            _with_intervals(axes, [row["n"] for row in chosen], chosen, column, str(delta))
            axes.set_title(f"{subset}: {title(column)}", fontsize=9)
        layers = [row for row in fidelity if row["delta"] == delta and row["norm_ratio"] > 0]
        sizes = sorted({row["n"] for row in layers} - {0})
        cosines = [[row["cos"] for row in layers if row["n"] == n] for n in sizes]
        means = [sum(of_n) / len(of_n) for of_n in cosines]
        last.plot(sizes, means, marker="o", ms=3, lw=1, label=str(delta))
    last.set_title("cosine with finetuning's change, mean over layers", fontsize=9)
    for axes in (*axes_of, last):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("features in all layers", fontsize=8)
    last.legend(fontsize=7)
    return figure


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


def split_per_layer(rows: Sequence[Row], measures: Sequence[str], pooled: str) -> Figure:
    """Finetuning's part and the dictionary's own error of the gap to raw, as `split.csv` has them.

    A panel per measure and subset, a pair of bars per group of layers, a diamond for the whole gap;
    whiskers for the rows whose seed is `pooled`, small points for the single seeds.
    """
    parts = {"finetuning": (-0.2, "tab:blue"), "dictionary_error": (0.2, "tab:orange")}
    subsets = _ordered([row["subset"] for row in rows])
    layers = _ordered([row["layer"] for row in rows])
    figure, panels = _new(len(measures), len(subsets))
    for measure, line in zip(measures, panels, strict=True):
        for subset, axes in zip(subsets, line, strict=True):
            chosen = [r for r in rows if (r["subset"], r["measure"]) == (subset, measure)]
            if not chosen:  # the measure does not apply to the subset
                axes.set_axis_off()
                continue
            for part, (shift, color) in (parts | {"total": (0.0, "black")}).items():
                points = [r for r in chosen if (r["part"], r["seed"]) == (part, pooled)]
                x = [layers.index(r["layer"]) + shift for r in points]
                y = [r["estimate"] for r in points]
                if part in parts:
                    axes.bar(x, y, width=0.36, color=color, alpha=0.6, label=part.replace("_", " "))
                marker = {"fmt": "none"} if part in parts else {"fmt": "D", "ms": 3, "label": part}
                whiskers = _whiskers(points)
                axes.errorbar(x, y, yerr=whiskers, ecolor="black", color=color, capsize=2, **marker)
                singly = [r for r in chosen if r["part"] == part and r["seed"] != pooled]
                x = [layers.index(r["layer"]) + shift + 0.06 for r in singly]
                axes.plot(x, [r["estimate"] for r in singly], ".", color="dimgray", ms=4)
            axes.axhline(0, color="gray", lw=0.8)
            axes.set_xticks(range(len(layers)), layers, fontsize=8)
            axes.set_title(f"{subset}: Δ {title(measure)}, no_delta − raw", fontsize=9)
            axes.set_xlabel("layers replaced", fontsize=8)
    panels[0][0].legend(fontsize=7)
    return figure


def control_dots(rows: Sequence[Row], measures: Sequence[str], pooled: str) -> Figure:
    """Differences to one reference for one group of layers, as `differences.csv` has them.

    A panel per measure and subset, a line per condition; whiskers for the rows whose seed is `pooled`,
    small points for the single seeds.
    """
    subsets = _ordered([row["subset"] for row in rows])
    conditions = _ordered([row["condition"] for row in rows])
    figure, panels = _new(len(measures), len(subsets))
    for measure, line in zip(measures, panels, strict=True):
        for subset, axes in zip(subsets, line, strict=True):
            mine = [r for r in rows if (r["subset"], r["measure"]) == (subset, measure)]
            if not mine:
                axes.set_axis_off()
                continue
            singly = [r for r in mine if r["seed"] != pooled]
            y = [conditions.index(r["condition"]) + 0.25 for r in singly]
            axes.plot([r["estimate"] for r in singly], y, ".", color="dimgray", ms=4)
            points = [r for r in mine if r["seed"] == pooled]
            y = [conditions.index(r["condition"]) for r in points]
            x = [r["estimate"] for r in points]
            axes.errorbar(x, y, xerr=_whiskers(points), fmt="o", ms=3, capsize=2, lw=1)
            axes.axvline(0, color="gray", lw=0.8, ls="--")
            axes.set_yticks(range(len(conditions)), conditions, fontsize=7)
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
    """The figures that an experiment's rows allow, by name."""
    figures: dict[str, Figure] = {}
    names = dict.fromkeys(name for row in rows for name in row)

    def measured(name: str) -> list[Row]:
        return [row for row in rows if not math.isnan(_number(row, name))]

    of_rates = [rate for rate in rates(names) if measured(rate)]
    if measured("alpha"):
        figures["dose_response"] = dose_response(rows, ["mean_ce", *of_rates])
    else:
        figures["dce_per_layer"] = per_layer(rows, ["dce"])
        if of_rates:
            figures["rates_per_layer"] = per_layer(rows, of_rates)
        activations = ["mean_abs_base_acts", "mean_abs_delta_acts"]
        figures["activations_per_layer"] = per_layer(rows, activations)
    if measured("fvu"):
        figures["reconstruction_per_layer"] = per_layer(rows, ["fvu", "mean_cos", "mean_l2"])
    return figures
