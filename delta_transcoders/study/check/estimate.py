"""What a study will take, from what a pass of few prompts and steps took: an estimate, nothing more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from delta_transcoders.files import free_bytes
from delta_transcoders.report.tables import format_table
from delta_transcoders.study.check.passing import Passed
from delta_transcoders.study.check.small import MAX_NEW_TOKENS
from delta_transcoders.study.environment import memory_bytes
from delta_transcoders.study.plan import Graph, sizes
from delta_transcoders.study.records import Record

GB = 1e9
METHOD = f"""\
An estimate. Time: what a stage took here, and the batches, prompts and texts that the real one has more
of, at the seconds that each took here. Not in it: early stopping, the choice of features between budgets,
dictionaries applied to the whole cache, answers longer or shorter than {MAX_NEW_TOKENS} tokens, other work on
the machine. Memory: the most seen here, and the rest of the buffer that shuffles a cache. Disk: what was
written here; caches grow with their texts."""


class Estimate(NamedTuple):
    """Of one stage; memory in bytes, None where none was measured."""

    label: str
    pass_seconds: float
    seconds: float
    megabytes: float
    peak: float | None = None
    peak_device: float | None = None


def estimates(passed: Mapping[str, Passed], graph: Graph) -> list[Estimate]:
    """By stage, in the order of the pass."""
    found = []
    for label, one in passed.items():
        if not one.measured:
            found.append(Estimate(label, one.seconds, one.seconds, one.megabytes))
            continue
        capture = passed.get(graph.maker(str(one.step.config.values.get("data.cache"))))
        longer = capture.small.factor if capture else one.small.factor
        megabytes = one.megabytes + one.added * (longer - 1)
        if one.small.kind == "capture":
            megabytes *= longer
        peak = one.measured["peak_bytes"] + _rest_of_buffer(one, longer)
        seconds = max(one.seconds + _more_seconds(one, longer), 0.0)
        device = one.measured["peak_device_bytes"]
        found.append(Estimate(label, one.seconds, seconds, megabytes, peak, device))
    return found


def _more_seconds(one: Passed, longer: float) -> float:
    """What the real stage takes more than the pass.

    Args:
        longer: how many times as long as the pass's the cache is that the stage writes or reads; without
            one how many times as many prompts there are.
    """
    small, measured = one.small, one.measured
    if small.kind in ("evaluation", "capture"):
        return measured["loop_seconds"] * (max(small.factor, longer) - 1)
    batches, held_out = small.batches, small.held_out
    if small.kind == "from_cache":
        batches = small.passes * math.ceil(one.tokens * longer / small.tokens_per_batch)
        held_out = longer
    validation = measured["validation_seconds"] / max(1, measured["validations"])
    return (batches - measured["batches"]) * measured["batch_seconds"] + (
        small.validations * held_out - measured["validations"]
    ) * validation


def _rest_of_buffer(one: Passed, longer: float) -> float:
    """Bytes of the buffer that shuffles a cache, as far as the pass's cache did not fill it."""
    if not one.tokens:
        return 0.0
    held, real = (min(one.small.buffer_tokens, n) for n in (one.tokens, one.tokens * longer))
    return (real - held) * one.cache_megabytes * 1e6 / one.tokens


def table(found: Sequence[Estimate], graph: Graph, records: Mapping[str, Record]) -> str:
    """The estimates, beside what the stages took where they have been run."""
    rows = []
    for one in found:
        step = graph.steps[one.label]
        done = records[step.stage.study].stages.get(step.stage.name, {}).get("done")
        took = f"{sizes(step, records[step.stage.study])[0]:.0f}" if done else ""
        rows.append(
            {
                "stage": one.label,
                "pass s": f"{one.pass_seconds:.0f}",
                "s": f"{one.seconds:.0f}",
                "took s": took,
                "GB": _gigabytes(one.peak),
                "GPU GB": _gigabytes(one.peak_device),
                "MB disk": f"{one.megabytes:.0f}",
            }
        )
    total = {"stage": "together", "s": f"{sum(one.seconds for one in found):.0f}"}
    total["pass s"] = f"{sum(one.pass_seconds for one in found):.0f}"
    total["MB disk"] = f"{sum(one.megabytes for one in found):.0f}"
    columns = ["stage", "pass s", "s", "took s", "GB", "GPU GB", "MB disk"]
    return format_table([*rows, dict.fromkeys(columns, "") | total], columns)


def _gigabytes(size: float | None) -> str:
    return "" if size is None else f"{size / GB:.1f}"


def check_fits(found: Sequence[Estimate], folder: str) -> str:
    """Compare with what the machine has.

    Raises:
        OSError: too little memory or disk; names the stage, and what helps.
    """
    largest = max(found, key=lambda one: one.peak or 0)
    memory = memory_bytes()
    if (largest.peak or 0) > memory:
        raise OSError(
            f"{largest.label} needs about {largest.peak / GB:.1f} GB of memory, this machine has "
            f"{memory / GB:.1f}: fewer layers, rows a pass or buffer_tokens, or a larger machine"
        )
    free = free_bytes(folder)
    disk = sum(one.megabytes for one in found) * 1e6
    if disk > free:
        raise OSError(
            f"the study needs about {disk / GB:.1f} GB of disk, {free / GB:.1f} GB are free: make room, or "
            "give a folder on another disk (--study)"
        )
    return (
        f"{_gigabytes(largest.peak) or '?'} GB of {memory / GB:.0f} GB of memory ({largest.label}), "
        f"{disk / GB:.1f} of {free / GB:.0f} GB of disk, "
        f"{sum(one.seconds for one in found) / 3600:.1f} hours"
    )
