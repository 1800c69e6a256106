import numpy as np
import pytest

from delta_transcoders.metrics.overlap import permuted_overlaps, subspace_overlap

D = 24


def rows(seed: int, sizes: tuple[int, ...] = (4, 2)) -> dict[int, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {layer: generator.standard_normal((n, D)) for layer, n in enumerate(sizes)}


def test_other_rows_of_the_same_spans_overlap_wholly():
    ours = rows(0)
    mixed = {layer: rows(1, (len(w),) * 2)[layer][:, : len(w)] @ w for layer, w in ours.items()}
    assert subspace_overlap(ours, mixed) == pytest.approx(1)
    assert subspace_overlap(ours, {0: ours[0][:1], 1: ours[1]}) == pytest.approx(1)


def test_orthogonal_spans_do_not_overlap():
    eye = np.eye(D)
    assert subspace_overlap({0: eye[:3]}, {0: eye[3:8]}) == pytest.approx(0, abs=1e-12)


def test_it_is_the_mean_squared_cosine_over_layers():
    eye = np.eye(D)
    half = (eye[0] + eye[1])[None]
    ours, theirs = {0: eye[:1], 1: eye[:3]}, {0: half, 1: eye[:2]}
    assert subspace_overlap(ours, theirs) == pytest.approx((0.5 + 2) / 3)


def test_a_layer_without_rows_counts_for_nothing():
    empty = np.zeros((0, D))
    ours = rows(0)
    assert subspace_overlap(ours | {2: empty}, ours | {2: rows(1)[0]}) == pytest.approx(1)
    assert np.isnan(subspace_overlap({0: empty}, {0: ours[0]}))


def test_random_spans_lie_inside_the_permutations_and_equal_ones_above():
    ours = rows(0)
    permuted = permuted_overlaps(ours, rows(1), 400, seed=0)
    assert permuted.mean() == pytest.approx(4 / D * 4 / 6 + 2 / D * 2 / 6, rel=0.1)
    shares = [(permuted < subspace_overlap(ours, rows(seed))).mean() for seed in range(2, 42)]
    assert 0.35 < np.mean(shares) < 0.65
    assert (permuted_overlaps(ours, ours, 400, seed=0) < subspace_overlap(ours, ours)).all()


def test_permutations_keep_orthonormal_bases_orthonormal():
    eye = np.eye(D)
    one = {0: eye[:1]}
    assert set(permuted_overlaps(one, one, 50, seed=1).round(12)) <= {0.0, 1.0}
