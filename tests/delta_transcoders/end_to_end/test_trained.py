"""Trained transcoders and features that are taken away."""

import pytest
import torch

from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.end_to_end.budget import choose
from delta_transcoders.end_to_end.trained import (
    TrainedTranscoder,
    alive,
    from_scratch,
    without_silent_features,
)


def dictionary(n_features: int, bias: float = 0.0) -> Transcoder:
    generator = torch.Generator().manual_seed(n_features)
    return Transcoder(
        W_enc=torch.randn(8, n_features, generator=generator),
        b_enc=torch.randn(n_features, generator=generator),
        W_dec=torch.randn(n_features, 8, generator=generator),
        b_dec=torch.full((8,), bias),
        threshold=torch.rand(n_features, generator=generator),
    )


def test_it_computes_what_it_started_from_and_trains_three_tensors():
    frozen = dictionary(5)
    trained = TrainedTranscoder(frozen)
    x_ND = torch.randn(20, 8)
    assert torch.equal(trained(x_ND), frozen(x_ND))
    assert {name for name, _ in trained.named_parameters()} == {"W_enc", "b_enc", "W_dec"}
    trained(x_ND).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in trained.parameters())


def test_silenced_features_stay_silent_whatever_the_optimizer_does():
    trained = TrainedTranscoder(dictionary(5))
    trained.keep([1, 3])
    assert alive(trained).tolist() == [False, True, False, True, False]
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        trained(torch.randn(50, 8)).square().sum().backward()
        optimizer.step()
    assert alive(trained).tolist() == [False, True, False, True, False]
    assert not trained.encode(100 * torch.randn(1000, 8))[:, [0, 2, 4]].any()


def test_what_is_written_has_the_features_that_are_left():
    trained = TrainedTranscoder(dictionary(5))
    trained.keep([4, 1])
    written = without_silent_features(trained.state_dict())
    assert written.n_features == 2
    x_ND = torch.randn(20, 8)
    torch.testing.assert_close(written(x_ND), trained(x_ND))
    trained.keep([])
    empty = without_silent_features(trained.state_dict())
    assert empty.n_features == 1
    assert not empty(100 * x_ND).any()


def test_from_scratch_it_writes_nothing_and_depends_on_seed_and_layer():
    first = from_scratch(8, 3, layer=0, seed=0)
    assert not first(torch.randn(20, 8)).any()
    torch.testing.assert_close(first.W_enc.norm(dim=0), torch.ones(3))
    assert torch.equal(first.W_enc, from_scratch(8, 3, layer=0, seed=0).W_enc)
    assert not torch.equal(first.W_enc, from_scratch(8, 3, layer=1, seed=0).W_enc)
    assert not torch.equal(first.W_enc, from_scratch(8, 3, layer=0, seed=1).W_enc)


def test_a_bias_is_refused():
    with pytest.raises(ValueError, match="output bias"):
        TrainedTranscoder(dictionary(5, bias=0.1))


def test_the_budget_is_shared_by_all_layers_and_spent_on_features_that_are_left():
    deltas = {0: TrainedTranscoder(dictionary(3)), 2: TrainedTranscoder(dictionary(3))}
    scores_F = torch.tensor([1.0, -5.0, 2.0, 9.0, 0.0, 3.0])
    assert choose(scores_F, deltas, 3) == {0: (2,), 2: (0, 2)}
    deltas[2].keep([1])
    assert choose(scores_F, deltas, 3) == {0: (0, 2), 2: (1,)}
    assert choose(scores_F, deltas, 4) == {0: (0, 1, 2), 2: (1,)}
