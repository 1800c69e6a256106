"""Time one stage: `python -m delta_transcoders.report.stage_times run STUDY NAME -- COMMAND ...`.

Appends to `STUDY/stage_times.csv` (stage, seconds) when the command succeeds.
"""

from __future__ import annotations

import argparse
import csv
import signal
import subprocess
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", choices=("run",))
    parser.add_argument("study", help="folder of a study, for example runs/tiny")
    parser.add_argument("name", help="of the stage")
    parser.add_argument("command", nargs="+", help="what is timed, after --")
    args = parser.parse_args()
    study, name, command = args.study, args.name, args.command
    print(f"== {name}: {' '.join(command)}", flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(command)
    for signum in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # the stage says how to go on, and then we end too
        signal.signal(signum, lambda signum, frame: process.send_signal(signum))
    status = process.wait()
    seconds = time.perf_counter() - started
    if status == 0:
        path = Path(study) / "stage_times.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(f"{name},{seconds:.1f}\n")
        print(f"== {name}: {seconds:.0f} s", flush=True)
    return status if status >= 0 else 128 - status


def read_times(study: str | Path) -> dict[str, float]:
    """Seconds of the last successful run of each stage."""
    path = Path(study) / "stage_times.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as handle:
        return {name: float(seconds) for name, seconds in csv.reader(handle)}


if __name__ == "__main__":
    raise SystemExit(main())
