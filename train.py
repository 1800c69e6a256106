"""Train any stage: `python train.py --config configs/tiny/lora.yaml [--key value ...]`."""

from delta_transcoders.command import run
from lightning_modules.commands import train as main

if __name__ == "__main__":
    run(main, is_stage=True)
