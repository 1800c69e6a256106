"""Integrated gradients over gates: exact where the model is linear, complete, and like single ablations."""

import math
from dataclasses import replace

import pytest
import torch

from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.interventions.attribution import (
    at_random,
    attribute,
    largest,
    measured,
    minus_kl_from,
    prefix_rows,
    target_logprob,
)
from delta_transcoders.interventions.intervention import Intervention, Term, Write, from_spec
from delta_transcoders.interventions.sources import DictionarySource
from delta_transcoders.metrics.feature_effects import spearman
from delta_transcoders.tasks.calculator.task import Calculator

ALL = (0, 1, 2)
ADDED = Intervention("added", dict.fromkeys(ALL, Write(1.0, (Term("delta"),))))
"""The model and a delta."""


def ends(engine, rows, intervention, measure=target_logprob, features=6) -> list[torch.Tensor]:
    """The measure of each row with all gates closed, and with all open."""
    values = []
    for gate in (0.0, 1.0):
        gates = {layer: torch.full((len(rows), features), gate) for layer in intervention.layers}
        applied = [intervention] * len(rows)
        values.append(measured(engine, rows, applied, measure, {"delta": gates}).detach())
    return values


def without(intervention: Intervention, layer: int, feature: int) -> Intervention:
    write = intervention.writes[layer]
    terms = tuple(
        replace(t, drop_features=(feature,)) if t.source == "delta" else t for t in write.terms
    )
    return replace(intervention, writes=intervention.writes | {layer: replace(write, terms=terms)})


@pytest.fixture
def relu(engine):
    """The engine with deltas that are ReLU, so that nothing jumps."""
    for source in engine.bank["delta"].values():
        source.transcoder.threshold = torch.zeros(6)
    return engine


def test_it_is_exact_where_the_measure_is_linear_in_what_is_written(engine, rows):
    """The last layer, a final norm that does nothing, and a difference of logits."""
    engine.model.model.norm.forward = lambda hidden: hidden
    engine.model.config.final_logit_softcapping = None

    def difference(example, logprobs_NV):
        return (logprobs_NV[:, 7] - logprobs_NV[:, 8]).double().sum()

    last = Intervention("last", {2: Write(1.0, (Term("delta", 0.5),))})
    (found,) = attribute(engine, rows, last, "delta", difference, steps=1).values()
    with torch.no_grad():
        full = measured(engine, rows, [last] * 3, difference)
        for feature in range(6):
            ablated = measured(engine, rows, [without(last, 2, feature)] * 3, difference)
            difference_E = (full - ablated) / full.abs().max()  # float32 rounds sums of this size
            relative_E = found[:, feature] / full.abs().max()
            torch.testing.assert_close(relative_E, difference_E, atol=1e-6, rtol=0)
    assert (found.abs() > 1e-3 * full.abs().max()).any(1).all()


def test_attributions_add_up_to_what_opening_the_gates_changes(relu, rows):
    found = attribute(relu, rows, ADDED, "delta", steps=64)
    assert {layer: tuple(values.shape) for layer, values in found.items()} == {
        layer: (3, 6) for layer in ALL
    }
    closed, opened = ends(relu, rows, ADDED)
    total = sum(values_EF.sum(1) for values_EF in found.values())
    assert (opened - closed).abs().min() > 0.2  # two hundred times what is tolerated
    torch.testing.assert_close(total, opened - closed, rtol=1e-3, atol=1e-3)


def test_open_gates_are_the_intervention_and_closed_ones_its_removal(engine, rows):
    closed, opened = ends(engine, rows, from_spec("full", ALL))
    for gates, name in ((closed, "no_delta"), (opened, "full")):
        scores = engine.teacher_forced(rows, [from_spec(name, ALL)] * 3)
        expected = torch.tensor([-score.nll for score in scores], dtype=torch.float64)
        torch.testing.assert_close(gates, expected, atol=1e-5, rtol=0)


def test_gradients_pass_through_the_layers_above(relu, rows):
    """A gate of the first layer changes what the features above read."""
    one = attribute(relu, rows, ADDED, "delta", steps=1)[0]
    step, expected = 1e-2, torch.zeros(3, dtype=torch.float64)
    for sign in (1, -1):
        gates = {layer: torch.full((3, 6), 0.5) for layer in ALL}
        gates[0][:, 2] += sign * step
        with torch.no_grad():
            values = measured(relu, rows, [ADDED] * 3, target_logprob, {"delta": gates})
        expected += sign * values / (2 * step)
    torch.testing.assert_close(one[:, 2], expected, rtol=2e-2, atol=2e-2)


def test_a_row_is_attributed_as_it_is_alone_and_in_inference_mode(engine, rows):
    interventions = [from_spec("full", [0, 2]), from_spec("full", [1]), from_spec("raw", [])]
    with torch.inference_mode():
        together = attribute(engine, rows, interventions, "delta", steps=2)
    for row, intervention in enumerate(interventions[:2]):
        alone = attribute(engine, [rows[row]], intervention, "delta", steps=2)
        for layer, values_EF in together.items():
            expected = alone.get(layer, torch.zeros(1, 6, dtype=torch.float64))[0]
            torch.testing.assert_close(values_EF[row], expected, atol=1e-4, rtol=1e-4)
    assert all((values_EF[2] == 0).all() for values_EF in together.values())


def test_dropped_features_have_none_and_kept_ones_are_recomputed(engine, rows):
    kept = Intervention(
        "kept", dict.fromkeys(ALL, Write(1.0, (Term("delta", keep_features=(1, 4)),)))
    )
    found = attribute(engine, rows, kept, "delta", steps=2)
    whole = attribute(engine, rows, ADDED, "delta", steps=2)
    for layer, values_EF in found.items():
        assert (values_EF[:, [0, 2, 3, 5]] == 0).all()
        assert not torch.allclose(values_EF[:, [1, 4]], whole[layer][:, [1, 4]])


def test_minus_kl_is_the_engine_s_own(engine, rows):
    reference = engine.logprobs(rows)
    with torch.no_grad():
        found = measured(engine, rows, [ADDED] * 3, minus_kl_from(reference))
    scores = engine.teacher_forced(rows, [ADDED] * 3)
    expected = torch.tensor([-score.kl for score in scores], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        found = attribute(engine, rows, ADDED, "delta", minus_kl_from(reference), steps=1)
    assert all(values_EF.any() for values_EF in found.values())


def test_kl_from_another_model_s_distribution(engine, rows):
    """From the intervention's own distribution: 0 for itself, and what it costs for raw."""
    with torch.no_grad():
        reference = {row: engine.supervised([row], [ADDED])[0][0].log_softmax(-1) for row in rows}
    added, raw = (
        engine.teacher_forced(rows, [i] * 3, reference) for i in (ADDED, from_spec("raw", []))
    )
    for mine, plain in zip(added, raw, strict=True):
        assert mine.kl == pytest.approx(0, abs=1e-4)
        assert plain.kl > 0.1


def test_it_agrees_with_single_ablations(relu, rows):
    found = attribute(relu, rows, ADDED, "delta", steps=16)
    effects = {}
    with torch.no_grad():
        full = measured(relu, rows, [ADDED] * 3, target_logprob).mean()
        for layer in ALL:
            for k in range(6):
                ablated = measured(relu, rows, [without(ADDED, layer, k)] * 3, target_logprob)
                effects[layer, k] = float(full - ablated.mean())
    ours = [float(found[layer][:, k].mean()) for layer, k in effects]
    rho = spearman(ours, list(effects.values()))
    print(f"\nSpearman's ρ of attributions and single ablations, 18 random features: {rho:.2f}")
    assert rho > 0


def test_the_prefix_is_what_all_answers_that_show_the_behaviour_begin_with(
    tokenizer, examples, rows
):
    task = Calculator()
    prefixed = prefix_rows(task, examples, rows)
    (prefix,) = {row.target_ids for row in prefixed}
    assert tokenizer.decode(prefix) == "<tool_call>calculator("
    assert [row.prompt_ids for row in prefixed] == [row.prompt_ids for row in rows]
    assert prefix_rows(task, examples[1:2], rows[1:2]) is None
    task.opening = None
    assert prefix_rows(task, examples, rows) is None


def test_a_random_choice_has_the_number_and_another_seed_another_choice():
    sizes = {0: 6, 2: 6}
    drawn = [at_random(sizes, 5, seed) for seed in ("a", "a", "b")]
    assert drawn[0] == drawn[1] != drawn[2]
    for features in drawn:
        assert list(features) == [0, 2]
        assert sum(map(len, features.values())) == 5


def test_features_are_chosen_over_all_layers(engine):
    scores = {0: torch.tensor([0.0, 3.0, 1.0]), 2: torch.tensor([2.0, -9.0, math.inf])}
    assert largest(scores, 3) == {0: (1,), 2: (0, 2)}
    with pytest.raises(ValueError, match="7 features are asked for, there are 6"):
        largest(scores, 7)


def test_what_cannot_be_attributed(engine, rows):
    with pytest.raises(ValueError, match="no intervention writes the source 'delta'"):
        attribute(engine, rows, from_spec("no_delta", ALL), "delta")
    bare = [replace(rows[0], target_ids=())]
    with pytest.raises(ValueError, match="a row has no target"):
        attribute(engine, bare, ADDED, "delta")


def test_a_dictionary_by_gates_is_the_sum_of_its_features_by_their_gates():
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = (torch.randn(4, 4, generator=generator) for _ in range(2))
    zeros = torch.zeros(4)
    source = DictionarySource(
        Transcoder(W_enc=W_enc, b_enc=zeros, W_dec=W_dec, b_dec=zeros, threshold=zeros)
    )
    x, gates = torch.randn(5, 4, generator=generator), torch.tensor([0.0, 0.5, 1.0, 2.0])
    written, a = source(x, gates.expand(5, 4))
    torch.testing.assert_close(written, ((x @ W_enc).relu() * gates) @ W_dec)
    torch.testing.assert_close(a, (x @ W_enc).relu() * gates)
