"""Which model, dictionaries, deltas and task belong to a study: as its own evaluations had them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta_transcoders.command import script_command
from delta_transcoders.files import read_json
from delta_transcoders.study.records import RECORD, Record

EVALUATION = "lightning_modules.intervention_evaluation.InterventionEvaluation"
FIRST = ("exp2a", "exp2b")
"""Looked for before other evaluations."""
PREFIX = "${study}"


@dataclass(frozen=True)
class Parts:
    """What one of a study's evaluations of its delta was run with.

    Attributes:
        study: its folder, as it was given.
        stage: the evaluation.
        model: folder or hub id of the finetuned model.
        base_model: likewise of the model before, where the evaluation had it.
        base_transcoders: likewise of the dictionaries, where the deltas correct some.
        deltas: folder of the deltas.
        task: `class_path` and `init_args`.
        examples: file of the prompts.
        max_new_tokens: longest answer.
        dtype: of the models' weights.
        on_cpu: whether the study's own stages were told to stay on the CPU.
    """

    study: str
    stage: str
    model: str
    base_model: str | None
    base_transcoders: str | None
    deltas: str
    task: dict[str, Any]
    examples: str
    max_new_tokens: int
    dtype: str
    on_cpu: bool


def find_parts(study: str) -> Parts:
    """Read a study's record; torch is not needed for it.

    Raises:
        FileNotFoundError: no such study, or a part of it that is not there; names the stage that writes it.
        ValueError: a record that cannot be read.
    """
    study = os.path.normpath(study)
    folder = Path(study)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no study folder {study!r}; give one that `make demo` or study.py has written"
        )
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(
            f"{study} holds no {RECORD}, so that it is not the folder of a study: give one that "
            "`make demo` or study.py has written"
        )
    file = str(read_json(folder / RECORD).get("file"))
    stages = Record(study, file).stages
    go_on = shlex.join([*script_command("study"), "--config", file, "--study", study])
    name, config = _evaluation(study, stages, go_on)
    config = _inside(config, study)
    task = _task(config)
    if not _is_found(
        task["class_path"]
    ):  # a task of the user's own may stand beside the study file
        sys.path.append(os.path.dirname(os.path.abspath(file)))
    parts = Parts(
        study=study,
        stage=name,
        model=config["model.model"],
        base_model=config.get("model.base_model"),
        base_transcoders=config.get("model.base_transcoders"),
        deltas=config["model.deltas"][0],
        task=task,
        examples=config["data.jsonl"],
        max_new_tokens=config.get("model.max_new_tokens", 64),
        dtype=config.get("model.dtype", "float32"),
        on_cpu=config.get("trainer.accelerator") == "cpu",
    )
    for part in (parts.deltas, parts.model, parts.base_transcoders, parts.examples):
        if part is not None and part.startswith(f"{study}/") and not Path(part).exists():
            stage = _writer(part.replace(study, PREFIX, 1), stages)
            raise FileNotFoundError(
                f"{study} has no {os.path.relpath(part, study)}, which its stage {stage} writes: {go_on}"
            )
    return parts


def _evaluation(study: str, stages: Mapping[str, Any], go_on: str) -> tuple[str, dict[str, Any]]:
    """Name and configuration of an evaluation of the study's delta in its finetuned model."""
    for name in (*FIRST, *stages):
        stage = stages.get(name, {})
        config = (stage.get("done") or stage.get("started") or {}).get("config", {})
        is_ours = config.get("model.class_path") == EVALUATION
        if is_ours and config.get("model.deltas") and not config.get("model.finetuned_model"):
            return name, config
    done = [name for name, stage in stages.items() if "done" in stage]
    missing = next((name for name in ("finetune", "delta") if name not in done), FIRST[0])
    raise FileNotFoundError(
        f"{study} is not as far as its stage {missing} (finished: {', '.join(done) or 'none'}): {go_on}"
    )


def _inside(value: Any, study: str) -> Any:
    """With the study's folder where the record says `PREFIX`."""
    if isinstance(value, str):
        return value.replace(PREFIX, study, 1) if value.startswith(PREFIX) else value
    if isinstance(value, dict):
        return {key: _inside(part, study) for key, part in value.items()}
    return [_inside(part, study) for part in value] if isinstance(value, list) else value


def _task(config: Mapping[str, Any]) -> dict[str, Any]:
    name = "data.task"
    if name in config:
        return {"class_path": config[name]}
    options = {key: value for key, value in config.items() if key.startswith(f"{name}.")}
    given = {key.removeprefix(f"{name}."): value for key, value in options.items()}
    return {"class_path": given.pop("class_path"), "init_args": given}


def _is_found(class_path: str) -> bool:
    try:
        return importlib.util.find_spec(class_path.rpartition(".")[0]) is not None
    except (ImportError, ValueError):  # also the module's package is not there; no module's name
        return False


def _writer(path: str, stages: Mapping[str, Any]) -> str:
    for name, stage in stages.items():
        for output in stage.get("done", {}).get("outputs", ()):
            if f"{path}/".startswith(f"{output}/"):
                return repr(name)
    return f"for {path!r}"
