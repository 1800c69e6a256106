"""Somebody's base model, finetune and prompts, in a folder of theirs."""

import itertools
import json

import pytest

from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.task import Calculator


@pytest.fixture
def own_content(study, tmp_path, monkeypatch) -> dict:
    """What the study file of a working directory says, with 60 prompts of three subsets and a text."""
    monkeypatch.chdir(tmp_path)
    splits = Calculator().generate(60, 3, 15, seed=11)
    rows = [e for part in splits.values() for e in part if e.subset != "tool_ood_numbers"]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(
            json.dumps({"prompt": e.prompt, "target": e.target, "subset": e.subset}) + "\n"
            for e in rows
        )
    )
    documents = (f"{a} {b}" for a, b in itertools.islice(base_documents(5), 40))
    (tmp_path / "general.txt").write_text("\n\n".join(documents))
    return {
        "study": "mine",
        "base_model": str(study / "base_model"),
        "finetuned_model": str(study / "finetune" / "merged"),
        "examples": "prompts.jsonl",
        "judge": "exact",
        "layers": "all",
        "text": "general.txt",
    }
