"""How much faster is a training step of a delta on stored residuals than one that runs its base?

    OMP_NUM_THREADS=2 python benchmarks/delta_step.py [--require 60]

Both steps are timed in one process, in turn, on random data at the shape of Gemma 2 2B with Gemma
Scope's 16k transcoders (float32, CPU or GPU), forward, backward and Adam included:
  with base:  the original study's: base(x) without gradients, then plain autograd on
              ‖y − base(x) − delta(x)‖² + L1, unit decoder rows (`delta_original.yaml`);
  stored r:   `DictionaryStack` with one variant, BatchTopK and clipping as in `delta.yaml`, reading
              x and r.
Each reads two stored tensors per token, so what reading costs is the same and left out. Printed beside
the times are the multiplications as dense products need them: 4 · tokens · d_model · base features for
the base, 10 · tokens · d_model · d_new for plain autograd on the delta (counting an addition as one
too). `stored r` needs fewer: only active features' rows are added up in its gradients.

On a busy machine wall time says nothing: the threads wait for each other's turn. `--clock main-thread`
measures the time that the main thread computes, its share of parallel regions and all that is serial,
which is the wall time of an idle machine but for waking threads and uneven shares. Set
`OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0` with it, so that waiting is not counted.
"""

import argparse
import statistics
import sys
import time


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, meaning in (
        ("d-model", 2304, "width of x and of the output"),
        ("base-features", 16384, "features of the frozen base"),
        ("d-new", 128, "features of the delta"),
        ("tokens", 2048, "tokens per step"),
        ("k", 8, "active features per token of the delta"),
        ("base-steps", 5, "timed steps that run the base"),
        ("delta-steps", 60, "timed steps on stored residuals"),
        ("warmup", 2, "untimed steps of each before"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--clock", choices=("wall", "main-thread"), default="wall")
    parser.add_argument("--device", default="cpu", help="torch device (cpu)")
    parser.add_argument(
        "--require", type=float, default=0.0, help="exit with an error if the ratio is lower"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    import torch

    from delta_transcoders.dictionaries.sparsity import SparsityConfig
    from delta_transcoders.dictionaries.stack import DictionaryStack, Variant
    from delta_transcoders.dictionaries.transcoder import Transcoder

    torch.manual_seed(0)
    torch.set_default_device(arguments.device)
    d_model, n_base, d_new = arguments.d_model, arguments.base_features, arguments.d_new
    base = Transcoder(
        W_enc=torch.randn(d_model, n_base) / d_model**0.5,
        b_enc=torch.zeros(n_base),
        W_dec=torch.randn(n_base, d_model) / d_model**0.5,
        b_dec=torch.zeros(d_model),
        threshold=torch.full((n_base,), 2.5),
    )
    x_BI = torch.randn(arguments.tokens, d_model)
    y_BD = torch.randn(arguments.tokens, d_model)
    r_BD = y_BD - base(x_BI)

    W_enc = torch.nn.Parameter(torch.randn(d_model, d_new) / d_model**0.5)
    b_enc = torch.nn.Parameter(torch.zeros(d_new))
    W_dec = torch.nn.Parameter(torch.randn(d_new, d_model) / d_model**0.5)
    b_dec = torch.nn.Parameter(torch.zeros(d_model))
    adam_with_base = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], betas=(0.0, 0.999), fused=True)

    def step_with_base() -> None:
        with torch.no_grad():
            base_BD = base(x_BI)
        z_BF = x_BI @ W_enc + b_enc
        a_BF = torch.where(z_BF > 1e-3, z_BF, 0)
        loss = (y_BD - base_BD - a_BF @ W_dec - b_dec).square().mean() + 1e-3 * a_BF.mean()
        adam_with_base.zero_grad()
        loss.backward()
        adam_with_base.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    with torch.device("cpu"):  # first weights are drawn on the CPU on every machine
        stack = DictionaryStack(
            [Variant(key="layer_0", layer=0, target=0, l0=arguments.k)],
            d_in=d_model,
            d_out=d_model,
            n_features=d_new,
            sparsity=SparsityConfig(mode="batch_topk"),
            seed=0,
        )
    stack.to(arguments.device).calibrate(x_BI[None], r_BD[None])
    adam_stored = torch.optim.Adam(stack.parameters(), fused=True)

    def step_stored() -> None:
        loss = stack.training_loss(x_BI[None], r_BD[None])
        adam_stored.zero_grad()
        loss.total.backward()
        stack.prepare_gradients(max_norm=1.0)
        adam_stored.step()
        stack.finish_step()

    clock = time.perf_counter if arguments.clock == "wall" else time.thread_time

    def seconds(step) -> float:
        start = clock()
        step()
        if arguments.device != "cpu":
            torch.accelerator.synchronize()
        return clock() - start

    for _ in range(arguments.warmup):
        step_with_base()
        step_stored()
    # Interleaved, so that a slow minute of the machine hits both.
    times_base, times_stored = [], []
    for _ in range(arguments.base_steps):
        times_base.append(seconds(step_with_base))
        times_stored += [
            seconds(step_stored) for _ in range(arguments.delta_steps // arguments.base_steps)
        ]
    with_base, stored = statistics.median(times_base), statistics.median(times_stored)
    dense_stored = 10e-9 * arguments.tokens * d_model * d_new
    dense_base = dense_stored + 4e-9 * arguments.tokens * d_model * n_base

    print(
        f"{arguments.tokens} tokens, d_model {d_model}, {n_base} base features, {d_new} new, "
        f"float32, {arguments.device}, {torch.get_num_threads()} threads, {arguments.clock} clock"
    )
    print(f"{'step':<12}{'median':>12}{'least':>12}{'timed':>8}{'dense GFLOP':>14}{'GFLOP/s':>10}")
    for name, times, gflop in (
        ("with base", times_base, dense_base),
        ("stored r", times_stored, dense_stored),
    ):
        median = statistics.median(times)
        print(
            f"{name:<12}{median:>10.4f} s{min(times):>10.4f} s{len(times):>8}{gflop:>14.1f}"
            f"{gflop / median:>10.0f}"
        )
    ratio = with_base / stored
    print(
        f"ratio of the medians {ratio:.1f}, of the least {min(times_base) / min(times_stored):.1f}"
    )
    if ratio < arguments.require:
        print(f"the ratio is below the required {arguments.require:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
