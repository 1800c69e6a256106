"""Corrections without features, on data whose best correction is known."""

import pytest
import torch

from delta_transcoders.dictionaries.corrections import (
    AffineCorrection,
    CorrectionConfig,
    Moments,
    load_corrections,
    matched_rank,
    save_correction,
)
from delta_transcoders.dictionaries.delta import random_directions
from delta_transcoders.dictionaries.transcoder import Transcoder

N, D_IN, D_OUT = 400, 6, 5


@pytest.fixture
def x_NI():
    return torch.randn(N, D_IN, generator=torch.Generator().manual_seed(0)) + 1


def moments_of(x_NI, r_ND, y_ND=None, subset_N=None, delta_ND=None) -> Moments:
    moments = Moments(x_NI.shape[1], r_ND.shape[1], 3, torch.device("cpu"))
    y_ND = r_ND if y_ND is None else y_ND
    subset_N = torch.zeros(N, dtype=torch.long) if subset_N is None else subset_N
    delta_ND = r_ND if delta_ND is None else delta_ND
    for rows in torch.arange(N).split(150):  # the sums do not depend on the batches
        moments.update(x_NI[rows], r_ND[rows], y_ND[rows], subset_N[rows], delta_ND[rows])
    return moments


def test_the_bias_is_the_mean_residual(x_NI):
    r_ND = x_NI @ torch.randn(D_IN, D_OUT)
    correction = moments_of(x_NI, r_ND).bias()
    torch.testing.assert_close(correction.b, r_ND.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(correction(x_NI), r_ND.mean(0).expand(N, -1), rtol=1e-5, atol=1e-5)


def test_ridge_finds_an_affine_map_that_is_there(x_NI):
    W, b = torch.randn(D_IN, D_OUT), torch.randn(D_OUT)
    correction = moments_of(x_NI, x_NI @ W + b).ridge(penalty=0.0)
    torch.testing.assert_close(correction.W, W, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(correction.b, b, rtol=1e-4, atol=1e-4)


def test_a_large_penalty_leaves_the_mean(x_NI):
    r_ND = x_NI @ torch.randn(D_IN, D_OUT)
    correction = moments_of(x_NI, r_ND).ridge(penalty=1e9)
    torch.testing.assert_close(correction(x_NI), r_ND.mean(0).expand(N, -1), rtol=0, atol=1e-3)


def test_a_low_rank_map_is_found_at_its_rank_and_no_less(x_NI):
    W = torch.randn(D_IN, 2) @ torch.randn(2, D_OUT)
    r_ND = x_NI @ W
    moments = moments_of(x_NI, r_ND)
    two, one = (moments.ridge(0.0, rank=rank) for rank in (2, 1))
    torch.testing.assert_close(two.W, W, rtol=1e-3, atol=1e-3)
    assert torch.linalg.matrix_rank(one.W, tol=1e-4) == 1
    # The best rank-1 fit loses exactly the second principal component of what the full map predicts.
    lost = (one(x_NI) - r_ND).square().sum()
    second = torch.linalg.svdvals(r_ND - r_ND.mean(0))[1] ** 2
    torch.testing.assert_close(lost, second, rtol=1e-3, atol=0)


def test_steering_points_from_one_subset_to_the_other_at_the_delta_s_norm(x_NI):
    subset_N = torch.arange(N) % 2
    y_ND = torch.randn(N, D_OUT)
    y_ND[subset_N == 1] += torch.tensor([3.0, 0, 0, 0, 0])
    delta_ND = torch.zeros(N, D_OUT)
    delta_ND[:, 1] = 0.5
    moments = moments_of(x_NI, y_ND, y_ND, subset_N, delta_ND)
    b = moments.steering(towards=1, away=0).b
    assert b.norm().item() == pytest.approx(0.5, rel=1e-5)
    difference = y_ND[subset_N == 1].mean(0) - y_ND[subset_N == 0].mean(0)
    assert torch.cosine_similarity(b, difference, 0).item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="no training token of subset 2"):
        moments.steering(towards=2, away=0)


def test_matched_in_parameters():
    for n_parameters in (100, 500, 650):
        rank = matched_rank(n_parameters, 16, 24)
        assert rank * (16 + 24) + 24 <= n_parameters < (rank + 1) * (16 + 24) + 24


@pytest.mark.parametrize("with_map", [True, False])
def test_written_corrections_read_back_identical(tmp_path, with_map):
    correction = AffineCorrection(
        b=torch.randn(D_OUT), W=torch.randn(D_IN, D_OUT) if with_map else None
    )
    config = CorrectionConfig(3, D_IN, "bias", 5, "gemma_scope", "m", "b", 0.25)
    save_correction(tmp_path / "layer_3", correction, config)
    ((layer, (loaded, loaded_config)),) = load_corrections(tmp_path).items()
    assert (layer, loaded_config) == (3, config)
    assert loaded.state_dict().keys() == correction.state_dict().keys()
    for name, tensor in correction.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_random_delta_is_active_where_the_delta_is_and_as_long(x_NI):
    delta = Transcoder(
        W_enc=torch.randn(D_IN, 4),
        b_enc=torch.randn(4),
        W_dec=torch.randn(4, D_OUT),
        b_dec=torch.zeros(D_OUT),
        threshold=torch.full((4,), 0.5),
    )
    control = random_directions(delta, seed=0)
    assert torch.equal(control.encode(x_NI), delta.encode(x_NI))
    torch.testing.assert_close(control.W_dec.norm(dim=1), delta.W_dec.norm(dim=1))
    assert torch.equal(control.W_dec, random_directions(delta, seed=0).W_dec)
    assert not torch.allclose(control.W_dec, random_directions(delta, seed=1).W_dec)
