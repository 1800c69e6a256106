import math

import pytest

from delta_transcoders.interventions.intervention import (
    RAW,
    Term,
    Write,
    from_spec,
    layer_groups,
)


def sources(spec) -> tuple[float, dict[str, float]]:
    """keep and the coefficients of a condition at layer 1."""
    write = from_spec(spec, [1]).writes[1]
    return write.keep, {term.source: term.coefficient for term in write.terms}


def test_what_each_condition_writes():
    assert from_spec("raw", [1]) == RAW
    assert sources("no_delta") == (0, {"base": 1})
    assert sources("full") == (0, {"base": 1, "delta": 1})
    assert sources("alpha_1.5") == (0, {"base": 1, "delta": 1.5})
    assert sources("error_kept") == (1, {"delta": -1})
    assert sources("error_kept_0.25") == (1, {"delta": -0.75})
    assert sources("base_mlp") == (0, {"base_mlp": 1})
    assert sources("dictionary_error") == (1, {"base": 1, "base_mlp": -1})


@pytest.mark.parametrize(
    ("spec", "name", "alpha"),
    [
        ("alpha_0.25", "alpha_0.25", 0.25),
        ("alpha_-.5", None, None),
        ("alpha_-0.5", "alpha_-0.50", -0.5),
        ("alpha_2", "alpha_2.00", 2.0),
        ("alpha_-0", "alpha_0.00", 0.0),
        ("error_kept_0.5", "error_kept_0.50", 0.5),
        ("error_kept", "error_kept", 0.0),
        ("full", "full", None),
    ],
)
def test_names_of_a_sweep_have_two_decimals(spec, name, alpha):
    if name is None:
        with pytest.raises(ValueError, match="unknown condition"):
            from_spec(spec, [0])
    else:
        intervention = from_spec(spec, [0])
        assert (intervention.condition, intervention.alpha) == (name, alpha)
        assert "-0.0" not in repr(intervention.alpha)


def test_a_mapping_names_any_source():
    spec = {
        "condition": "random",
        "keep": 1,
        "alpha": 0.5,
        "terms": [{"source": "random_delta", "coefficient": -2, "drop_features": [3]}],
    }
    intervention = from_spec(spec, (0, 2))
    write = Write(1.0, (Term("random_delta", -2.0, None, (3,)),))
    assert intervention.writes == {0: write, 2: write}
    assert (intervention.condition, intervention.alpha) == ("random", 0.5)
    assert from_spec({"condition": "nothing"}, [0]).writes == {0: Write(0.0, ())}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ful", "unknown condition 'ful'; known are raw, no_delta, full"),
        ("alpha_0.125", "unknown condition 'alpha_0.125'"),
        (3, "unknown condition 3"),
        ({"terms": []}, "needs the key 'condition'"),
        ({"condition": "x", "term": []}, "unknown key 'term'; known are condition, keep"),
        ({"condition": 1}, "must be a name, not 1"),
        ({"condition": "x", "keep": "1"}, "intervention 'x': keep must be a number, not '1'"),
        ({"condition": "x", "alpha": True}, "alpha must be a number, not True"),
        ({"condition": "x", "terms": "base"}, "terms must be a list, not 'base'"),
        ({"condition": "x", "terms": None}, "terms must be a list, not None"),
        ({"condition": "x", "terms": ["base"]}, "must be a mapping with `source`, not 'base'"),
        ({"condition": "x", "terms": [{"coefficient": 1}]}, "needs the key 'source'"),
        ({"condition": "x", "terms": [{"source": "a", "coef": 1}]}, "unknown key 'coef'"),
        (
            {"condition": "x", "terms": [{"source": "a", "keep_features": [0.5]}]},
            r"whole numbers, got \[0.5\]",
        ),
        (
            {"condition": "x", "terms": [{"source": "a", "drop_features": 3}]},
            "must be a list of numbers, not 3",
        ),
        ({"condition": "x", "terms": [{"source": "a"}] * 2}, "'a' occurs twice"),
        ({"condition": "x", "keep": math.inf}, "keep must be finite, not inf"),
        (
            {"condition": "x", "terms": [{"source": "a", "coefficient": math.nan}]},
            "coefficient must be finite, not nan",
        ),
        ({"condition": "raw", "terms": [{"source": "a"}]}, "'raw' is already a known one"),
        ({"condition": "full", "terms": [{"source": "a"}]}, "'full' is already a known one"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        from_spec(spec, [0])


def test_layer_labels():
    assert RAW.layer_label(3) == ""
    assert from_spec("full", [1]).layer_label(3) == "1"
    assert from_spec("full", [2, 0]).layer_label(3) == "0+2"
    assert from_spec("full", [0, 1, 2]).layer_label(3) == "all"


def test_layer_groups():
    groups = layer_groups([0, "2", "2+0", "all"], n_layers=3, available={0, 1, 2})
    assert groups == [(0,), (2,), (0, 2), (0, 1, 2)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, "there is no layer 3, the model has 3, from 0"),
        ("0+-1", "there is no layer -1"),
        (1, "no dictionary for layer 1; there is one for 0, 2"),
        ("all", "layers 'all': no dictionary for layer 1"),
        ("0+0", "layer 0 is named twice"),
        ("first", "expected a number, several joined by"),
        ("0,2", "expected a number"),
    ],
)
def test_bad_layers(spec, message):
    with pytest.raises(ValueError, match=message):
        layer_groups([spec], n_layers=3, available={0, 2})
