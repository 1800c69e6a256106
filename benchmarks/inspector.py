"""How long does a study's inspector take to start, and to answer?

    python benchmarks/inspector.py [--study runs/tiny] [--repeats 10]

Start: from a new process to the first request that could be answered. Then, for one prompt: five texts (base
model, finetuned model, without the delta, with it, with half of it) with their probabilities and each token's
features, and the texts of seven α, as the page's slider asks for them. Times are on the wall, the smallest
and the median of the repeats; beside them the processor's own seconds, which other programs do not lengthen.
"""

import argparse
import statistics
import subprocess
import sys
import time

SEVEN = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="runs/tiny", help="folder of a study (runs/tiny)")
    parser.add_argument("--prompt", default="What is 12 * 34?", help="(What is 12 * 34?)")
    parser.add_argument("--repeats", type=int, default=10, help="of each request (10)")
    return parser.parse_args()


def measure_start(study: str) -> tuple[float, float]:
    """Seconds on the wall and of the processor until a new process has opened the study."""
    code = (
        "import sys, time; from delta_transcoders.inspector.command import open_quietly; "
        "open_quietly(sys.argv[1]); print(time.process_time())"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, study], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - began, float(done.stdout)


def main() -> None:
    arguments = parse_arguments()
    wall, processor = measure_start(arguments.study)
    print(f"{'':<12}{'least s':>10}{'median s':>10}{'processor s':>13}")
    print(f"{'start':<12}{wall:>10.2f}{'':>10}{processor:>13.2f}")

    from delta_transcoders.inspector.command import open_quietly
    from delta_transcoders.inspector.request import Request

    session = open_quietly(arguments.study)
    for name, request in {
        "five texts": Request(arguments.prompt, alphas=(0.5,)),
        "seven α": Request(arguments.prompt, conditions=(), alphas=SEVEN),
    }.items():
        walls, processors = [], []
        for _ in range(arguments.repeats + 1):  # the first finds nothing in the machine's caches
            began, used = time.perf_counter(), time.process_time()
            for _ in session.answer(request):
                pass
            walls.append(time.perf_counter() - began)
            processors.append(time.process_time() - used)
        least, median = min(walls[1:]), statistics.median(walls[1:])
        print(f"{name:<12}{least:>10.3f}{median:>10.3f}{min(processors[1:]):>13.3f}")


if __name__ == "__main__":
    main()
