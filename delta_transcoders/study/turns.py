"""Which stages of a study may run at once, and on how many threads.

A stage waits for all that it needs. A module also waits for what stands before it in its study: it may read
more than it names, as a report reads the record. Stages that write into one folder take turns, and so do
those whose memory the machine does not have together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from delta_transcoders.study.environment import n_cpus
from delta_transcoders.study.plan import Graph, Step
from delta_transcoders.study.study_file import SCRIPTS


def needs_of(graph: Graph, steps: Sequence[Step]) -> dict[str, set[str]]:
    """By label, the stages among some, in their order, that each waits for."""
    needs: dict[str, set[str]] = {}
    for step in steps:
        stage = step.stage
        needs[stage.label] = graph.needed(stage.label) & needs.keys()
        if stage.run not in SCRIPTS:
            needs[stage.label] |= {s for s in needs if graph.steps[s].stage.study == stage.study}
        needs[stage.label] -= {stage.label}
    return needs


def next_step(
    waiting: Sequence[Step],
    running: Sequence[Step],
    needs: Mapping[str, Collection[str]],
    memory: Mapping[str, float],
    room: float,
) -> Step | None:
    """The first that may start beside those that run; None where each has to wait.

    Args:
        memory: of each at its peak, in GB, by label; 0 where it is not known.
        room: what the machine has, in GB. A stage that needs more is not kept from running alone.
    """
    unfinished = {step.stage.label for step in (*waiting, *running)}
    held = set().union(*(step.holds for step in running))
    room -= sum(memory[step.stage.label] for step in running)
    for step in waiting:
        label = step.stage.label
        fits = not running or memory[label] <= room
        if fits and unfinished.isdisjoint(needs[label]) and held.isdisjoint(step.holds):
            return step
    return None


def least_seconds(
    needs: Mapping[str, Collection[str]], seconds: Mapping[str, float], n_jobs: int
) -> float:
    """What stages take together, at least: the longest chain that wait for each other, or all shared out.

    >>> least_seconds({"a": [], "b": ["a"], "c": ["a"]}, {"a": 4, "b": 3, "c": 1}, 2)
    7
    >>> least_seconds({"a": [], "b": [], "c": []}, {"a": 4, "b": 3, "c": 3}, 2)
    5.0
    """
    ends: dict[str, float] = {}
    for label in needs:
        ends[label] = seconds[label] + max((ends[other] for other in needs[label]), default=0)
    return max(*ends.values(), sum(seconds.values()) / n_jobs)


def share_of_cpus(n_jobs: int) -> dict[str, str]:
    """What bounds the threads of each of several stages at once; one alone takes what there is."""
    return {} if n_jobs == 1 else {"OMP_NUM_THREADS": str(max(1, n_cpus() // n_jobs))}
