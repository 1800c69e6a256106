"""One hand-written ReLU feature in one MLP is all that the teacher has beside the base."""

import pytest
import torch

from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.end_to_end.budget import attribution_sums, choose
from delta_transcoders.end_to_end.student import Reference
from delta_transcoders.end_to_end.trained import TrainedTranscoder
from delta_transcoders.interventions.intervention import Intervention, Term, Write
from delta_transcoders.interventions.sources import DictionarySource
from delta_transcoders.language_models import scored_batch, supervised_hidden, supervised_logits

D_MODEL, LAYER = 32, 1


def planted() -> Transcoder:
    generator = torch.Generator().manual_seed(5)
    W_enc, W_dec = torch.randn(2, D_MODEL, generator=generator)
    return Transcoder(
        W_enc=W_enc[:, None] / W_enc.norm(),
        b_enc=torch.tensor([-0.5]),
        W_dec=6 * W_dec[None] / W_dec.norm(),
        b_dec=torch.zeros(D_MODEL),
        threshold=torch.zeros(1),
    )


@pytest.fixture
def student(make_student):
    """Of the base model with the planted feature: its teacher is a forward pass of its own engine."""
    student = make_student("transplant")
    bank = student.engine.bank
    bank["planted"] = {LAYER: DictionarySource(planted())}
    teacher = Intervention("planted", {LAYER: Write(1.0, (Term("planted"),))})

    @torch.no_grad()
    def reference(batch, with_streams):
        with student.engine.applied([teacher] * len(batch["input_ids"])):
            return Reference(supervised_hidden(student.engine.model, *batch.values()), [], None)

    @torch.no_grad()
    def teacher_logprobs(rows):
        batch = scored_batch(rows, student.engine.tokenizer.pad_token_id)
        with student.engine.applied([teacher] * len(rows)):
            logits_NV, _ = supervised_logits(student.engine.model, *batch.values())
        parts = logits_NV.log_softmax(-1).split([len(row.target_ids) for row in rows])
        return dict(zip(rows, parts, strict=True))

    student.teacher = student.engine.model  # for its head
    student.reference, student.teacher_logprobs = reference, teacher_logprobs
    return student


def mean_kl(student, batch) -> float:
    reference = student.reference(batch, False)
    with torch.no_grad(), student.applied(len(batch["input_ids"])):
        return float(student.losses(batch, reference).kl_N.mean())


def chosen_first(student, rows) -> tuple[int, int]:
    """Layer and index of the feature that a budget of one keeps."""
    deltas = {layer: s.transcoder for layer, s in student.engine.bank["delta"].items()}
    scores_F = attribution_sums(student, rows, [0] * len(rows), 1, steps=8)[0]
    kept = choose(scores_F, deltas, 1)
    return next((layer, features[0]) for layer, features in kept.items() if features)


def test_among_others_the_planted_feature_is_attributed_first_and_suffices(
    student, make_student, rows, batch
):
    bank = student.engine.bank["delta"]
    others = make_student("transplant", moved=0.02).engine.bank["delta"]
    for layer, source in bank.items():
        source.transcoder.load_state_dict(others[layer].transcoder.state_dict())
    ours, hidden = bank[LAYER].transcoder, planted()
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec"):
            at = (slice(None), 2) if name == "W_enc" else 2
            getattr(ours, name)[at] = getattr(hidden, name).squeeze(1 if name == "W_enc" else 0)
    assert chosen_first(student, rows) == (LAYER, 2)
    for layer, source in bank.items():
        source.transcoder.keep([2] if layer == LAYER else [])
    assert mean_kl(student, batch) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_student_from_scratch_finds_it_first(student, rows, batch, capsys):
    bank = student.engine.bank["delta"]
    before = mean_kl(student, batch)

    def train(steps: int) -> None:
        parameters = [p for source in bank.values() for p in source.parameters()]
        adam = torch.optim.Adam(parameters, lr=2e-2, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, steps)
        reference = student.reference(batch, False)
        for _ in range(steps):
            with student.applied(len(rows)):
                loss = student.losses(batch, reference).kl_N.mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()

    train(150)
    full = mean_kl(student, batch)
    layer, feature = chosen_first(student, rows)
    for of, source in bank.items():
        source.transcoder.keep([feature] if of == layer else [])
    train(150)
    one = mean_kl(student, batch)
    found: TrainedTranscoder = bank[layer].transcoder
    cosines = {
        name: torch.cosine_similarity(a, b, dim=0).item()
        for name, a, b in (
            ("encoder", found.W_enc[:, feature], planted().W_enc[:, 0]),
            ("decoder", found.W_dec[feature], planted().W_dec[0]),
        )
    }
    with capsys.disabled():
        print(
            f"\nplanted in layer {LAYER}, found in layer {layer}: KL {before:.3g} without, {full:.3g} with "
            f"12 features, {one:.3g} with one; cosine of its encoder {cosines['encoder']:.3f}, of its "
            f"decoder {cosines['decoder']:.3f}"
        )
    assert layer == LAYER
    assert one < 0.1 * before  # N90 = 1
