"""Can the study's task make its examples, and the model's tokenizer read them?"""

from __future__ import annotations

from typing import Any

from delta_transcoders.study.check.sources import FINETUNE, stages_with_options, task_of
from delta_transcoders.study.plan import Graph

N_EXAMPLES = 24


def tasks_of(graph: Graph) -> list[tuple[dict[str, Any], str]]:
    """Tasks that a stage finetunes on, each with the model whose tokenizer reads its examples."""
    found = []
    for step in stages_with_options(graph):
        values = step.config.values
        spec, model = task_of(values), values.get("data.model")
        if spec and model and values.get("data.class_path") == FINETUNE:
            if values.get("data.jsonl"):
                spec["jsonl"] = values["data.jsonl"]
            if (spec, model) not in found:
                found.append((spec, model))
    return found


def check_task(spec: dict[str, Any], model: str) -> str:
    """
    Raises:
        FileNotFoundError, ConnectionError: what the task reads is not to be had.
        ValueError: options that it refuses, a file that it cannot read, or prompts that are messages, with
            a tokenizer that has no chat template.
    """
    from delta_transcoders.language_models import load_tokenizer, tokenize
    from delta_transcoders.own_study.file import make_task

    task = make_task(spec)
    path = spec.get("jsonl") or task.jsonl
    if path is None:
        examples = task.generate(N_EXAMPLES, 2, 2, 0)["train"]
    else:
        examples = list(task.read(path).values())[:N_EXAMPLES]
    rows = tokenize(load_tokenizer(model), task, examples)
    longest = max(len(row.prompt_ids) + len(row.target_ids) for row in rows)
    kind = "texts" if isinstance(examples[0].prompt, str) else "messages"
    return f"{len(rows)} examples read as {kind}, of {longest} tokens at most"
