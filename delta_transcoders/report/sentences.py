"""What a study found, in sentences by rule: a short heading, and a text whose numbers are in its tables."""

from __future__ import annotations

from typing import NamedTuple

from delta_transcoders.report.columns import verdict
from delta_transcoders.report.feature_curve import MORE_THAN
from delta_transcoders.report.formatting import number
from delta_transcoders.report.study_results import (
    BASE_MLP,
    BASE_MODEL,
    FULL,
    NO_DELTA,
    RAW,
    Level,
    StudyResults,
    agree,
    number_of,
    short_layers,
)

MEANINGLESS = ("random", "permuted", "shuffled")
"""Beginnings of the names of conditions whose delta means nothing."""


class Sentence(NamedTuple):
    heading: str
    text: str


def percent(value: float) -> str:
    """
    >>> [percent(value) for value in (0.965, 1.0, 0.00333, 0.0)]
    ['96.5', '100', '0.3', '0']
    """
    return f"{100 * value:.1f}".removesuffix(".0")


def percents(levels: list[Level | None]) -> str:
    return ", ".join("–" if level is None else percent(level.value) for level in levels)


def spoken(measure: str) -> str:
    """A rate's column as a reader calls it.

    >>> spoken("exact_match_rate")
    'exact match'
    """
    return verdict(measure).replace("_", " ")


def of(results: StudyResults, subset: str | None = None, measure: str | None = None) -> str:
    return f"{spoken(measure or results.measure)} on the {subset or results.subset} prompts"


def share(
    results: StudyResults, level: Level, subset: str | None = None, measure: str | None = None
) -> str:
    """A rate in words, as "exact copy on 98.3 % of the copy prompts"."""
    measure, subset = measure or results.measure, subset or results.subset
    return f"{spoken(measure)} on {percent(level.value)} % of the {subset} prompts"


def replaced(results: StudyResults, layer: str | None = None) -> str:
    """What stands in place of what without the delta, after "with"."""
    layer = short_layers(layer or results.layer)
    if results.has_dictionaries:
        if layer == "all":
            return "every MLP replaced by its base dictionary"
        what = "MLP of layer" if layer.isdigit() else "MLPs of layers"
        return f"the {what} {layer} replaced by dictionaries"
    where = "" if layer == "all" else f" in layer{'' if layer.isdigit() else 's'} {layer}"
    return f"the base model's own MLPs put back{where}"


def condition_title(results: StudyResults, condition: str) -> str:
    """A condition's name for readers; its own where nothing is known of it."""
    below = "base dictionary" if results.has_dictionaries else "base MLPs"
    known = {
        BASE_MODEL: "base model",
        RAW: "finetuned model",
        NO_DELTA: f"{below} alone",
        FULL: f"{below} + delta",
        BASE_MLP: "base MLPs alone",
        "dictionary_error": "dictionary error alone",
    }
    return known.get(condition, condition.replace("_", " "))


def dose(results: StudyResults) -> Sentence | None:
    """Experiment 2B: whether half of the delta does as much as all of it."""
    asked = [alpha for alpha in results.alphas if 0 <= float(alpha) <= 1]
    levels = [results.dose(alpha, results.subset) for alpha in asked]
    if not any(levels):
        return None
    at = {float(alpha): level for alpha, level in zip(asked, levels, strict=True) if level}
    heading = "how much is needed"
    if {0.0, 0.5, 1.0} <= at.keys():
        none, half, whole = (at[alpha] for alpha in (0.0, 0.5, 1.0))
        middle = (none.value + whole.value) / 2
        if agree(none, whole):
            heading = "the delta's strength changes little"
        elif agree(half, whole):
            heading = "half a delta is enough"
        elif (half.value > middle) == (whole.value > none.value):
            heading = "half a delta does most of it"
        else:
            heading = "half a delta is not enough"
    alphas = ", ".join(f"{float(alpha):g}" for alpha in asked)
    return Sentence(heading, f"{spoken(results.measure)} at α {alphas}: {percents(levels)} %")


def layers(results: StudyResults) -> Sentence | None:
    """Experiment 2A at single layers, beside all that were replaced at once."""
    singles = results.single_layers
    levels = [results.level(NO_DELTA, results.subset, layer=layer) for layer in singles]
    raw, whole = results.level(RAW, results.subset), results.level(NO_DELTA, results.subset)
    if len(singles) < 2 or not (raw and whole and all(levels)):
        return None
    felt = [k for k in singles if not results.agree(NO_DELTA, RAW, results.subset, layer=k)]
    lost = [abs(level.value - raw.value) for level in levels]
    if results.layer in singles:
        heading = "layer by layer"
    elif not felt and not results.agree(NO_DELTA, RAW, results.subset):
        heading = "no layer holds it alone"
    elif not felt:
        heading = "no layer is missed"
    elif max(lost) < abs(whole.value - raw.value) / 2:
        heading = "no layer holds most of it"
    else:
        heading = f"layer {singles[lost.index(max(lost))]} holds most of it"
    without = "base dictionary" if results.has_dictionaries else "base MLP"
    text = f"{without} at one layer, {', '.join(singles)}: {percents(levels)} %"
    if results.layer not in singles:
        text += f"; at {short_layers(results.layer)}: {percent(whole.value)} %"
    return Sentence(heading, text)


def attention(results: StudyResults) -> Sentence | None:
    """How much is left with the base model's own MLPs: what is not in the MLPs."""
    condition = BASE_MLP if results.has_dictionaries else NO_DELTA
    kept, base, raw = (results.level(name, results.subset) for name in (condition, BASE_MODEL, RAW))
    if results.layer != "all" or not (kept and base and raw) or agree(base, raw):
        return None
    text = f"the base model's own MLPs put back leave {percent(kept.value)} %"
    if results.agree(condition, RAW, results.subset):
        return Sentence("it is not in the MLPs", f"{text}, as in the finetuned model")
    if agree(kept, base):
        return Sentence("it is in the MLPs", f"{text}, as in the base model")
    return Sentence("not all of it is in the MLPs", text)


def split(results: StudyResults) -> Sentence | None:
    """Of the cross-entropy that no_delta costs, finetuning's part and the dictionary's own error."""
    parts = {
        row["part"]: row
        for row in results.split
        if (row["layer"], row["subset"], row["measure"], row["seed"])
        == (results.layer, results.subset, "mean_ce", "pooled")
        and all(row[name] == value for name, value in results.dictionaries.items())
    }
    names = ("total", "finetuning", "dictionary_error")
    if not parts.keys() >= set(names):
        return None
    total, tuned, error = (number_of(parts[name], "estimate") for name in names)
    if total != total:
        return None
    if number_of(parts["total"], "ci_low") <= 0 <= number_of(parts["total"], "ci_high"):
        heading = "no loss without the delta"
    elif tuned >= 0.75 * total:
        heading = "the loss is finetuning's"
    elif error >= 0.75 * total:
        heading = "the loss is dictionary error"
    else:
        heading = "the loss has both causes"
    numbers = [number(value).replace("-", "−") for value in (total, tuned, error)]
    text = "of {} nats/token lost: {} finetuning, {} dictionary error"
    return Sentence(heading, text.format(*numbers))


def side(results: StudyResults) -> list[Sentence]:
    """Measures that apply to other subsets alone, which the delta should leave as they are; first those that
    it does not."""
    found = []
    for measure in results.rates:
        if results.level(RAW, results.subset, measure):
            continue
        for subset in results.subsets:
            raw, full = (results.level(name, subset, measure) for name in (RAW, FULL))
            if raw and full:
                is_kept = results.agree(FULL, RAW, subset, measure)
                heading = "elsewhere as finetuned" if is_kept else "elsewhere not as finetuned"
                text = share(results, full, subset, measure)
                text += f" (finetuned model {percent(raw.value)} %"
                missed = is_kept and results.missed(FULL, RAW, subset, measure)
                text += f"; {missed})" if missed else ")"
                found.append((is_kept, Sentence(heading, text)))
    return [sentence for _, sentence in sorted(found, key=lambda pair: pair[0])]


def curve(results: StudyResults) -> Sentence | None:
    """How few features suffice, for the delta nearest to finetuning's change of those for which any do.

    Few are at most a quarter of them.
    """
    rows = {
        path.parent.name: row
        for path in sorted(results.study.glob("feature_curve*/n90.csv"))
        for row in results.table(f"{path.parent.name}/n90.csv")
    }
    if not rows:
        return None
    enough = {name: row for name, row in rows.items() if not row["n90"].startswith(MORE_THAN)}
    if not enough:
        name, row = next(iter(rows.items()))
        most = row["n90"].removeprefix(MORE_THAN)
        return Sentence("no few features are enough", f"more than {most} would be needed ({name})")
    name = max(enough, key=lambda name: number_of(enough[name], "cos"))
    row = enough[name]
    is_few = number_of(row, "n90") <= number_of(row, "n_features") / 4
    text = f"{row['n90']} of {row['n_features']} for 90 % of right answers, cosine to finetuning's change "
    text += f"there {number(row['cos'])} ({name}"
    text += f", of {len(rows)} deltas the one with the largest)" if len(rows) > 1 else ")"
    return Sentence("few features are enough" if is_few else "it takes many features", text)


def elsewhere(results: StudyResults) -> list[Sentence]:
    """The delta put into the base model, and taken out of the finetuned one."""
    found = []
    kinds = (
        ("transplant", "transplant", "put into the base model"),
        ("removal", "removed", "taken out of the finetuned model"),
    )
    for pattern, condition, heading in kinds:
        for path in sorted(results.study.glob(f"{pattern}*/metrics.csv")):
            rows = results.table(f"{path.parent.name}/metrics.csv")
            mine = [
                r for r in rows if r["condition"] == condition and results.subset == r["subset"]
            ]
            if level := results.level_of(mine):
                text = f"{share(results, level)} ({path.parent.name})"
                found.append(Sentence(f"{heading}", text))
    return found


def reconstruction(results: StudyResults) -> Sentence | None:
    """What the deltas leave unexplained on held-out tokens, over the layers."""
    measured = [config.get("measured", {}) for config in results.deltas]
    pairs = [
        (m["fvu_base"], m["fvu_full"]) for m in measured if {"fvu_base", "fvu_full"} <= m.keys()
    ]
    if not pairs:
        return None
    before, after = zip(*pairs, strict=True)
    better = all(b > a for b, a in pairs)
    heading = "less is left unexplained" if better else "not every layer is explained better"
    text = f"FVU {_range(before)} without the delta, {_range(after)} with it, on held-out tokens"
    return Sentence(heading, text)


def _range(values: tuple[float, ...]) -> str:
    ends = [number(end) for end in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]}–{ends[1]}"


def control(results: StudyResults) -> Sentence | None:
    """A delta of no meaning in the place of the trained one: of several that which comes nearest to it."""
    none, full = (results.level(name, results.subset) for name in (NO_DELTA, FULL))
    names = dict.fromkeys(row["condition"] for row in [*results.exp2a, *results.controls])
    levels = {
        name: level
        for name in names
        if name.startswith(MEANINGLESS) and (level := results.level(name, results.subset))
    }
    if not (levels and none and full):
        return None

    def distance(name: str) -> float:
        return abs(levels[name].value - full.value)

    nearest = min(levels, key=distance)
    does = distance(nearest) < abs(none.value - full.value)
    does = does and not results.agree(nearest, NO_DELTA, results.subset)
    heading = "a control does it too" if does else "a control does not do it"
    if len(levels) > 1 and not does:
        heading = "no control does it"
    what = condition_title(results, nearest)
    what += f", the nearest of {len(levels)}" if len(levels) > 1 else ""
    text = f"{what}: {percent(levels[nearest].value)} %, without any delta {percent(none.value)} %"
    return Sentence(heading, text)
