"""Small studies made by hand, for tests of what is said of them."""

import json
import math

from delta_transcoders.files import write_json
from delta_transcoders.metrics.intervals import wilson
from delta_transcoders.report.html import render
from delta_transcoders.report.one_feature import one_feature
from delta_transcoders.report.study_results import StudyResults
from delta_transcoders.report.tables import write_generations, write_metrics, write_table

N = 100
WHOLE = ("raw", "base_model")
DICTIONARIES = {"d_new": 8, "percentile": None, "target": "residual"}
WORDINGS = [f"Find #{i}." for i in range(N)]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\u2028\x00 <b>&amp;"


def row(condition, subset, rate, measure="polite", layer="all", **more):
    """A row of a metrics.csv in which a rate is of N examples; NaN where it does not apply."""
    applies = not math.isnan(rate)
    low, high = wilson(rate * N, N) if applies else (math.nan, math.nan)
    labels = {} if condition in WHOLE else DICTIONARIES
    return {
        "experiment": "exp2a",
        "layer": "" if condition in WHOLE else layer,
        "subset": subset,
        "condition": condition,
        "n_examples": N,
        "n_tokens": 2 * N,
        "mean_ce": 0.5,
        "mean_kl": 0.1,
        "dce": 0.25,
        "dce_ci_low": 0.125,
        "dce_ci_high": 0.375,
        f"{measure}_rate": rate,
        f"{measure}_rate_ci_low": low,
        f"{measure}_rate_ci_high": high,
        f"{measure}_n": N if applies else 0,
        **labels,
        **more,
    }


def write_study(
    study, rates, *, target="residual", dose=None, layers=(), text="Fine.", prompt="Hi"
):
    """A study of one measure.

    Args:
        rates: of each condition by subset; `base_model` stands in behaviour, raw in both tables.
        target: of its deltas, which write `d_new` 8.
        dose: rates by α, on the first subset.
        layers: single layers, at which all conditions have raw's rate.
        text, prompt: of every answer.
    """
    by_condition = {}
    for subset, conditions in rates.items():
        for condition, rate in conditions.items():
            by_condition.setdefault(condition, {})[subset] = rate
    behaviour = [
        row(condition, subset, rate)
        for condition, found in by_condition.items()
        if condition in WHOLE
        for subset, rate in found.items()
    ]
    if behaviour:
        write_metrics(study / "behaviour", behaviour)
        write_generations(study / "behaviour", _records(behaviour, text, prompt))
    exp2a = [
        row(condition, subset, rate)
        for condition, found in by_condition.items()
        if condition != "base_model"
        for subset, rate in found.items()
    ]
    raw = by_condition.get("raw", {})
    exp2a += [
        row(condition, subset, raw[subset], layer=layer)
        for layer in layers
        for condition, found in by_condition.items()
        if condition not in WHOLE
        for subset in found
    ]
    if exp2a and set(by_condition) - set(WHOLE):
        write_metrics(study / "exp2a", exp2a)
        write_generations(study / "exp2a", _records(exp2a, text, prompt))
    if dose:
        subset = next(iter(rates))
        swept = [
            row(f"alpha_{alpha:.2f}", subset, rate, alpha=alpha) for alpha, rate in dose.items()
        ]
        write_metrics(study / "exp2b", [row("raw", subset, raw[subset]), *swept])
    for layer in (0, 1):
        measured = {"fvu_base": 0.25, "fvu_full": 0.125, "l0_delta": 3.5}
        config = {"layer": layer, "d_new": 8, "target": target, "measured": measured}
        write_json(study / "delta" / f"layer_{layer}" / "config.json", config)
    return study


def page_of(study):
    """The study's page as text."""
    results = StudyResults(study)
    return render(results, one_feature(results))


def _records(rows, text, prompt):
    return [
        {"layer": r["layer"], "condition": r["condition"], "subset": r["subset"]}
        | {"prompt": f"{prompt} {i}", "target": "x", "example": i, "wording": WORDINGS[i]}
        | {"nll": 1.0, "n_tokens": 2, "kl": 0.1, "text": f"{text} {r['condition']}"}
        | {"polite": None if math.isnan(r["polite_rate"]) else i < r["polite_rate"] * N}
        for r in rows
        for i in range(4)
    ]


def write_effects(study, rates, subset, attributions=None):
    """Effects of features dropped one at a time; `rates` by feature name and half, of full by "";
    a half that is missing was not answered."""
    from delta_transcoders.tasks.wordings import half_of

    lines = []
    for name, by_half in rates.items():
        layer, _, number = name[1:].partition("F")
        condition = f"layer_{layer}_dropped_{number}" if name else "full"
        seen = {"A": 0, "B": 0}
        total = {half: sum(half_of(w) == half for w in WORDINGS) for half in "AB"}
        for i, wording in enumerate(WORDINGS):
            half = half_of(wording)
            if half not in by_half:
                continue
            seen[half] += 1
            line = {"condition": condition, "subset": subset, "wording": wording, "example": i}
            lines.append(line | {"polite": seen[half] <= round(by_half[half] * total[half])})
    path = study / "effects" / "generations.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, said in (("ranking.json", {"delta": "d"}), ("done.json", {})):
        (path.parent / name).write_text(json.dumps(said))
    felt = len({tuple(found.values()) for found in rates.values()}) > 1
    ends = {"": -0.5, "_ci_low": -0.75, "_ci_high": -0.25, "_distinct": True}
    rows = [
        {"layer": name[1:].partition("F")[0], "feature": name.partition("F")[2], "rank": i + 1}
        | {"ablation": "dropped", "subset": subset, "n_examples": N}
        | {f"dce{end}": value for end, value in ends.items()}
        | {f"d_polite_rate{end}": 0.0 for end in ("", "_ci_low", "_ci_high")}
        | {"d_polite_rate_distinct": felt}
        | {"mean_activation": 1.0, "density": 0.5, "ig_target": (attributions or {}).get(name, 0.1)}
        for i, name in enumerate(filter(None, rates))
    ]
    write_table(study / "effects" / "ranking.csv", list(rows[0]), rows)
