"""A study's own parts, copied for others: no names of this machine's folders, readable by older versions.

What is written is what the study's stages and peft, transformers and `load_base` read: nothing is packed.
Deltas and base dictionaries are written by `shared_dictionaries`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from delta_transcoders.dictionaries.files import Part
from delta_transcoders.files import DONE, read_json, write_json
from delta_transcoders.hub import portable_name

MODEL_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "*.safetensors")
# Folder in the study, what must be in it, and the stage that writes it.
SOURCES: dict[Part, tuple[str, tuple[str, ...], str]] = {
    "deltas": ("delta", ("layer_*/config.json", "layer_*/delta.safetensors"), "delta"),
    "adapter": ("finetune/adapter", ("adapter_config.json", "adapter_model.safetensors"), "lora"),
    "merged": ("finetune/merged", MODEL_FILES, "lora"),
    "base_model": ("base_model", MODEL_FILES, "base_model"),
    "base_transcoders": (
        "base_transcoders",
        ("layer_*/width_*/average_l0_*/params.npz",),
        "base_transcoder",
    ),
}


def part_folder(run: Path, part: Part, deltas: Path | None = None) -> Path:
    """Where a part lies.

    Args:
        deltas: instead of `run/delta`.

    Raises:
        FileNotFoundError: it lacks a file; names the command that writes it.
    """
    name, patterns, stage = SOURCES[part]
    folder = deltas if part == "deltas" and deltas else run / name
    for pattern in patterns:
        if not any(folder.glob(pattern)):
            if (run / "configs" / "models.json").is_file():  # a study of somebody's own model
                record = run / "study.json"
                file = read_json(record)["file"] if record.is_file() else "FILE"
                raise FileNotFoundError(
                    f"{folder} has no {pattern}: run `python study.py --config {file} --study {run}` first"
                )
            raise FileNotFoundError(
                f"{folder} has no {pattern}: run `python train.py --config configs/STUDY/{stage}.yaml "
                f"--study {run}` first (STUDY: tiny or gemma2_2b, whose base is public)"
            )
    return folder


def write_part(folder: Path, part: Part, source: Path, base_model: str | None) -> None:
    """Copy an adapter or a model into a folder that exists; deltas and bases have functions of their own.

    Args:
        source: of `part_folder`.
        base_model: hub id of the model that the adapter goes on, where there is one.
    """
    if part == "adapter":
        _write_adapter(folder, source, base_model)
    else:
        save_model(folder, source)


def save_model(folder: Path, source: Path) -> None:
    """Copy a model folder that transformers 5 wrote, as readers on 4.57 understand it too.

    There a tokenizer class of version 5 is unknown, further special tokens have another name, and
    `rope_parameters` are silently ignored (`_old_rope`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.json", "*.safetensors", "*.jinja", "tokenizer.model"):
        for path in source.glob(pattern):
            if path.name != DONE:  # of the stage that made it, with paths of this machine
                shutil.copyfile(path, folder / path.name)
    config = read_json(folder / "config.json")
    for part in (config, config.get("text_config", {})):
        for name, value in _old_rope(part.get("rope_parameters") or {}).items():
            part.setdefault(name, value)
    write_json(folder / "config.json", config)
    path = folder / "tokenizer_config.json"
    tokenizer = read_json(path)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    write_json(path, tokenizer)


def _old_rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """What version 4.57 calls `rope_parameters`: Gemma 3 has some for either kind of attention.

    >>> _old_rope({"rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0})
    {'rope_theta': 500000.0, 'rope_scaling': {'rope_type': 'llama3', 'factor': 32.0}}
    """
    local = parameters.get("sliding_attention", {})
    scaling = dict(parameters.get("full_attention", parameters))
    old = {"rope_theta": scaling.pop("rope_theta", None), "rope_scaling": scaling}
    old["rope_local_base_freq"] = local.get("rope_theta")
    if scaling.get("rope_type", "default") == "default":
        old["rope_scaling"] = None
    return {name: value for name, value in old.items() if value is not None}


def _write_adapter(folder: Path, source: Path, base_model: str | None) -> None:
    config = read_json(source / "adapter_config.json")
    base = base_model or portable_name(config["base_model_name_or_path"])
    config["base_model_name_or_path"] = base
    write_json(folder / "adapter_config.json", config)
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
