import pytest
import torch

from delta_transcoders.dictionaries.delta import (
    permuted_directions,
    random_directions,
    with_features,
)
from delta_transcoders.interventions.intervention import Intervention, Term, Write, from_spec
from delta_transcoders.interventions.sources import RedrawnSource, check_sources, feature_masks
from delta_transcoders.metrics.feature_effects import match_rows


def test_a_dictionary_without_some_features_is_the_sum_of_the_others(bank):
    source = bank["base"][0]
    transcoder = source.transcoder
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(7, source.n_features, dtype=torch.bool)
    mask[:, [3, 5]] = True

    out, a = source(x, mask)

    z = torch.relu(x @ transcoder.W_enc + transcoder.b_enc)
    z = z * (z > transcoder.threshold)
    expected = sum(z[:, [i]] * transcoder.W_dec[i] for i in (3, 5)) + transcoder.b_dec
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(a, z * mask)
    torch.testing.assert_close(source(x, None)[0], transcoder(x))


def test_activity_does_not_change_where_rows_grow_and_activations_shrink(bank):
    source = bank["delta"][0]
    _, a = source(torch.randn(7, 32, generator=torch.Generator().manual_seed(0)), None)
    before = source.activity(a)
    by_hand = sum(
        a[:, i].abs() * source.transcoder.W_dec[i].norm() for i in range(source.n_features)
    )
    torch.testing.assert_close(before, by_hand)
    assert before.max() > 0
    source.transcoder.W_dec.mul_(4)
    torch.testing.assert_close(source.activity(a / 4), before)


def test_an_mlp_source_is_the_layers_own_norms_and_mlp(model, bank):
    layer = model.model.layers[1]
    residual = 3 * torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    x = residual * torch.rsqrt(residual.square().mean(-1, keepdim=True) + 1e-6)
    out, a = bank["base_mlp"][1](x, None)
    expected = layer.post_feedforward_layernorm(
        layer.mlp(layer.pre_feedforward_layernorm(residual))
    )
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    assert a is None


def test_a_bfloat16_mlp_source_answers_in_bfloat16(model):
    from delta_transcoders.interventions.sources import mlp_sources

    source = mlp_sources(model.bfloat16(), [0])[0]
    assert source(torch.randn(2, 32), None)[0].dtype == torch.bfloat16


def test_feature_masks():
    terms = [Term("delta"), None, Term("delta", 1.0, (0, 2)), Term("delta", 1.0, (0, 2), (2,))]
    assert feature_masks(terms, 3).tolist() == [
        [True, True, True],
        [True, True, True],
        [True, False, True],
        [True, False, False],
    ]
    assert feature_masks([Term("delta", 1.0, ())], 2).tolist() == [[False, False]]
    assert feature_masks([Term("delta"), None], 3) is None


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (
            from_spec({"condition": "x", "terms": [{"source": "random"}]}, [1]),
            "condition 'x', layer 1: no source 'random'; there is base, base_mlp, delta",
        ),
        (
            from_spec("full", [0, 2]),
            "condition 'full', layer 2: source 'delta' has no layer 2; it has",
        ),
        (
            Intervention("x", {0: Write(0.0, (Term("delta", 1.0, None, (6,)),))}),
            "source 'delta' has no feature 6; it has 6",
        ),
        (
            Intervention("x", {0: Write(0.0, (Term("base_mlp", 1.0, (0,)),))}),
            "source 'base_mlp' has no feature 0; it has 0",
        ),
    ],
)
def test_what_the_bank_cannot_serve(bank, intervention, message):
    del bank["delta"][2]
    with pytest.raises(ValueError, match=message):
        check_sources(bank, [from_spec("raw", []), intervention])


@pytest.mark.parametrize("draw", [random_directions, permuted_directions])
def test_a_redrawn_dictionary_is_active_where_it_was_and_writes_elsewhere(bank, draw):
    transcoder = bank["delta"][0].transcoder
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    source = RedrawnSource(transcoder, draw, seed=3)
    out, a = source(x, None)
    torch.testing.assert_close(a, transcoder.encode(x))
    torch.testing.assert_close(out, draw(transcoder, 3)(x))
    assert torch.equal(out, source(x, None)[0])
    others = [RedrawnSource(transcoder, draw, seed)(x, None)[0] for seed in (4, 5)]
    for other in (*others, transcoder(x)):
        assert not torch.allclose(out, other)
    assert source.transcoder.W_enc.data_ptr() == transcoder.W_enc.data_ptr()


def test_permuted_directions_are_the_delta_s_own(bank):
    delta = bank["delta"][1].transcoder
    dealt = permuted_directions(delta, seed=0)
    torch.testing.assert_close(dealt.W_dec.norm(dim=1), delta.W_dec.norm(dim=1))
    index, other, cosines = match_rows(dealt.W_dec, delta.W_dec)
    assert cosines == pytest.approx(1, abs=1e-6)
    assert index.tolist() != other.tolist()
    for name in ("W_enc", "b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(dealt, name), getattr(delta, name))


def test_some_features_of_a_delta_are_the_same_as_all_others_dropped(bank):
    source = bank["delta"][0]
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(7, 6, dtype=torch.bool)
    mask[:, [4, 1]] = True
    torch.testing.assert_close(
        with_features(source.transcoder, (4, 1))(x), source(x, mask)[0], atol=1e-6, rtol=1e-5
    )
    assert torch.equal(
        with_features(source.transcoder, ())(x), source.transcoder.b_dec.expand(7, -1)
    )
