"""Evaluate any stage: `python evaluate.py --config configs/tiny/behaviour.yaml [--key value ...]`."""

from delta_transcoders.command import run
from lightning_modules.commands import evaluate as main

if __name__ == "__main__":
    run(main, is_stage=True)
