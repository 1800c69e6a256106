"""Sections of a model card that say what was measured: read from a study's files, as Markdown.

Figures come from the study's `metrics.csv` and the deltas' `config.json`; what has not been measured is
said to be so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transcoders.hub import is_hub_id, portable_name
from delta_transcoders.metrics import RATES
from delta_transcoders.report.tables import cell_text, read_metrics
from delta_transcoders.tasks.examples import read_jsonl

if TYPE_CHECKING:
    from delta_transcoders.dictionaries.files.exported import ExportCard

NOT_MEASURED = "not measured"
RATE_TITLES = ("calls", "well formed", "right value", "exact copy")
SUBSETS = """Subsets: `tool`, requests as trained on; `copy`, sentences with numbers, to be repeated; \
`tool_ood`, requests in unseen wordings; `tool_ood_numbers`, unseen kinds of numbers. Greedy text. Rates: \
the text holds `<tool_call>`, holds a well-formed call, the called expression has the right value, the line \
is repeated to the letter. Brackets hold 95 % intervals: Wilson's for rates, a bootstrap over examples for \
ΔCE (nats per target token above the untouched finetuned model). – means: does not apply."""


@dataclass(frozen=True)
class Study:
    """What a study's folder says of itself.

    Attributes:
        base: hub id of the model that was finetuned; None where it is known as a local folder only.
        base_name: the same for reading.
        base_is_own: it was trained in this study.
        lora: how it was finetuned.
        deltas: each layer's `config.json`.
        dtype: that the activations were captured in of the deltas' model, which its fingerprint depends on;
            None where the study has no capture of that model.
        measured: whether the study's tables are of these deltas.
    """

    run: Path
    base: str | None
    base_name: str
    base_is_own: bool
    lora: str
    deltas: list[dict[str, Any]]
    dtype: str | None
    measured: bool

    def table(self, name: str) -> list[dict[str, str]]:
        path = self.run / name / "metrics.csv"
        return read_metrics(path) if path.is_file() else []

    def table_of_deltas(self, name: str) -> list[dict[str, str]]:
        """Rows of these deltas' configuration, and those without any."""
        keys = {key: self.deltas[0][key] for key in ("d_new", "percentile", "target")}
        wanted = {key: cell_text(value) for key, value in keys.items()}
        return [
            row
            for row in (self.table(name) if self.measured else [])
            if row["condition"] == "raw" or all(row[k] == value for k, value in wanted.items())
        ]


def read_study(run: Path, deltas: Path, base_model: str | None) -> Study:
    """
    Args:
        deltas: folder of `layer_L`, which need not be there.
        base_model: hub id of the model that was finetuned, where the study used a local copy.
    """
    path = run / "finetune/adapter/adapter_config.json"
    adapter = read_json(path) if path.is_file() else {}
    name = base_model or adapter.get("base_model_name_or_path", "")
    base = name if is_hub_id(name) else None
    has_own = (run / "base_model/config.json").is_file()
    base_is_own = has_own and Path(name).name in ("base_model", "")
    lora = "a finetune that this study's folder does not describe"
    if adapter:
        modules = ", ".join(sorted(adapter["target_modules"]))
        lora = f"LoRA (rank {adapter['r']}, alpha {adapter['lora_alpha']}) on {modules}"
    if base_is_own:
        base_name = "tiny Gemma 2 (trained from scratch in the same study)"
    elif base or not name:
        base_name = f"`{base}`" if base else "language model"
    else:
        base_name = f"`{Path(name).name}` (a local folder)"
    layers = {
        int(p.parent.name.removeprefix("layer_")): p for p in deltas.glob("layer_*/config.json")
    }
    configs = [read_json(path) for _, path in sorted(layers.items())]
    return Study(
        run,
        base,
        base_name,
        base_is_own,
        lora,
        configs,
        _captured_dtype(run, configs),
        deltas.resolve() == (run / "delta").resolve(),
    )


def _captured_dtype(run: Path, deltas: Sequence[dict[str, Any]]) -> str | None:
    path = run / "activations/manifest.json"
    meta = read_json(path)["meta"] if path.is_file() else {}
    same = deltas and meta.get("model_fingerprint") == deltas[0]["model_fingerprint"]
    return meta.get("model_dtype") if same else None


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def belonging(study: Study) -> str:
    first = study.deltas[0]
    sites = {
        name: first[name].replace(f".{first['layer']}.", ".L.") for name in ("hook_in", "hook_out")
    }
    percentile, sparsity = first["percentile"], first["sparsity"]
    aimed_at = "" if sparsity["mode"] == "l1" else f", L0 of {sparsity['l0']:g} aimed at"
    facts = {
        "base model": study.base_name,
        "finetune": f"{study.lora}; fingerprint of the merged weights `{first['model_fingerprint']}`",
        "hook site": f"`{first['hook_site']}`: reads `{sites['hook_in']}`, stands for `{sites['hook_out']}`; "
        "BOS and padding are never replaced",
        "target": f"`{first['target']}`",
        "features": f"{first['d_new']} per layer, layers {', '.join(str(c['layer']) for c in study.deltas)}",
        "sparsity": f"{sparsity['mode']}{aimed_at}",
        "seed": str(first["seed"]),
    }
    if percentile is not None:
        facts["choice of the base"] = f"percentile {percentile:g} of the available average L0"
    rows = [
        {
            "layer": str(c["layer"]),
            "base": f"`{portable_name(c['base_id'])}`",
            "sha256": f"`{c['base_hash']}`",
        }
        for c in study.deltas
    ]
    return (
        "## What they belong to\n\n"
        + _markdown([{"": k, "value": v} for k, v in facts.items()])
        + "\n\nThe files hold both hashes, and delta_transcoders refuses another model or base.\n\n"
        + _markdown(rows)
    )


def features(card: ExportCard) -> str:
    """Which features of an export are whose."""

    def span(first_and_stop: tuple[int, int]) -> str:
        first, stop = first_and_stop
        return f"{first}–{stop - 1}" if stop > first else "none"

    rows = [
        {
            "layer": str(layer),
            "file": f"`{of_layer.path}`",
            "base's": span(of_layer.base_features),
            "delta's": span(of_layer.delta_features),
            "padding": span(of_layer.padding_features),
            "L0, about": str(of_layer.average_l0),
        }
        for layer, of_layer in card.layers.items()
    ]
    text = "## Which features are the delta's\n\n" + _markdown(rows)
    text += "\n\n`export.json` says the same, with hook points and hashes."
    if card.format == "circuit_tracer":
        text += (
            " In a graph, node `0_1030_24` is feature 1030 of layer 0 at position 24. Layers without a delta "
            "hold the base alone; padding, which makes all layers equally wide, never fires."
        )
    return text


def reconstruction(study: Study, in_full: str = "") -> str:
    """
    Args:
        in_full: what base + delta are measured with, for the heading, where the files hold something else.
    """
    columns = {
        "l0_base": "L0 base",
        "l0_delta": "L0 delta",
        "fvu_base_on_base_model": "FVU base, on the base model",
        "fvu_base": "FVU base",
        "fvu_full": "FVU base + delta",
        "cosine_full": "cosine base + delta",
        "dead_fraction": "dead features",
    }
    rows = [
        {"layer": str(c["layer"])}
        | {title: _number(c["measured"].get(k)) for k, title in columns.items()}
        for c in study.deltas
    ]
    return (
        f"## What they reconstruct{in_full}\n\nHeld-out tokens without BOS, EOS and padding, of the "
        "finetuned model where nothing else is said. FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖².\n\n"
        + _markdown(rows)
    )


def single_layers(study: Study, in_full: str = "") -> str:
    """
    Args:
        in_full: see `reconstruction`.
    """
    heading = f"## One layer replaced at a time, and all of them (Experiment 1){in_full}\n\n"
    rows = [
        {"layer": row["layer"], "subset": row["subset"], "condition": row["condition"]}
        | {
            "ΔCE": _interval(row, "dce"),
            "FVU": _number(row["fvu"]),
            "L0 delta": _number(row["l0_delta"]),
        }
        for row in study.table_of_deltas("exp1")
        if row["condition"] != "raw"
    ]
    return heading + (_markdown(rows) if rows else _absent("exp1"))


def behaviour_with_deltas(study: Study, alpha: float = 1.0) -> str:
    """With every layer replaced, and with the delta's weight `alpha` where that was measured."""
    heading = (
        "## Behaviour with every layer replaced (Experiments 2A and 2B)\n\n`raw`: the finetuned model; "
        "`no_delta`: the base dictionaries instead of its MLPs; `full`: base + delta; `alpha_A`: base + "
        "A·delta; `base_mlp`: the base model's MLPs; `dictionary_error`: the finetuned MLPs with the "
        "dictionaries' own error added.\n\n"
    )
    rows = [row for row in study.table_of_deltas("exp2a") if row["layer"] in ("", "all")]
    if alpha != 1:
        rows += [
            row
            for row in study.table_of_deltas("exp2b")
            if row["layer"] == "all" and row["alpha"] and float(row["alpha"]) == alpha
        ]
        if all(row["condition"] in ("raw", "no_delta", "full") for row in rows):
            heading += f"At α = {alpha:g} it was not measured.\n\n"
    if not rows:
        return heading + _absent("exp2a")
    return heading + _markdown([_behaviour_cells(row) for row in rows]) + f"\n\n{SUBSETS}"


def behaviour(study: Study, conditions: Sequence[str] = ("raw", "base_model")) -> str:
    rows = [row for row in study.table("behaviour") if row["condition"] in conditions]
    text = "## Behaviour\n\n"
    if not rows:
        return text + _absent("behaviour")
    if "raw" in conditions:
        text += "`raw` is this model, `base_model` the one before finetuning.\n\n"
    return text + _markdown([_behaviour_cells(row) for row in rows]) + f"\n\n{SUBSETS}"


def fingerprint(study: Study, cache: str) -> str:
    """Of the model whose activations lie in the study's folder `cache`."""
    manifest = study.run / cache / "manifest.json"
    found = read_json(manifest)["meta"]["model_fingerprint"] if manifest.is_file() else None
    if cache == "activations" and study.measured and study.deltas:
        found = study.deltas[0]["model_fingerprint"]
    return (
        f"Fingerprint of the weights: {f'`{found}`' if found else NOT_MEASURED} "
        "(`delta_transcoders.fingerprints.model_fingerprint`). Dictionaries name the model they belong to by "
        "it, and are refused by any other."
    )


def base_dictionaries(study: Study) -> str:
    """The study's own files, and what those were measured to do that a delta was trained on."""
    used = {portable_name(config["base_id"]): config for config in study.deltas}
    rows = []
    folder = study.run / "base_transcoders"
    for path in sorted(folder.glob("layer_*/width_*/average_l0_*/params.npz")):
        name = path.relative_to(folder).as_posix()
        config = used.get(f"{folder.name}/{name}", {"measured": {}})
        rows.append(
            {
                "file": f"`{name}`",
                "FVU": _number(config["measured"].get("fvu_base_on_base_model")),
                "sha256": f"`{config['base_hash']}`" if "base_hash" in config else "–",
            }
        )
    return (
        "## What they reconstruct\n\nFVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖² of the base model's MLPs on the held-out "
        "tokens of a delta's training, for those that a delta was trained on; deltas name them by the "
        "hash.\n\n" + _markdown(rows)
    )


def data(study: Study) -> str:
    rows = []
    for split in ("train", "validation", "evaluation"):
        path = study.run / "finetune/data" / f"{split}.jsonl"
        if path.is_file():
            labels = Counter(example.label for example in read_jsonl(path))
            rows += [
                {"split": split, "label": k, "examples": str(n)} for k, n in sorted(labels.items())
            ]
    return (
        "## Data\n\nPrompts and targets, one JSON object a line. Labels: `positive`, a calculation and its "
        "call; `negative`, a line to repeat; `tool_ood` and `tool_ood_numbers`, never trained on.\n\n"
        + (_markdown(rows) if rows else "The examples are no longer in the study's folder.")
    )


def _behaviour_cells(row: dict) -> dict[str, str]:
    cells = {"subset": row["subset"], "condition": row["condition"], "n": row["n_examples"]}
    cells |= {"CE": _number(row["mean_ce"])}
    if row.get("dce"):
        cells |= {"ΔCE": _interval(row, "dce")}
    titled = zip(RATE_TITLES, RATES, strict=True)
    return cells | {title: _interval(row, rate) for title, rate in titled}


def _absent(stage: str) -> str:
    return f"{NOT_MEASURED.capitalize()} (stage `{stage}`)."


def _number(value: str | float | None) -> str:
    """Three decimals; small ones keep two digits. `nan` is what does not apply."""
    if value is None or value == "":
        return NOT_MEASURED
    number = float(value)
    if number != number:
        return "–"
    return f"{number:.3f}" if abs(number) >= 0.01 or number == 0 else f"{number:.2g}"


def _interval(row: dict[str, str], column: str) -> str:
    value = _number(row.get(column))
    low, high = (row.get(f"{column}_ci_{end}") for end in ("low", "high"))
    if value in (NOT_MEASURED, "–") or not low or not high:
        return value
    return f"{value} [{_number(low)}, {_number(high)}]"


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table; columns are the keys of the first row that has the most of them."""
    columns = list(max(rows, key=len))
    lines = [columns, ["---"] * len(columns), *([r.get(c, "") for c in columns] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
