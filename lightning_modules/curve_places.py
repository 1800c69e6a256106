"""Where TensorBoard draws what interventions do: against the layer that is replaced, or against α."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lightning_modules.interventions import Column

BY_LAYER, BY_ALPHA, BY_N_FEATURES = "by_layer", "by_100_alpha", "by_n_features"
HOW_TO_READ = {
    BY_LAYER: "**SUBSET_by_layer**: the step is the number of the layer that is replaced. Of several layers "
    "at once the value is drawn at each of them, in a run of their own (`all`, `0+1`): a line across those "
    "layers. `raw` replaces none and is the level to compare with. CUSTOM SCALARS has all conditions in one "
    "chart.",
    BY_ALPHA: "**LAYERS_by_100_alpha**: the step is 100·α of base + α·delta: 0 is no delta, 100 all of it, "
    "and below 0 it is subtracted. A run is a subset.",
    BY_N_FEATURES: "**SUBSET_by_n_features**: the step is the number of delta features that are kept.",
    "": "These are measurements, not a noisy curve: set *Smoothing* to 0, and *Ignore outliers* off. "
    "Intervals are in `results`.",
}
"""By what a group's name holds."""


class Place(NamedTuple):
    """Where a row of the table stands among curves; a value may be drawn at several steps."""

    run: str
    """Below the logger's own; the logger's own where empty."""
    group: str
    """Of charts: one for each measure."""
    condition: str
    """Where charts of the group have several."""
    steps: tuple[int, ...]

    def tag(self, measure: str) -> str:
        return "/".join(filter(None, (self.group, self.condition, measure)))


def places_of(experiment: str, columns: Sequence[Column], subset: str) -> list[list[Place]]:
    """The places of each column's row about a subset.

    One layer stands at its number; several layers at once have a run of their own, and stand at the number
    of each; what replaces nothing stands at the numbers of all others. A swept α stands at 100·α in a run of
    the subset. Several sets of dictionaries have a run each.
    """
    several = len({c.dictionaries.label for c in columns if c.dictionaries}) > 1
    by_layer = f"{experiment}_{subset}_{BY_LAYER}"
    layers = {
        layer
        for column in columns
        for layer in column.intervention.layers
        if column.intervention.alpha is None
    }
    places = []
    for column in columns:
        condition, alpha = column.intervention.condition, column.intervention.alpha
        name = [column.dictionaries.label] if several and column.dictionaries else []
        if alpha is not None:
            kind = re.sub(r"_-?\d+(\.\d+)?$", "", condition)
            run = "_".join([subset, *([] if kind == "alpha" else [kind]), *name])
            group = f"{experiment}_{_layers(column.layer)}_{BY_ALPHA}"
            places.append([Place(run, group, "", (round(100 * alpha),))])
        elif layers:
            if len(column.intervention.layers) > 1:
                name.append(column.layer)
            steps = column.intervention.layers or tuple(sorted(layers))
            places.append([Place("_".join(name), by_layer, condition, steps)])
        else:
            places.append([])
    return places


def _layers(label: str) -> str:
    """
    >>> _layers("all"), _layers("3"), _layers("0+1")
    ('all_layers', 'layer_3', 'layers_0+1')
    """
    return "all_layers" if label == "all" else f"layer{'s' * ('+' in label)}_{label}"


def layout_of(places: Iterable[tuple[Place, str]]) -> dict[str, dict]:
    """Custom scalars that bring a group's conditions together, a chart for each measure.

    Args:
        places: each with the name of a measure drawn there.

    >>> layout_of([(Place("", "a_by_layer", "full", (0,)), "dce"), (Place("tool", "b", "", (0,)), "dce")])
    {'a_by_layer': {'dce': ['Multiline', ['a_by_layer/.+/dce$']]}}
    """
    layout: dict[str, dict] = {}
    for place, measure in places:
        if place.condition:
            tags = [f"{re.escape(place.group)}/.+/{re.escape(measure)}$"]
            layout.setdefault(place.group, {})[measure] = ["Multiline", tags]
    return layout
