"""Compare conditions, paired over examples: `python -m delta_transcoders.report.comparisons FOLDER ...`.

Each folder is one seed of the same experiment, with `metrics.csv` and `generations.jsonl`. Writes to the
output folder: `differences.csv` (every condition against raw, no_delta and full), `split.csv` (the gap
from raw to no_delta, split into finetuning's change of the MLP and the dictionary's own error),
`split.png` and `controls.png`, both of the whole model; prints the rows of it too. In both tables `seed` is
`pooled` for all folders together; `interval` says whether the ends are Student's over seeds (`t`), a
bootstrap's over wordings and their examples, or Newcombe's for paired rates, which is used where all paired
differences are equal.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.files import record, write_text
from delta_transcoders.report.charts import split_parts
from delta_transcoders.report.columns import rates, whole_model
from delta_transcoders.report.figures import control_dots
from delta_transcoders.report.formatting import interval, number
from delta_transcoders.report.paired import Sample, pool, sample_contrasts, share
from delta_transcoders.report.records import Column, Experiment, Group, read_experiments
from delta_transcoders.report.tables import format_table, write_table

REFERENCES = ("raw", "no_delta", "full")
CORNERS = ("raw", "dictionary_error", "base_mlp", "no_delta")
"""Of the 2 × 2: finetuned or base MLP, each without and with dictionary error."""
POOLED = "pooled"
NO_DIFFERENCE = "not distinguishable from 0"
DISAGREEMENT = "seeds differ in sign"
UNDEFINED = "undefined: the total is not distinguishable from 0"
ESTIMATE = (
    "seed",
    "n_examples",
    "estimate",
    "ci_low",
    "ci_high",
    "interval",
    "seed_min",
    "seed_max",
    "verdict",
)
DIFFERENCE_COLUMNS = (
    *Group._fields,
    "subset",
    "condition",
    "alpha",
    "reference",
    "measure",
    *ESTIMATE,
)
SPLIT_COLUMNS = (*Group._fields, "subset", "measure", "part", *ESTIMATE)


def difference_rows(experiments: Sequence[Experiment]) -> list[dict]:
    """Rows of `DIFFERENCE_COLUMNS`: a condition minus a reference with the same layers and dictionaries.

    Raw is one of the conditions of every group of layers; references are those of `REFERENCES` that the
    group has.
    """
    rows = []
    for group, columns in _groups(experiments[0]).items():
        pairs = [
            (ours, column)
            for column in columns
            for ours in columns
            if column.condition in REFERENCES and ours != column
        ]
        for subset in experiments[0].examples:
            contrasts = [((1.0, ours, reference),) for ours, reference in pairs]
            sampled = sample_contrasts(experiments, subset, contrasts)
            for (ours, reference), by_measure in zip(pairs, sampled, strict=True):
                for measure, samples in by_measure.items():
                    labels = group._asdict() | {
                        "subset": subset,
                        "condition": ours.condition,
                        "alpha": ours.alpha,
                        "reference": reference.condition,
                        "measure": measure,
                    }
                    rows += _estimate_rows(labels, experiments, [pool(samples), *samples])
    return rows


def split_rows(experiments: Sequence[Experiment]) -> tuple[list[dict], list[str]]:
    """Rows of `SPLIT_COLUMNS`, and a line for each group of layers that lacks a condition for the split.

    The four conditions are a 2 × 2 of two causes: finetuning's change of the MLP, taken away in base_mlp
    and no_delta, and the dictionary's own error, present in dictionary_error and no_delta. A part of the
    total, no_delta − raw, is what a cause adds to the measure, averaged over the two orders in which the
    causes may come:

        finetuning       = ½ (base_mlp − raw) + ½ (no_delta − dictionary_error)
        dictionary_error = ½ (dictionary_error − raw) + ½ (no_delta − base_mlp)
        interaction      = (no_delta − dictionary_error) − (base_mlp − raw)

    The first two sum to the total; each holds half of the interaction, which is what the two causes do
    together beyond what each does alone. `gap_share` is finetuning / total, undefined where the total's
    interval holds 0.

    L. S. Shapley (1953), A value for n-person games, Contributions to the Theory of Games II.
    """
    rows, skipped = [], []
    for group, columns in _groups(experiments[0]).items():
        by_name = {column.condition: column for column in columns}
        if missing := [name for name in CORNERS if name not in by_name]:
            skipped.append(f"no split for {group}: the experiment lacks {' and '.join(missing)}")
            continue
        raw, error, base_mlp, no_delta = (by_name[name] for name in CORNERS)
        contrasts = {
            "total": ((1.0, no_delta, raw),),
            "finetuning": ((0.5, base_mlp, raw), (0.5, no_delta, error)),
            "dictionary_error": ((0.5, error, raw), (0.5, no_delta, base_mlp)),
            "interaction": ((1.0, no_delta, error), (-1.0, base_mlp, raw)),
        }
        for subset in experiments[0].examples:
            sampled = sample_contrasts(experiments, subset, list(contrasts.values()))
            for measure in sampled[0]:
                parts: dict[str, list[Sample | None]] = {
                    part: [pool(by_measure[measure]), *by_measure[measure]]
                    for part, by_measure in zip(contrasts, sampled, strict=True)
                }
                both = zip(
                    *(by_part[1:] for by_part in (parts["finetuning"], parts["total"])), strict=True
                )
                shares = [share(part, total) for part, total in both]
                parts["gap_share"] = [None if None in shares else pool(shares), *shares]
                for part, samples in parts.items():
                    labels = {"subset": subset, "measure": measure, "part": part}
                    rows += _estimate_rows(group._asdict() | labels, experiments, samples)
    return rows, skipped


def _groups(experiment: Experiment) -> dict[Group, list[Column]]:
    """The columns of each group of layers, raw among them."""
    raw, *others = experiment.columns
    groups: dict[Group, list[Column]] = {}
    for column in others:
        groups.setdefault(column.group, [raw]).append(column)
    return groups


def _estimate_rows(
    labels: dict[str, str], experiments: Sequence[Experiment], samples: Sequence[Sample | None]
) -> list[dict]:
    """A row for all seeds (the first sample) and, where there are several, one for each."""
    m = experiments[0].measures.index(labels["measure"])
    counts = [int((e.weights[labels["subset"]][m] > 0).sum()) for e in experiments]
    seeds = [sample.estimate if sample else float("nan") for sample in samples[1:]]
    defined = None not in samples[1:]
    spread = {
        "seed_min": min(seeds) if defined else float("nan"),
        "seed_max": max(seeds) if defined else float("nan"),
    }
    names = [POOLED, *(experiment.seed for experiment in experiments)]
    rows = []
    for name, n, sample in zip(names, [sum(counts), *counts], samples, strict=True):
        row = labels | {"seed": name, "n_examples": n} | (spread if name == POOLED else {})
        if sample is None:
            ends = dict.fromkeys(("estimate", "ci_low", "ci_high"), float("nan"))
            rows.append(row | ends | {"verdict": UNDEFINED})
            continue
        low, high = sample.interval
        verdict = NO_DIFFERENCE if sample.holds_zero else ""
        if name == POOLED and not verdict and defined and min(seeds) < 0 < max(seeds):
            verdict = DISAGREEMENT
        ends = {
            "estimate": sample.estimate,
            "ci_low": low,
            "ci_high": high,
            "interval": sample.kind,
        }
        rows.append(row | ends | {"verdict": verdict})
    return rows if len(experiments) > 1 else rows[:1]


def difference_tables(rows: Sequence[dict]) -> str:
    """A table per measure and group of layers: conditions against each reference."""
    parts = []
    for (*group, measure), mine in _by(rows, (*Group._fields, "measure")).items():
        lines = []
        for (subset, condition), ours in _by(mine, ("subset", "condition")).items():
            line = {"subset": subset, "condition": condition}
            for (reference,), cell in _by(ours, ("reference",)).items():
                line[f"− {reference}"] = _cell(cell)
            lines.append(line)
        shown = [f"− {name}" for name in REFERENCES if any(f"− {name}" in line for line in lines)]
        table = format_table(lines, ["subset", "condition", *shown])
        parts.append(f"{measure}, {Group(*group)}: differences\n\n{table}")
    return "\n\n".join(parts)


def split_tables(rows: Sequence[dict]) -> str:
    """A table per group of layers: the parts of the gap from raw to no_delta."""
    parts = []
    for group, mine in _by(rows, Group._fields).items():
        lines = [
            {"subset": subset, "measure": measure, "part": part, "estimate": _cell(cell)}
            for (subset, measure, part), cell in _by(mine, ("subset", "measure", "part")).items()
        ]
        table = format_table(lines, ["subset", "measure", "part", "estimate"])
        parts.append(f"no_delta − raw, {Group(*group)}: split\n\n{table}")
    return "\n\n".join(parts)


def _cell(rows: Sequence[dict]) -> str:
    """The pooled estimate with its interval, or that there is none to tell from 0; then each seed's."""
    pooled, *seeds = rows
    text = UNDEFINED
    if pooled["verdict"] != UNDEFINED:
        text = interval(*(pooled[key] for key in ("estimate", "ci_low", "ci_high")))
        if pooled["verdict"] == NO_DIFFERENCE:
            text = f"{NO_DIFFERENCE} {text.partition(' ')[2]}"
    singly = " ".join(number(row["estimate"]) for row in seeds)
    title = f"{DISAGREEMENT}:" if pooled["verdict"] == DISAGREEMENT else "seeds"
    return f"{text} ({title} {singly})" if seeds else text


def _by(rows: Sequence[dict], columns: Sequence[str]) -> dict[tuple, list[dict]]:
    """The rows by their values in some columns, in the order of their first rows."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def _of_whole_model(rows: Sequence[dict]) -> list[dict]:
    """The rows of the whole model; every row where none is."""
    whole = whole_model(row["layer"] for row in rows)
    return [row for row in rows if row["layer"] == whole] or list(rows)


def write_comparisons(folders: Sequence[str | Path], out: str | Path) -> str:
    """Compare the conditions of folders, one per seed; writes the files and returns what is printed.

    Raises:
        FileNotFoundError, ValueError: see `records.read_experiments`.
    """
    experiments = read_experiments(folders)
    out = Path(out)
    differences = difference_rows(experiments)
    split, skipped = split_rows(experiments)
    write_table(out / "differences.csv", DIFFERENCE_COLUMNS, differences)
    write_table(out / "split.csv", SPLIT_COLUMNS, split)
    measures = experiments[0].measures
    dictionaries = ("d_new", "percentile", "target")
    figures = {}
    whole = whole_model(row["layer"] for row in differences)
    shown = [r for r in differences if (r["layer"], r["reference"]) == (whole, "no_delta")]
    for of, mine in _by(shown, dictionaries).items():
        figures["controls", of] = control_dots(mine, [*rates(measures), "mean_ce"], POOLED)
    for of, mine in _by(_of_whole_model(split), dictionaries).items():
        figures["split", of] = split_parts(mine, "mean_ce", POOLED)
    several = len({of for _, of in figures}) > 1
    for (name, of), figure in figures.items():
        parts = [name, *filter(None, of)] if several else [name]
        path = out / f"{'_'.join(parts)}.png"
        figure.savefig(path, dpi=120)
        record(path)
    blocks = [
        difference_tables(_of_whole_model(differences)),
        split_tables(_of_whole_model(split)),
        *skipped,
        "Intervals (95 %) are Student's t over seeds; of a single seed, over wordings and then examples.",
    ]
    text = "\n\n".join(filter(None, blocks))
    write_text(out / "comparisons.txt", text + "\n")
    return f"{text}\n\nwritten: {out}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="an experiment's folder for each seed, e.g. runs/seeds/1/controls runs/seeds/2/controls",
    )
    parser.add_argument("--out", type=Path, help="default: comparisons, where all folders are in")
    args = parser.parse_args()
    out = args.out or Path(os.path.commonpath(args.folders)) / "comparisons"
    print(write_comparisons(args.folders, out))


if __name__ == "__main__":
    run(main)
