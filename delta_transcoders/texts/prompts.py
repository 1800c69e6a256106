"""Requests of the task, and what is to be told from them, for measuring the base model's dictionaries on.

`python -m delta_transcoders.texts.prompts --help`. They are evaluation examples of one seed of the task: no
finetune is needed, as the base model reads them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from delta_transcoders import files
from delta_transcoders.command import run as run_command
from delta_transcoders.tasks.three_tools.task import ThreeTools

OUTPUT_KIND = "prompts"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write evaluation examples of the three tools, which the dictionaries of the base model "
        "are measured on."
    )
    parser.add_argument(
        "out", type=Path, help="folder to write, for example runs/smollm2_base/prompts"
    )
    parser.add_argument("--replies", required=True, metavar="FILE", help="of the base model")
    parser.add_argument("--n", type=int, default=100, help="of each subset (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    task = ThreeTools(args.replies)
    examples = task.generate(0, 0, args.n, args.seed)["evaluation"]
    with files.new_output(args.out, OUTPUT_KIND) as folder:
        task.write(folder / "evaluation.jsonl", examples)
        files.finish_output(args.out)
    print(f"wrote {len(examples)} examples to {args.out}")


if __name__ == "__main__":
    run_command(main)
