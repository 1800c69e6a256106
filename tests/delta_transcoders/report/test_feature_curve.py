import math

from delta_transcoders.report.feature_curve import n90_rows

NAN = math.nan


def rows_of(shares: dict[int, float], intact: dict[int, bool], draw: int | None = None):
    where = {"delta": "d", "student": "transplant", "draw": draw}
    for n, share in shares.items():
        yield where | {"n": n, "subset": "asked", "share_of_finetuned": share}
        yield where | {"n": n, "subset": "side", "intact": intact[n]}
        yield where | {"n": n, "subset": "more"}


FIDELITY = [
    {"delta": "d", "n": 8, "layer": 0, "cos": 0.5, "unexplained": 0.8, "norm_ratio": 0.6},
    {"delta": "d", "n": 8, "layer": 1, "cos": 0.7, "unexplained": 0.6, "norm_ratio": 0.8},
    {"delta": "d", "n": 8, "layer": 2, "cos": NAN, "unexplained": 1.0, "norm_ratio": 0.0},
]


def test_n90_is_the_smallest_number_that_carries_and_leaves_the_rest_alone():
    shares = {0: NAN, 2: 0.95, 4: 0.89, 8: 0.9, 16: 1.0}
    intact = dict.fromkeys(shares, True) | {2: False}
    rows = list(rows_of(shares, intact))
    rows += rows_of({8: 0.95}, {8: True}, draw=0)
    rows += rows_of({8: 0.5}, {8: True}, draw=1)
    (row,) = n90_rows(rows, FIDELITY, 0.9)
    assert (row["n90"], row["n_features"]) == (8, 16)
    assert (row["n_random_sufficient"], row["n_random"]) == (1, 2)
    assert row["n_layers"] == 2
    assert abs(row["cos"] - 0.6) < 1e-12
    assert abs(row["unexplained"] - 0.7) < 1e-12


def test_a_delta_that_never_carries_has_more_than_its_grid():
    (row,) = n90_rows(list(rows_of({0: NAN, 8: 0.5}, {0: True, 8: True})), FIDELITY, 0.9)
    assert (row["n90"], row["n_features"]) == (">8", 8)
    absent = ("n_random_sufficient", "n_random", "n_layers", "cos", "unexplained", "norm_ratio")
    assert all(math.isnan(row[name]) for name in absent)
