"""Run what is not done of a study: `python study.py --config configs/tiny/study.yaml`."""

from delta_transcoders.command import run
from delta_transcoders.study.__main__ import main

if __name__ == "__main__":
    run(main)
