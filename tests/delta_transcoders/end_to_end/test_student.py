"""What a student is before training, and that its losses are those of the models that they name."""

import pytest
import torch

from delta_transcoders.end_to_end.budget import attribution_sums
from delta_transcoders.end_to_end.losses import nmse
from delta_transcoders.interventions.intervention import from_spec
from delta_transcoders.language_models import load_model, supervised_logits


def losses_of(student, batch, n_rows, with_streams=True, **how):
    reference = student.reference(batch, with_streams)
    with student.applied(n_rows, **how):
        return reference, student.losses(batch, reference)


def kl_between(p_NV, q_NV):
    p, q = (torch.distributions.Categorical(logits=x) for x in (p_NV, q_NV))
    return torch.distributions.kl_divergence(p, q)


def test_a_zero_delta_transplanted_is_the_base_model(
    make_student, model_folder, finetuned, batch, rows
):
    ours = supervised_logits(finetuned, *batch.values())[0]
    theirs = supervised_logits(load_model(model_folder), *batch.values())[0]
    student = make_student("transplant")
    reference, losses = losses_of(student, batch, len(rows))
    torch.testing.assert_close(losses.kl_N, kl_between(ours, theirs), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        nmse(losses.error_L, reference.change_L), torch.ones(3), rtol=1e-5, atol=0
    )


def test_a_zero_delta_on_the_dictionary_is_the_base_dictionary(make_student, batch, rows):
    student = make_student("dictionary")
    _, losses = losses_of(student, batch, len(rows))
    no_delta = [from_spec("no_delta", range(3))] * len(rows)
    scores = student.engine.teacher_forced(rows, no_delta)
    n_tokens = [len(row.target_ids) for row in rows]
    found = torch.stack([part.sum() for part in losses.kl_N.split(n_tokens)])
    assert found.tolist() == pytest.approx([score.kl for score in scores], rel=1e-5, abs=1e-6)


def test_the_deltas_alone_get_a_gradient(make_student, batch, rows):
    student = make_student("transplant", moved=0.1)
    _, losses = losses_of(student, batch, len(rows))
    (losses.kl_N.mean() + losses.error_L.sum()).backward()
    of_deltas = [p for s in student.engine.bank["delta"].values() for p in s.parameters()]
    assert len(of_deltas) == 9
    assert all(p.grad.abs().sum() > 0 for p in of_deltas)
    frozen = [*student.engine.model.parameters(), *student.teacher.parameters()]
    assert not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize("kind", ["transplant", "dictionary"])
def test_checkpointed_layers_have_the_same_gradient(make_student, batch, rows, kind):
    found = []
    for checkpointing in (False, True):
        student = make_student(kind, moved=0.1, gradient_checkpointing=checkpointing)
        reference = student.reference(batch, with_streams=True)
        with student.applied(len(rows)) as application:
            losses = student.losses(batch, reference)
            (losses.kl_N.mean() + losses.error_L.sum()).backward()
        assert set(application.calls.values()) == {2 if checkpointing else 1}
        deltas = student.engine.bank["delta"]
        found.append([p.grad for s in deltas.values() for p in s.parameters()])
    torch.testing.assert_close(*found)


def test_bridged_rows_are_the_teacher_above_or_below_a_layer(make_student, batch, rows):
    student = make_student("dictionary", moved=0.1)
    torch.manual_seed(3)
    drawn = [student._bridge() for _ in range(200)]
    shares = {i.layers: sum(j.layers == i.layers for j in drawn) / 200 for i in drawn}
    assert shares.keys() == {(0, 1, 2), (0,), (0, 1), (1, 2), (2,)}
    assert shares[0, 1, 2] == pytest.approx(0.5, abs=0.1)
    _, losses = losses_of(student, batch, len(rows), bridged=True)
    assert losses.kl_N.isfinite().all()


def test_attribution_adds_up_to_what_the_deltas_do(make_student, batch, rows):
    student = make_student("transplant", moved=0.1)
    group_E = [i % 2 for i in range(len(rows))]
    sums_GF = attribution_sums(student, rows, group_E, 2, steps=32)
    assert sums_GF.shape == (2, 12)
    _, trained = losses_of(student, batch, len(rows), with_streams=False)
    _, base = losses_of(make_student("transplant"), batch, len(rows), with_streams=False)
    gained = base.kl_N.double().sum() - trained.kl_N.double().sum()
    assert sums_GF.sum().item() == pytest.approx(gained.item(), rel=1e-2)
