"""The parts of a study's page that hold figures, each with what it found as its heading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from delta_transcoders.report.charts import (
    conditions,
    dose_response,
    split_parts,
)
from delta_transcoders.report.figures import feature_curve
from delta_transcoders.report.formatting import number
from delta_transcoders.report.layer_charts import fvu_per_layer, layer_matrix
from delta_transcoders.report.sentences import (
    attention,
    condition_title,
    control,
    curve,
    dose,
    elsewhere,
    layers,
    of,
    percent,
    reconstruction,
    side,
    split,
    spoken,
)
from delta_transcoders.report.study_results import (
    BASE_MLP,
    BASE_MODEL,
    FULL,
    NO_DELTA,
    RAW,
    Row,
    StudyResults,
    short_layers,
)
from delta_transcoders.report.svg import inline_svg
from delta_transcoders.report.verdict import answer

FIRST_CONDITIONS = (BASE_MODEL, RAW, NO_DELTA, FULL, BASE_MLP, "dictionary_error")
N_CONDITIONS = 12
POOLED = "pooled"  # `report.comparisons` calls all seeds together so


HEADINGS = {
    "Yes": "with the delta the behaviour is back, wherever both were measured",
    "Partly": "with the delta part of the behaviour is back",
    "No": "the delta does not bring the behaviour back",
    "Not known": "what the models do",
}
"""Of the first figure, by the verdict."""


@dataclass(frozen=True)
class Section:
    id: str
    short: str
    heading: str
    texts: Sequence[str]
    figures: Sequence[Markup]
    caption: str


def sections(results: StudyResults) -> list[Section]:
    """Those for which the study has something."""
    makers = (_conditions, _dose, _layers, _split, _curve, _reconstruction)
    return [section for section in (make(results) for make in makers) if section]


def tiles(results: StudyResults) -> list[tuple[str, str]]:
    """Up to four numbers, each with what it is."""
    found = []
    without, full = (results.level(name, results.subset) for name in (NO_DELTA, FULL))
    if without and full:
        ends = f"[{percent(full.low)}, {percent(full.high)}]"
        text = f"{of(results)}, without the delta → with it {ends}"
        found.append((f"{percent(without.value)} → {percent(full.value)} %", text))
    for measure in results.rates:
        for subset in results.subsets:
            raw, level = (results.level(name, subset, measure) for name in (RAW, FULL))
            if raw and level and not results.level(RAW, results.subset, measure):
                ends = f"[{percent(level.low)}, {percent(level.high)}]"
                text = f"{of(results, subset, measure)}, with the delta {ends}; finetuned model"
                found.append((f"{percent(level.value)} %", f"{text} {percent(raw.value)} %"))
    found = found[:2]
    measured = [config.get("measured", {}) for config in results.deltas]
    pairs = [(m["fvu_base"], m["fvu_full"]) for m in measured if m.get("fvu_full")]
    if pairs:
        ratios = [before / after for before, after in pairs]
        before, after = (number(max(values)) for values in zip(*pairs, strict=True))
        text = (
            f"less unexplained variance with the delta, by layer (FVU at most {before} → {after})"
        )
        found.append((f"{_range(ratios)} ×", text))
    if results.has_dictionaries and (kept := results.level(BASE_MLP, results.subset)):
        ends = f"[{percent(kept.low)}, {percent(kept.high)}]"
        text = f"{of(results)} with the base model's own MLPs put back {ends}: what is left is not in them"
        found.append((f"{percent(kept.value)} %", text))
    return found


def _range(values: Sequence[float]) -> str:
    """
    >>> _range([1.0, 2.5]), _range([0.25])
    ('1.00–2.50', '0.250')
    """
    return "–".join(dict.fromkeys(number(end) for end in (min(values), max(values))))


def shown_conditions(results: StudyResults) -> dict[str, str]:
    """Names of the conditions of the first figure, from the top."""
    rows = [r for r in [*results.exp2a, *results.controls] if r["layer"] in ("", results.layer)]
    there = dict.fromkeys(r["condition"] for r in [*results.behaviour, *rows])
    keys = [key for key in FIRST_CONDITIONS if key in there]
    keys += [key for key in there if key not in keys]
    return {key: condition_title(results, key) for key in keys[:N_CONDITIONS]}


def _conditions(results: StudyResults) -> Section | None:
    names = shown_conditions(results)
    if results.measure is None or not names:
        return None
    rows: list[Row] = []
    for key in names:
        layer = None if key in (RAW, BASE_MODEL) else results.layer
        for source in (results.exp2a, results.controls, results.behaviour):
            rows += results.rows_of(source, key, layer)
    in_order = sorted(rows, key=lambda row: results.subsets.index(row["subset"]))
    in_order = list({(r["condition"], r["subset"]): r for r in reversed(in_order)}.values())[::-1]
    chart = conditions(in_order, results.measure, names, below=results.task.get("subsets"))
    values = "; ".join(
        f"{name}: {percent(level.value)} %"
        for key, name in names.items()
        if (level := results.level(key, results.subset))
    )
    told = [sentence for sentence in (attention(results), control(results)) if sentence]
    told += side(results)[:1]
    place = f"layers {short_layers(results.layer)}" if results.layer != "all" else "all MLPs"
    return Section(
        "conditions",
        "What it does",
        HEADINGS[answer(results).verdict],
        [f"{sentence.heading}: {sentence.text}" for sentence in told],
        [
            inline_svg(
                chart, "conditions", f"{spoken(results.measure)} by condition and subset", values
            )
        ],
        f"Share of prompts, with 95 % intervals over wordings. Above the line whole models, below it what "
        f"stands in place of {place} of the finetuned model. From behaviour/, exp2a/, controls/metrics.csv.",
    )


def _dose(results: StudyResults) -> Section | None:
    sentence = dose(results)
    if not sentence:
        return None
    rows = [
        row
        for row in results.exp2b
        if row["layer"] == results.swept_layer
        and all(row.get(k, "") == v for k, v in results.dictionaries.items())
    ]
    columns = [results.measure, "mean_ce"]
    chart = dose_response(rows, columns)
    name = f"{spoken(results.measure)} and cross-entropy by strength of the delta"
    return Section(
        "dose",
        "How much is needed",
        sentence.heading,
        [sentence.text],
        [inline_svg(chart, "dose", name, sentence.text)],
        "α multiplies the delta at all replaced layers. From exp2b/metrics.csv.",
    )


def _layers(results: StudyResults) -> Section | None:
    rows = [
        row | {"layer": short_layers(row["layer"])}
        for row in results.exp2a
        if row["layer"] and all(row.get(k, "") == v for k, v in results.dictionaries.items())
    ]
    if results.measure is None or len({row["layer"] for row in rows}) < 2:
        return None
    asked = [r for r in results.rates if results.level(RAW, results.subset, r)]
    columns = list(dict.fromkeys([results.measure, asked[-1]] if asked else [results.measure]))
    names = {row["condition"]: condition_title(results, row["condition"]) for row in rows}
    chart = layer_matrix(rows, columns, results.subset, names)
    sentence = layers(results)
    return Section(
        "layers",
        "Where it sits",
        sentence.heading if sentence else "by layers replaced",
        [sentence.text] if sentence else [],
        [inline_svg(chart, "layers", f"{of(results)} by condition and layers replaced")],
        "Percent of prompts; a darker cell is nearer to 100 %. From exp2a/metrics.csv.",
    )


def _split(results: StudyResults) -> Section | None:
    sentence = split(results)
    rows = [
        row
        for row in results.split
        if row["layer"] == results.layer
        and all(row[name] == value for name, value in results.dictionaries.items())
    ]
    if not sentence:
        return None
    rows.sort(key=lambda row: results.subsets.index(row["subset"]))
    chart = split_parts(rows, "mean_ce", POOLED)
    name = "Cross-entropy lost without the delta, and its two parts"
    return Section(
        "split",
        "What is lost without it",
        sentence.heading,
        [sentence.text],
        [inline_svg(chart, "split", name, sentence.text)],
        "Nats a target token, with 95 % intervals. From exp2a/comparisons/split.csv.",
    )


def _curve(results: StudyResults) -> Section | None:
    sentence = curve(results)
    figures = []
    for path in sorted(results.study.glob("feature_curve*/curve.csv")):
        folder = path.parent.name
        # Deltas of several stages may have one name, their folders have not.
        rows, fidelity = (
            [_numbers(row) | {"delta": folder} for row in results.table(f"{folder}/{name}.csv")]
            for name in ("curve", "fidelity")
        )
        if rows and fidelity:
            chart = feature_curve(rows, fidelity)
            name = f"Share of right answers and fidelity by number of features, {folder}"
            figures.append(inline_svg(chart, folder.replace("_", "-"), name))
    told = [f"{found.heading}: {found.text}" for found in elsewhere(results)]
    if not (figures or told):
        return None
    return Section(
        "curve",
        "How few are enough",
        sentence.heading if sentence else "the delta elsewhere",
        [*([sentence.text] if sentence else []), *told],
        figures,
        "Features chosen on half A of the wordings, scored on half B; grey: random sets. From "
        "feature_curve/curve.csv and fidelity.csv.",
    )


def _numbers(row: Row) -> dict[str, object]:
    """A row of a curve's table with numbers as numbers, and None for empty cells."""
    found: dict[str, object] = {}
    for name, text in row.items():
        if text == "" or name in ("delta", "student", "subset"):
            found |= {name: text or None} if text or name == "draw" else {}
        else:
            try:
                found[name] = float(text)
            except ValueError:
                found[name] = text
    return found


def _reconstruction(results: StudyResults) -> Section | None:
    sentence = reconstruction(results)
    if not sentence:
        return None
    rows = [
        {
            "layer": str(config["layer"]),
            "subset": "held-out tokens",
            "condition": name,
            "fvu": value,
        }
        for config in results.deltas
        for name, value in (
            ("no_delta", config.get("measured", {}).get("fvu_base")),
            ("full", config.get("measured", {}).get("fvu_full")),
        )
        if value is not None
    ]
    rows += [
        row
        for row in results.exp1
        if row["layer"].isdigit()
        and all(row.get(k, "") == v for k, v in results.dictionaries.items())
    ]
    chart = fvu_per_layer(rows)
    return Section(
        "reconstruction",
        "What it explains",
        sentence.heading,
        [sentence.text],
        [
            inline_svg(
                chart, "reconstruction", "Fraction of variance unexplained by layer", sentence.text
            )
        ],
        "FVU of the finetuned model's MLP outputs. From delta/layer_*/config.json (report/dictionaries.csv) "
        "and exp1/metrics.csv.",
    )
