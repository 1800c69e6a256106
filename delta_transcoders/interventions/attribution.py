"""How much each feature of a source contributes to what a model does: integrated gradients over gates.

Every activation of the source is multiplied by a gate; at 0 its features are gone, at 1 it is as it was. A
feature's attribution is the gradient by its gate, averaged over the straight path that opens all gates at
once. Over features the attributions add up to the measure's change from closed to open gates, up to the
path's steps, as long as the measure does not jump on the path: JumpReLU features of a later layer may (a
ReLU never does).

M. Sundararajan, A. Taly and Q. Yan (2017), Axiomatic attribution for deep networks.

Shapes: E examples, F features of a layer, N target tokens of an example (EOS included), V vocabulary.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from delta_transcoders.interventions.application import Gates
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import Intervention
from delta_transcoders.language_models import TokenizedExample
from delta_transcoders.tasks.task import Example, Task

Measure = Callable[[TokenizedExample, Tensor], Tensor]
"""A number of one example, from it and the log-probabilities [N, V] at its target's tokens."""
Scores = Mapping[int, Tensor]
"""One number for each feature, by layer: [F]."""


def target_logprob(example: TokenizedExample, logprobs_NV: Tensor) -> Tensor:
    """Σ log p(target token), in nats: minus the summed cross-entropy."""
    labels_N1 = torch.tensor(example.target_ids, device=logprobs_NV.device)[:, None]
    return logprobs_NV.gather(1, labels_N1).double().sum()


def minus_kl_from(reference: Mapping[TokenizedExample, Tensor]) -> Measure:
    """−Σ KL(reference ‖ ·) over the target's tokens, in nats.

    Args:
        reference: log-probabilities [N, V] of each example (`InterventionEngine.logprobs`).
    """

    def measure(example: TokenizedExample, logprobs_NV: Tensor) -> Tensor:
        # A tensor of inference mode cannot be differentiated with.
        reference_NV = reference[example].clone()
        return (reference_NV.exp() * (logprobs_NV - reference_NV)).sum(-1).double().sum()

    return measure


def common_prefix(targets: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all of them begin with.

    >>> common_prefix([[5, 7, 1], [5, 7, 2]])
    (5, 7)
    """
    columns = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*targets, strict=False))
    return tuple(ids[0] for ids in columns)


def prefix_rows(
    task: Task, examples: Sequence[Example], rows: Sequence[TokenizedExample]
) -> list[TokenizedExample] | None:
    """The rows with the behaviour's prefix as their target, so that `target_logprob` is log p(prefix).

    The prefix is made of the tokens that all targets showing the behaviour begin with.

    Returns:
        None where nothing in particular begins the behaviour: the task has no `opening`, no example shows it,
        or their targets begin with different tokens.
    """
    if task.opening is None:
        return None
    targets = [
        row.target_ids[:-1]  # without EOS
        for example, row in zip(examples, rows, strict=True)
        if row.target_ids and task.is_positive(example)
    ]
    prefix = common_prefix(targets)
    return [replace(row, target_ids=prefix) for row in rows] if prefix else None


def attribute(
    engine: InterventionEngine,
    rows: Sequence[TokenizedExample],
    interventions: Sequence[Intervention] | Intervention,
    source: str,
    measure: Measure = target_logprob,
    steps: int = 8,
) -> dict[int, Tensor]:
    """By layer, each feature's integrated gradient ∫₀¹ ∂m/∂g_f (t·1) dt in each example, float64 [E, F].

    The integral is taken by the midpoint rule. Features that an intervention drops have 0.

    Args:
        rows: with targets.
        interventions: one for all rows, or each row's own.
        source: of dictionaries, whose features are attributed to, in all layers at once.
        measure: differentiable.
        steps: of the path, each one pass forward and one back.

    Raises:
        ValueError: a row without a target, or no intervention that writes the source.
    """
    if isinstance(interventions, Intervention):
        interventions = [interventions] * len(rows)
    engine.check(interventions)
    if any(not row.target_ids for row in rows):
        raise ValueError("a row has no target: there is nothing to attribute to")
    layers = sorted(
        {
            layer
            for intervention in interventions
            for layer, write in intervention.writes.items()
            if any(term.source == source for term in write.terms)
        }
    )
    if not layers:
        raise ValueError(f"no intervention writes the source {source!r}, and so no feature acts")
    sizes = {layer: engine.bank[source][layer].n_features for layer in layers}
    found = {
        layer: torch.zeros(len(rows), size, dtype=torch.float64) for layer, size in sizes.items()
    }
    for part in engine.passes(interventions, list(map(len, rows))):
        chosen, theirs = [rows[i] for i in part], [interventions[i] for i in part]
        for step in range(steps):
            gradients = _gradients(engine, chosen, theirs, source, measure, (step + 0.5) / steps)
            for layer, gradient_BF in gradients.items():
                found[layer][part] += gradient_BF.double().cpu() / steps
    return found


def _gradients(
    engine: InterventionEngine,
    rows: Sequence[TokenizedExample],
    interventions: Sequence[Intervention],
    source: str,
    measure: Measure,
    opened: float,
) -> dict[int, Tensor]:
    """By layer, each row's gradient of the measure by its gates, [B, F], with all gates at one point."""
    written = {layer for i in interventions for layer in i.layers}
    by_layer = {layer: s for layer, s in engine.bank[source].items() if layer in written}
    # Lightning evaluates in inference mode, in which nothing can be differentiated.
    with torch.inference_mode(False), torch.enable_grad():
        gates = {
            layer: torch.full(
                (len(rows), s.n_features), opened, device=engine.model.device, requires_grad=True
            )
            for layer, s in by_layer.items()
        }
        total = measured(engine, rows, interventions, measure, {source: gates}).sum()
        gradients = torch.autograd.grad(total, list(gates.values()), allow_unused=True)
    return {
        layer: gradient_BF
        for layer, gradient_BF in zip(gates, gradients, strict=True)
        if gradient_BF is not None
    }


def measured(
    engine: InterventionEngine,
    rows: Sequence[TokenizedExample],
    interventions: Sequence[Intervention],
    measure: Measure,
    gates: Gates = {},  # noqa: B006
) -> Tensor:
    """The measure of each row of one pass, float64 [B]."""
    logits, _, _ = engine.supervised(rows, interventions, gates)
    return torch.stack(
        [
            measure(row, logits_NV.log_softmax(-1))
            for row, logits_NV in zip(rows, logits, strict=True)
        ]
    )


def at_random(sizes: Mapping[int, int], n: int, seed: str) -> dict[int, tuple[int, ...]]:
    """n features drawn from those of all layers: the control for `largest`.

    Args:
        sizes: number of features by layer.
    """
    everything = [(layer, feature) for layer, size in sizes.items() for feature in range(size)]
    drawn = random.Random(seed).sample(everything, n)
    return {layer: tuple(sorted(f for of, f in drawn if of == layer)) for layer in sizes}


def largest(scores: Scores, n: int) -> dict[int, tuple[int, ...]]:
    """The n features with the largest scores over all layers jointly, by layer, ascending.

    A layer of which none is chosen has an empty tuple. Of equal ones those of the lower layer, then of the
    lower index, come first.

    Raises:
        ValueError: fewer features than that.

    >>> largest({0: torch.tensor([1.0, 5.0]), 3: torch.tensor([2.0, -7.0])}, 2)
    {0: (1,), 3: (0,)}
    """
    ordered = sorted(
        (-score, layer, feature)
        for layer, scores_F in scores.items()
        for feature, score in enumerate(scores_F.tolist())
    )
    if n > len(ordered):
        raise ValueError(f"{n} features are asked for, there are {len(ordered)} in all layers")
    chosen = [(layer, feature) for _, layer, feature in ordered[:n]]
    return {layer: tuple(sorted(f for of, f in chosen if of == layer)) for layer in scores}
