import math

import pytest
import torch

from delta_transcoders.dictionaries.delta import DeltaConfig, save_delta
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.report.overlap import main, overlap_row
from delta_transcoders.report.tables import read_metrics, write_table

D, LAYERS = 24, (0, 1)


def write_delta(folder, W_dec_FD, seed, **changes):
    for layer in LAYERS:
        n = len(W_dec_FD)
        delta = Transcoder(
            W_enc=torch.ones(D, n),
            b_enc=torch.zeros(n),
            W_dec=W_dec_FD.clone(),
            b_dec=torch.zeros(D),
            threshold=torch.zeros(n),
        )
        fields = {"layer": layer, "d_in": D, "d_out": D, "d_new": n, "base_id": "base_model"}
        fields |= {"base_hash": "b", "model_fingerprint": "f", "hook_site": "gemma_scope"}
        fields |= {"hook_in": "i", "hook_out": "o", "target": "end_to_end_transplant"}
        fields |= {"sparsity": {"n_features": 2 * n}, "percentile": None, "seed": seed}
        fields |= {"average_l0_base": None, "measured": {}}
        save_delta(folder / f"layer_{layer}", delta, DeltaConfig(**(fields | changes)))


@pytest.fixture
def rows_FD():
    return torch.randn(3, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folders(tmp_path, rows_FD):
    """A curve with N90 = 6, and two seeds of which the second writes in the first one's spans."""
    write_table(tmp_path / "curve" / "n90.csv", ["delta", "n90"], [{"delta": "d", "n90": 6}])
    write_delta(tmp_path / "a" / "n6", rows_FD, seed=0)
    # A silent feature stands where a layer has none left: it is no direction.
    theirs = torch.cat([rows_FD.flip(0) * 3, torch.zeros(1, D)])
    write_delta(tmp_path / "b" / "n6", theirs, seed=1)
    return [tmp_path / name for name in ("curve", "a", "b")]


def test_seeds_of_one_span_overlap_wholly(folders, monkeypatch, tmp_path):
    out = tmp_path / "overlap"
    monkeypatch.setattr("sys.argv", ["overlap", *map(str, folders), "--output", str(out)])
    main()
    (row,) = read_metrics(out / "overlap.csv")
    assert (row["n"], row["overlap"], row["percentile"]) == ("6", "1", "1")
    assert 0 < float(row["permuted_mean"]) < float(row["permuted_95"]) < 0.5


def test_orthogonal_spans_are_below_the_permutations(folders, rows_FD):
    basis = torch.linalg.qr(rows_FD.T, mode="complete").Q.T
    write_delta(folders[2] / "n6", basis[3:6].contiguous(), seed=1)
    row = overlap_row(*folders)
    assert row["overlap"] == pytest.approx(0, abs=1e-10)
    assert row["percentile"] == 0


@pytest.mark.parametrize("n90", [">128", "0"])
def test_nothing_to_compare(folders, n90):
    write_table(folders[0] / "n90.csv", ["delta", "n90"], [{"delta": "d", "n90": n90}])
    row = overlap_row(*folders)
    assert row["n"] == n90
    assert all(math.isnan(row[name]) for name in ("overlap", "permuted_95", "percentile"))


def test_deltas_that_cannot_be_compared(folders, rows_FD):
    curve, ours, theirs = folders
    with pytest.raises(ValueError, match=r"both have the seed 0: train one with --model\.seed"):
        overlap_row(curve, ours, ours)
    write_delta(theirs / "n6", rows_FD, seed=1, model_fingerprint="g")
    with pytest.raises(ValueError, match="differ in model_fingerprint"):
        overlap_row(curve, ours, theirs)
    write_table(curve / "n90.csv", ["delta", "n90"], [{"n90": 6}, {"n90": 8}])
    with pytest.raises(ValueError, match="curve holds 2 curves: draw one alone"):
        overlap_row(curve, ours, theirs)
