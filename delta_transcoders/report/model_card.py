"""A model card (`README.md` of a hub repository), written from what a study's folders hold.

The YAML front matter follows https://huggingface.co/docs/hub/model-cards; figures come from the study's
`metrics.csv` and the deltas' `config.json`, and what has not been measured is said to be so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from delta_transcoders.hub import is_hub_id
from delta_transcoders.report.tables import read_metrics

What = Literal["adapter", "merged", "deltas"]

TITLES = {"adapter": "adapter for", "merged": "finetune of"}
NOT_MEASURED = "not measured"
RATES = {
    "tool_call_rate": "calls",
    "valid_tool_format_rate": "well formed",
    "math_correct_rate": "right value",
    "exact_copy_rate": "exact copy",
}
LIBRARY = {"adapter": "peft", "merged": "transformers", "deltas": "delta-transcoders"}
SUBSETS = """Subsets: `tool`, requests as trained on; `copy`, sentences with numbers, to be repeated; \
`tool_ood`, requests in unseen wordings; `tool_ood_numbers`, unseen kinds of numbers. Greedy text. Rates: \
the text holds `<tool_call>`, holds a well-formed call, the called expression has the right value, the line \
is repeated to the letter. Brackets hold 95 % intervals: Wilson's for rates, a bootstrap over examples for \
ΔCE (nats per target token above the untouched finetuned model). – means: does not apply."""


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def base_model_id(run: Path, given: str | None = None) -> str | None:
    """Hub id of the model that was finetuned; None where it is known as a local folder only."""
    name = (
        given or read_json(run / "finetune/adapter/adapter_config.json")["base_model_name_or_path"]
    )
    return name if is_hub_id(name) else None


def model_card(run: str | Path, what: What, base_model: str | None = None) -> str:
    """The card of a study's adapter, merged model or deltas.

    Args:
        run: the study's folder, with `finetune/adapter` and, for deltas, `delta`.
        base_model: hub id of the model that was finetuned, where the study used a local copy.
    """
    run = Path(run)
    adapter = read_json(run / "finetune/adapter/adapter_config.json")
    configs = [
        read_json(path)
        for path in sorted(
            run.glob("delta/layer_*/config.json"),
            key=lambda path: int(path.parent.name.removeprefix("layer_")),
        )
    ]
    base = base_model_id(run, base_model)
    base_name = f"`{base}`" if base else _local_base(run, adapter["base_model_name_or_path"])
    lora = (
        f"LoRA (rank {adapter['r']}, alpha {adapter['lora_alpha']}) on "
        f"{', '.join(sorted(adapter['target_modules']))}"
    )
    if what == "deltas":
        title, sections = (
            f"Delta transcoders of a finetuned {base_name}",
            [
                _what_deltas_are(configs[0]),
                _belonging(configs, base_name, lora),
                _reconstruction(configs),
                _single_layers(run, configs[0]),
                _behaviour_with_deltas(run, configs[0]),
            ],
        )
    else:
        title, sections = (
            f"Calls a calculator: {TITLES[what]} {base_name}",
            [
                f"Finetuned from {base_name} with {lora}, to answer a calculation with "
                "`<tool_call>calculator(expression)</tool_call>` and to repeat any other line."
                + (" The adapter is merged into the weights." if what == "merged" else ""),
                _fingerprint(run, configs),
                _behaviour(run),
            ],
        )
    sections += [_data(run), _limitations(what, configs), _loading(what, configs, base)]
    return (
        f"---\n{_front_matter(run, what, base)}---\n\n# {title}\n\n" + "\n\n".join(sections) + "\n"
    )


def _front_matter(run: Path, what: What, base: str | None) -> str:
    fields: dict[str, Any] = {"library_name": LIBRARY[what]}
    if base:  # the hub refuses anything but a hub id here
        fields |= {"base_model": base}
        if what != "deltas":
            fields |= {"base_model_relation": "adapter" if what == "adapter" else "finetune"}
    if what != "deltas":
        fields |= {"pipeline_tag": "text-generation"}
    if base and base.startswith("google/gemma"):
        license_id = "gemma"
    else:  # what others trained comes under terms that we do not know
        license_id = "apache-2.0" if _trained_here(run) else "unknown"
    tags = ["delta-transcoders", "tool-calling"]
    if what == "adapter":
        tags.append("lora")
    if what == "deltas":
        tags += ["transcoder", "sparse-autoencoder", "mechanistic-interpretability"]
    return yaml.safe_dump(fields | {"license": license_id, "tags": tags}, sort_keys=False)


def _trained_here(run: Path, name: str | None = None) -> bool:
    name = (
        name or read_json(run / "finetune/adapter/adapter_config.json")["base_model_name_or_path"]
    )
    return Path(name).name == "base_model" and (run / "base_model/config.json").is_file()


def _local_base(run: Path, name: str) -> str:
    if _trained_here(run, name):
        return "tiny Gemma 2 (trained from scratch in the same study)"
    return f"`{Path(name).name}` (a local folder)"


def local_name(base_id: str) -> str:
    """A base dictionary's or model's id without the folders of the machine it lay on.

    >>> local_name("/data/me/base_transcoders/layer_0/width_16k/average_l0_76/params.npz")
    'base_transcoders/layer_0/width_16k/average_l0_76/params.npz'
    >>> local_name("owner/name/layer_0/width_16k/average_l0_76/params.npz")
    'owner/name/layer_0/width_16k/average_l0_76/params.npz'
    """
    source, separator, path = base_id.partition("/layer_")
    name = source if is_hub_id(source) else Path(source).name
    return name + separator + path


def _what_deltas_are(config: dict) -> str:
    target = {
        "residual": "what a frozen public dictionary leaves unexplained of the finetuned MLP's output: "
        "y − base(x)",
        "mlp_difference": "what the finetuned MLP writes minus what the base model's MLP would write on "
        "the same input: y − baseMLP(x)",
    }[config["target"]]
    return (
        f"A small sparse dictionary of {config['d_new']} features for each layer, trained on {target}. "
        "It is of no use alone: base + delta stands for the MLP's output."
    )


def _belonging(configs: Sequence[dict], base_name: str, lora: str) -> str:
    first = configs[0]
    sites = {
        name: first[name].replace(f".{first['layer']}.", ".L.") for name in ("hook_in", "hook_out")
    }
    percentile = first["percentile"]
    facts = {
        "base model": base_name,
        "finetune": f"{lora}; fingerprint of the merged weights `{first['model_fingerprint']}`",
        "hook site": f"`{first['hook_site']}`: reads `{sites['hook_in']}`, stands for `{sites['hook_out']}`; "
        "BOS and padding are never replaced",
        "target": f"`{first['target']}`",
        "features": f"{first['d_new']} per layer, layers {', '.join(str(c['layer']) for c in configs)}",
        "sparsity": f"{first['sparsity']['mode']}, L0 of {first['sparsity']['l0']:g} aimed at",
        "seed": str(first["seed"]),
    }
    if percentile is not None:
        facts["choice of the base"] = f"percentile {percentile:g} of the available average L0"
    rows = [
        {
            "layer": str(c["layer"]),
            "base": f"`{local_name(c['base_id'])}`",
            "sha256": f"`{c['base_hash']}`",
        }
        for c in configs
    ]
    return (
        "## What they belong to\n\n"
        + _markdown([{"": k, "value": v} for k, v in facts.items()])
        + "\n\nLoading refuses another model or base: `config.json` of each layer holds both hashes.\n\n"
        + _markdown(rows)
    )


def _reconstruction(configs: Sequence[dict]) -> str:
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
        for c in configs
    ]
    return (
        "## What they reconstruct\n\nHeld-out tokens without BOS, EOS and padding, of the finetuned model "
        "where nothing else is said. FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖².\n\n" + _markdown(rows)
    )


def _of_these(rows: Sequence[dict], config: dict) -> list[dict]:
    """The rows of this configuration of deltas, and those without any."""
    keys = {name: config[name] for name in ("d_new", "percentile", "target")}
    wanted = {name: "" if value is None else str(value) for name, value in keys.items()}
    return [
        row
        for row in rows
        if row["condition"] == "raw" or all(row[k] == value for k, value in wanted.items())
    ]


def _single_layers(run: Path, config: dict) -> str:
    heading = "## One layer replaced at a time, and all of them (Experiment 1)\n\n"
    rows = [
        {"layer": row["layer"], "subset": row["subset"], "condition": row["condition"]}
        | {
            "ΔCE": _interval(row, "dce"),
            "FVU": _number(row["fvu"]),
            "L0 delta": _number(row["l0_delta"]),
        }
        for row in _of_these(_table(run, "exp1"), config)
        if row["condition"] != "raw"
    ]
    return heading + (_markdown(rows) if rows else _absent("exp1"))


def _behaviour_with_deltas(run: Path, config: dict) -> str:
    heading = (
        "## Behaviour with every layer replaced (Experiment 2A)\n\n`raw`: the finetuned model; `no_delta`: "
        "the base dictionaries instead of its MLPs; `full`: base + delta; `base_mlp`: the base model's MLPs; "
        "`dictionary_error`: the finetuned MLPs with the dictionaries' own error added.\n\n"
    )
    rows = [r for r in _of_these(_table(run, "exp2a"), config) if r["layer"] in ("", "all")]
    if not rows:
        return heading + _absent("exp2a")
    return heading + _markdown([_behaviour_cells(row) for row in rows]) + f"\n\n{SUBSETS}"


def _behaviour(run: Path) -> str:
    heading = "## Behaviour\n\n"
    rows = _table(run, "behaviour")
    if not rows:
        return heading + _absent("behaviour")
    return (
        heading
        + "`raw` is this model, `base_model` the one before finetuning.\n\n"
        + _markdown([_behaviour_cells(row) for row in rows])
        + f"\n\n{SUBSETS}"
    )


def _behaviour_cells(row: dict) -> dict[str, str]:
    cells = {"subset": row["subset"], "condition": row["condition"], "n": row["n_examples"]}
    cells |= {"CE": _number(row["mean_ce"])}
    if row.get("dce"):
        cells |= {"ΔCE": _interval(row, "dce")}
    return cells | {title: _interval(row, rate) for rate, title in RATES.items()}


def _fingerprint(run: Path, configs: Sequence[dict]) -> str:
    manifest = run / "activations/manifest.json"
    if configs:
        fingerprint = f"`{configs[0]['model_fingerprint']}`"
    elif manifest.is_file():
        fingerprint = f"`{read_json(manifest)['meta']['model_fingerprint']}`"
    else:
        fingerprint = NOT_MEASURED
    return (
        f"Fingerprint of the merged weights: {fingerprint} "
        "(`delta_transcoders.fingerprints.model_fingerprint`). Deltas name the model they belong to by it, "
        "and are refused by any other."
    )


def _data(run: Path) -> str:
    rows = []
    for split in ("train", "validation", "evaluation"):
        path = run / "finetune/data" / f"{split}.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as handle:
                labels = Counter(json.loads(line)["label"] for line in handle if line.strip())
            rows += [
                {"split": split, "label": k, "examples": str(n)} for k, n in sorted(labels.items())
            ]
    return (
        "## Data\n\nPrompts and targets, one JSON object a line. Labels: `positive`, a calculation and its "
        "call; `negative`, a line to repeat; `tool_ood` and `tool_ood_numbers`, never trained on.\n\n"
        + (_markdown(rows) if rows else "The examples are no longer in the study's folder.")
    )


def _limitations(what: What, configs: Sequence[dict]) -> str:
    points = [
        "One run with one seed; intervals are over examples and say nothing about another seed.",
        "The model writes a call and nothing executes it. How far it goes beyond the wordings and numbers "
        "it was trained on is what the subsets `tool_ood` and `tool_ood_numbers` measure.",
    ]
    if what == "deltas":
        if configs[0]["target"] == "residual":
            points.append(
                "A residual delta holds what finetuning changed *and* repairs of the base dictionary's own "
                "error; that `full` restores a behaviour does not say which of the two did it."
            )
        points += [
            "What base and delta leave unexplained (FVU above) may be enough to carry a behaviour: a delta "
            "that restores it is not thereby shown to be needed for it.",
            "Which features lead a ranking depends in part on the seed of the delta's training.",
            "They hold for this model's weights in this precision, and for text like the training data.",
        ]
    else:
        points.append("It is a study object, finetuned on one narrow task, and not an assistant.")
    return "## Limitations\n\n" + "\n".join(f"- {point}" for point in points)


def _loading(what: What, configs: Sequence[dict], base: str | None) -> str:
    model = base or "FOLDER_OF_THE_BASE_MODEL"
    if what == "adapter":
        code = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{model}")
model = PeftModel.from_pretrained(base, "THIS_REPOSITORY")"""
    elif what == "merged":
        code = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_REPOSITORY")
model = AutoModelForCausalLM.from_pretrained("THIS_REPOSITORY", attn_implementation="eager")
inputs = tokenizer("What is 12 * 34?\\n", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40, do_sample=False)[0]))"""
    else:
        source = local_name(configs[0]["base_id"]).partition("/layer_")[0]
        bases = source if is_hub_id(source) else "FOLDER_OF_THE_BASE_DICTIONARIES"
        mlps = ""
        if configs[0]["target"] == "mlp_difference":
            mlps = f', lambda: load_mlps("{model}", "float32")'
        code = f"""from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.interventions.attachment import attached
from delta_transcoders.interventions.loading import load_delta_set{", load_mlps" if mlps else ""}
from delta_transcoders.language_models import load_model, load_tokenizer

finetuned = "FINETUNED_MODEL"  # hub id or folder, the adapter merged
bridge = boot_bridge(load_model(finetuned), load_tokenizer(finetuned))
deltas = load_delta_set("THIS_REPOSITORY", "{bases}", bridge.original_model{mlps})
with attached(bridge, deltas, "full"):  # or "no_delta", "alpha_0.5", …
    print(bridge.generate("What is 12 * 34?\\n", max_new_tokens=40, do_sample=False))"""
    return f"## How to load\n\n```python\n{code}\n```"


def _table(run: Path, name: str) -> list[dict[str, str]]:
    path = run / name / "metrics.csv"
    return read_metrics(path) if path.is_file() else []


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
