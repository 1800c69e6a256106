"""Print a study's results: `python -m delta_transcoders.report.summary STUDY [--check EXPECTED.yaml]`.

With `--check`, the identities of a YAML file are tried on the result tables (`report.identities`), and one
that does not hold ends with exit status 1.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders.command import run, script_command
from delta_transcoders.files import read_json
from delta_transcoders.report.columns import logprobs, rates, whole_model
from delta_transcoders.report.formatting import HOLDS_ZERO, NOT_APPLICABLE, number, table_number
from delta_transcoders.report.identities import check_identities
from delta_transcoders.report.ranking import top_table
from delta_transcoders.report.tables import format_table, read_metrics

EXPERIMENTS = {
    "exp1": "Experiment 1: cross-entropy with MLPs replaced",
    "exp2a": "Experiment 2A: behaviour",
    "exp2b": "Experiment 2B: dose–response",
    "controls": "Controls of Experiment 2A",
    "spillover": "Spillover: general text, KL and ΔCE to the base model",
}
N_RANKED = 3
RANKING_TITLE = f"Feature ranking: the first {N_RANKED} of each list"
SPLITS_TITLE = "What deltas were trained on, and what is measured"
NO_SPILLOVER = "Spillover: not measured (the study file names no text)"
LEGEND = f"[95 % interval]; {HOLDS_ZERO}: not distinguishable from 0, the interval holds it"
FVU_TITLE = "What single layers' dictionaries leave unexplained, beside neurons (FVU)"
SPLIT_TITLE = "What no_delta changes, split into finetuning and the dictionary's own error"
SPLIT_COLUMNS = ("layer", "subset", "measure", "total", "finetuning", "dictionary_error")


def behaviour_table(study: Path) -> str:
    """The finetuned and the base model on every subset, rates with 95 % intervals."""
    rows = _rows("behaviour", study)
    if not rows:
        return ""
    measures = ["mean_ce", *rates(rows[0])]
    shown = [row | {name: table_number(row, name) for name in measures} for row in rows]
    return format_table(shown, ["condition", "subset", "n_examples", *measures])


def _rows(table: str, study: Path) -> list[dict[str, str]]:
    path = study / table / "metrics.csv"
    return read_metrics(path) if path.is_file() else []


def of_whole_model(study: Path, table: str) -> tuple[str, str] | None:
    """The `layer`s of a table that are about the whole model, raw's among them; None where none is."""
    whole = whole_model(row["layer"] for row in _rows(table, study))
    return ("", whole) if whole else None


def splits_table(study: Path) -> str:
    """How the examples of a model that somebody brought were split; empty for other studies."""
    path = study / "examples" / "splits.csv"
    rows = read_metrics(path) if path.is_file() else []
    return format_table(rows, list(rows[0])) if rows else ""


def _has_dictionaries(study: Path) -> bool:
    """Whether the deltas correct dictionaries; the others learn what finetuning changed in the MLPs."""
    targets = {read_json(path).get("target") for path in study.glob("delta/layer_*/config.json")}
    return targets != {"mlp_difference"}


def measured_on(study: Path) -> str:
    """How many examples and wordings rates are of; empty where nobody counted wordings."""
    path = study / "examples" / "splits.csv"
    rows = read_metrics(path) if path.is_file() else []
    counts = ", ".join(
        f"{row['subset']} {row['n_examples']} examples of {row['n_wordings']} wordings"
        for row in rows
        if row["split"] == "evaluation"
    )
    return counts and f"intervals are over wordings, then their examples: {counts}"


def put_back(study: Path) -> str:
    """What `no_delta` and `full` are where that is no matter of course; empty elsewhere."""
    if not _has_dictionaries(study):
        return "no_delta: the base model's MLPs put back into the finetuned model; full: those and the delta"
    if splits_table(study):
        return (
            "no_delta: the base dictionaries in place of the finetuned model's MLPs; full: those and the "
            "delta, which may also repair the dictionaries' own error: compare base_mlp and dictionary_error"
        )
    return ""


def has_spillover(study: Path) -> bool:
    """Whether there is a table of spillover that the study file still asks for."""
    path = study / "configs" / "models.json"  # of a study of somebody's own model
    is_asked = read_json(path)["text"] is not None if path.is_file() else True
    return is_asked and (study / "spillover").is_dir()


def reconstruction_title(study: Path) -> str:
    if _has_dictionaries(study):
        return "What the dictionaries reconstruct (held-out tokens)"
    return "What the deltas leave of finetuning's change of the MLPs (held-out tokens)"


def reconstruction_rows(study: Path) -> list[dict[str, float | int]]:
    """Each layer's delta on held-out tokens: what its config.json says was measured."""
    rows = []
    configs = [read_json(path) for path in study.glob("delta/layer_*/config.json")]
    for config in sorted(configs, key=lambda config: config["layer"]):
        row = {"layer": config["layer"], **config["measured"]}  # nothing, where it was imported
        if "fvu_base" in row:
            row["fvu_base/fvu_full"] = row["fvu_base"] / row["fvu_full"]
        rows.append(row)
    return rows


def reconstruction_table(study: Path) -> str:
    rows = reconstruction_rows(study)
    shown = [
        {name: str(v) if name == "layer" else number(v) for name, v in row.items()} for row in rows
    ]
    return format_table(shown, list(max(shown, key=len))) if shown else ""


def fvu_table(study: Path) -> str:
    """Single layers of Experiment 1: the FVU of dictionaries beside that of the MLP's own largest neurons."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in _rows("exp1", study):
        if row["fvu"] not in ("", "nan"):
            label = {key: row[key] for key in ("layer", "subset")}
            line = lines.setdefault(tuple(label.values()), label)
            line[row["condition"]] = table_number(row, "fvu")
    return format_table(list(lines.values()), list(max(lines.values(), key=len))) if lines else ""


def intervention_table(study: Path, table: str, layers: Sequence[str] | None = None) -> str:
    """An experiment's rates, cross-entropy and distance to raw; of the given `layer`s where not None."""
    rows = _rows(table, study)
    if not rows:
        return ""
    measures = ["mean_ce", "mean_kl", *logprobs(rows[0]), "fvu", "dce", *rates(rows[0])]
    shown = [
        row | {m: table_number(row, m, is_difference=m == "dce") for m in measures}
        for row in rows
        if layers is None or row["layer"] in layers
    ]
    empty = ("", NOT_APPLICABLE)
    columns = ("layer", "subset", "condition", *measures)
    return format_table(shown, [c for c in columns if any(row[c] not in empty for row in shown)])


def split_table(study: Path, layers: Sequence[str] | None = None) -> str:
    """Experiment 2A's gap from raw to no_delta: finetuning's part and the dictionary's own error."""
    path = study / "exp2a" / "comparisons" / "split.csv"
    lines: dict[tuple, dict[str, str]] = {}
    # Without dictionaries there is nothing to split, and the table is its header.
    is_there = path.is_file() and len(path.read_text(encoding="utf-8").splitlines()) > 1
    for row in read_metrics(path) if is_there else []:
        if layers is None or row["layer"] in layers:
            labels = {key: row[key] for key in ("layer", "subset", "measure")}
            ends = {f"estimate_ci_{end}": row[f"ci_{end}"] for end in ("low", "high")}
            line = lines.setdefault(tuple(labels.values()), labels)
            line[row["part"]] = table_number(row | ends, "estimate", is_difference=True)
    return format_table(list(lines.values()), SPLIT_COLUMNS) if lines else ""


def ranking_table(study: Path) -> str:
    """The first features of each list of a ranking; empty where there is none."""
    folder = study / "ranking"
    return top_table(folder, N_RANKED) if (folder / "ranking.csv").is_file() else ""


def _together(layers: Sequence[str] | None) -> str:
    """The end of a title.

    >>> _together(("", "all")), _together(("", "0+2")), _together(None)
    (', all layers together', ', layers 0+2 together', '')
    """
    if layers is None:
        return ""
    return f", {'all layers' if layers[1] == 'all' else f'layers {layers[1]}'} together"


def times_line(study: Path) -> str:
    """What `study.py` has noted of its stages in `study.json`; empty where it ran none."""
    path = study / "study.json"
    stages = read_json(path)["stages"] if path.is_file() else {}
    runs = {name: stage.get("done", {}) for name, stage in stages.items()}
    times = {name: run["seconds"] for name, run in runs.items() if "seconds" in run}
    if not times:
        return ""
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
    return f"time: {each}; together {sum(times.values()) / 60:.1f} min"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study, for example runs/tiny")
    parser.add_argument("--check", type=Path, help="YAML file of identities to try")
    args = parser.parse_args()
    if not (args.study / "behaviour" / "metrics.csv").is_file():
        study = shlex.join([*script_command("study"), "--config", "FILE"])
        print(
            f"error: {args.study} holds no results yet; its study file makes them: {study}",
            file=sys.stderr,
        )
        return 2
    if table := splits_table(args.study):
        print(f"\n{SPLITS_TITLE}\n\n{table}")
    print(f"\n{args.study}: what the models do\n")
    print(behaviour_table(args.study))
    if table := reconstruction_table(args.study):
        print(f"\n{reconstruction_title(args.study)}\n\n{table}")
    if table := fvu_table(args.study):
        print(f"\n{FVU_TITLE}\n\n{table}")
    for name, title in EXPERIMENTS.items():
        layers = of_whole_model(args.study, name)
        if name == "spillover" and not has_spillover(args.study):
            if splits_table(args.study):
                print(f"\n{NO_SPILLOVER}")
        elif table := intervention_table(args.study, name, layers):
            print(f"\n{title}{_together(layers)}\n\n{table}")
    layers = of_whole_model(args.study, "exp2a")
    if table := split_table(args.study, layers):
        print(f"\n{SPLIT_TITLE}{_together(layers)}\n\n{table}")
    if table := ranking_table(args.study):
        print(f"\n{RANKING_TITLE}\n\n{table}")
    legend = "\n".join(filter(None, (put_back(args.study), LEGEND, measured_on(args.study))))
    print(f"\n{legend}\n\n{times_line(args.study)}")
    if args.check:
        import yaml

        try:
            expected = yaml.safe_load(args.check.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{args.check} is not YAML: {error}") from error
        checked = check_identities(args.study, expected)
        print("\n".join(checked.broken))
        print(f"{checked.n_held} identities hold, {checked.n_absent} have no tables yet")
        return 1 if checked.broken else 0
    return 0


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
