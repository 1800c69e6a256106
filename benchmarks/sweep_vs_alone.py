"""Does a variant of a sweep end where it would end alone, and how much faster is the sweep?

    OMP_NUM_THREADS=1 python benchmarks/sweep_vs_alone.py runs/tiny [--require 3]

Trains every (layer, d_new, percentile) of `configs/tiny/sweep.yaml` in one run, then each of them in a
run of its own, in one process on the same machine. Only the training loops are timed, validations
included; imports, the hook-site check and the caching of residuals are not. Needs `make sweep` first.
Prints both times, on the clock and of the processor (which other programs hardly change), and the
largest relative difference in FVU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="a study that has its sweep, for example runs/tiny")
    parser.add_argument(
        "--require", type=float, help="fail where the sweep is not so many times as fast"
    )
    parser.add_argument("--tolerance", type=float, default=0.02, help="of the FVU (.02)")
    args = parser.parse_args()

    import train
    from benchmarks.loop_time import LoopTime
    from delta_transcoders.dictionaries.delta import load_delta

    def fit(output: Path, options: dict) -> tuple[float, float]:
        """Wall and processor seconds with the sweep's configuration and these options."""
        given = {
            "config": ROOT / "configs/tiny/sweep.yaml",
            "study": args.study,
            "model.output": output,
            "trainer.logger": "false",
            "trainer.enable_checkpointing": "false",
            "trainer.callbacks": "benchmarks.loop_time.LoopTime",
            "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": output,
        }
        cli = train.main([f"--{key}={value}" for key, value in (given | options).items()])
        (timer,) = (c for c in cli.trainer.callbacks if isinstance(c, LoopTime))
        return timer.wall, timer.processor

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "sweep"
        fit(Path(folder) / "warm_up", {"data.passes": 1})
        together = fit(whole, {})
        fvus = {}
        for path in whole.glob("d*/layer_*"):
            config = load_delta(path)[1]
            key = (config.layer, config.d_new, config.percentile)
            fvus[key] = config.measured["fvu_full"]
        apart, worst = (0.0, 0.0), 0.0
        layers, widths, percentiles = (sorted(set(values)) for values in zip(*fvus, strict=True))
        for layer, width, percentile in itertools.product(layers, widths, percentiles):
            output = Path(folder) / "alone"
            options = {
                "data.layers": f"[{layer}]",
                "data.percentiles": f"[{percentile}]",
                "model.d_new": f"[{width}]",
            }
            apart = tuple(a + b for a, b in zip(apart, fit(output, options), strict=True))
            alone = load_delta(output / f"layer_{layer}")[1].measured["fvu_full"]
            difference = abs(fvus[layer, width, percentile] / alone - 1)
            worst = max(worst, difference)
            print(
                f"layer {layer} d_new {width:3} p{percentile:g}: FVU in the sweep "
                f"{fvus[layer, width, percentile]:.5f}, alone {alone:.5f} ({difference:.2%})"
            )
    ratios = [a / b for a, b in zip(apart, together, strict=True)]
    print(f"\n{len(fvus)} variants; largest difference in FVU {worst:.2%}")
    for name, one, other, ratio in zip(("wall", "processor"), together, apart, ratios, strict=True):
        print(f"{name}: together {one:.1f} s, one by one {other:.1f} s, {ratio:.1f} times as fast")
    missed = worst > args.tolerance or (args.require and min(ratios) < args.require)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
