"""Split a file of examples by wording: `python -m delta_transcoders.own_study.split --help`.

A delta is trained on some wordings and measured on others. The wording of an example is its `group`, or
else its prompt with numbers masked: `What is 12 * 34?` and `What is 5 * 6?` are one. No two splits share a
wording or a prompt. Writes `train.jsonl`, `validation.jsonl` and `evaluation.jsonl`; and `splits.csv`, how
many examples, wordings and tokens each has.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.files import finish_output, new_output
from delta_transcoders.own_study.file import make_task
from delta_transcoders.own_study.wordings import split_by_wording
from delta_transcoders.report.tables import format_table, write_table
from delta_transcoders.tasks.task import Task, subsets_of
from delta_transcoders.tasks.wordings import wording

KIND = "own_study_examples"
COLUMNS = ("split", "subset", "n_examples", "n_wordings", "n_tokens")


def write_split(
    output: Path,
    task: Task,
    examples: str | Path,
    tokenizer: str,
    *,
    n_evaluation: int = 200,
    seed: int = 0,
) -> list[dict]:
    """Write the splits of a file of examples.

    Args:
        task: reads them, and says what is held out.
        tokenizer: folder or hub id of what counts the tokens.

    Returns:
        The rows of `splits.csv`.

    Raises:
        FileNotFoundError, ConnectionError: a model that is not to be had.
        ValueError: see `split_by_wording`.
    """
    from delta_transcoders.language_models import load_tokenizer, tokenize

    examples = list(task.read(examples).values())
    splits = split_by_wording(task, examples, n_evaluation, seed)
    counted = tokenize(load_tokenizer(tokenizer), task, examples)
    tokens = dict(zip(examples, counted, strict=True))
    rows = [
        {
            "split": name,
            "subset": subset,
            "n_examples": len(mine),
            "n_wordings": len(set(map(wording, mine))),
            "n_tokens": sum(len(tokens[e]) for e in mine),
        }
        for name, part in splits.items()
        for subset in subsets_of(examples)
        if (mine := [e for e in part if e.subset == subset])
    ]
    with new_output(output, KIND) as folder:
        for name, part in splits.items():
            task.write(folder / f"{name}.jsonl", part)
        write_table(folder / "splits.csv", COLUMNS, rows)
        finish_output(output)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--task", required=True, type=json.loads, help="class_path and init_args, as JSON"
    )
    parser.add_argument("--examples", required=True, help="file that the task reads")
    parser.add_argument("--tokenizer", required=True, help="folder or hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--n_evaluation", type=int, default=200, help="of each subset at most")
    parser.add_argument("--seed", type=int, default=0)
    args = vars(parser.parse_args())
    task = make_task(args.pop("task"))
    rows = write_split(task=task, **args)
    print(format_table([{k: str(v) for k, v in row.items()} for row in rows], COLUMNS))
    measured = {row["subset"] for row in rows if row["split"] == "evaluation"}
    for subset in sorted({row["subset"] for row in rows} - measured):
        print(f"no wording of the subset {subset!r} is left for evaluation: no table has it")


if __name__ == "__main__":
    run(main)
