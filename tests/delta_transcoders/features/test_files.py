"""The folder of feature statistics: what is written is read again, and what is damaged is named."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from delta_transcoders.features.files import read_features, write_features
from delta_transcoders.features.synthetic import HOSTILE, SUBSETS, synthetic_features
from delta_transcoders.report.ranking import write_ranking

DELTA = "runs/some/delta"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "features"
    write_features(folder, synthetic_features(2, 3), {"delta": DELTA})
    return folder


def without_effects(feature) -> str:
    """As a text, in which NaN equals NaN."""
    return repr(asdict(replace(feature, effects=(), attributions={})))


def test_what_is_written_is_read(tmp_path):
    features = list(synthetic_features(2, 3, seed=5, hostile=True))
    write_features(tmp_path / "features", features, {"delta": DELTA, "seed": 5})
    found = read_features(tmp_path / "features")
    assert [without_effects(f) for f in found] == [without_effects(f) for f in features]
    assert found.names() == ["L0F0", "L0F1", "L0F2", "L1F0", "L1F1", "L1F2"]
    assert (len(found), found.layers, found.info["seed"]) == (6, (0, 1), 5)
    assert [s["name"] for s in found.info["subsets"]] == list(SUBSETS)
    assert [s["held_out"] for s in found.info["subsets"]] == list(SUBSETS.values())
    shown = {token for f in found for c in f.contexts for token in c.tokens}
    assert set(HOSTILE) <= shown


def test_nan_is_no_number(folder):
    feature = read_features(folder).feature(0, 2)  # silent everywhere
    assert all(math.isnan(a.mean) and a.maximum == 0 for a in feature.activity.values())
    assert all(math.isnan(c.activations[0]) for c in feature.contexts)
    assert "NaN" not in (folder / "layer_0" / "features.jsonl").read_text()
    rows = (folder / "features.csv").read_text().splitlines()
    assert rows[0].startswith("layer,feature,subset,held_out,n_tokens")
    assert len(rows) == 1 + 6 * len(SUBSETS)
    assert next(row for row in rows if row.startswith("0,2,")).endswith(",0,0,,0")


def rank(folder, delta=DELTA, measures=("dce",), value=0.5, fingerprints=None):
    ends = {"": value, "_ci_low": 0.25, "_ci_high": math.nan, "_distinct": True}
    row = {"layer": 1, "feature": 0, "ablation": "dropped", "subset": "ask", "n_examples": 9}
    row |= {f"{measure}{end}": v for measure in measures for end, v in ends.items()}
    write_ranking(folder, [row | {"ig_target": -2.5, "rank": 1}], [], delta, fingerprints)
    (folder / "done.json").write_text("{}")


def test_effects_come_from_rankings_of_the_same_delta(folder):
    assert read_features(folder).feature(1, 0).effects == ()
    rank(folder.parent / "ranking", measures=("d_call_logprob", "dce"), value=0.125)
    rank(folder.parent / "effects")
    (logprob, dce) = read_features(folder).feature(1, 0).effects
    assert (logprob.measure, logprob.value) == ("d_call_logprob", 0.125)
    assert (dce.ablation, dce.subset, dce.measure) == ("dropped", "ask", "dce")
    assert (dce.value, dce.low, dce.n_examples) == (0.5, 0.25, 9)
    assert math.isnan(dce.high)
    assert read_features(folder).feature(1, 0).attributions == {"ig_target": {"ask": -2.5}}
    assert read_features(folder).feature(1, 1).effects == ()
    rank(folder.parent / "effects", "runs/other/delta")
    assert read_features(folder).rankings == [folder.parent / "ranking"]
    with pytest.raises(ValueError, match="effects ranks the features of runs/other/delta, not of"):
        read_features(folder, [folder.parent / "effects"])
    with pytest.raises(FileNotFoundError, match=r"nowhere/ranking.json does not exist: no ranking"):
        read_features(folder, [folder.parent / "nowhere"])


def test_a_delta_that_was_trained_anew_in_its_place_is_another(tmp_path):
    folder, effects = tmp_path / "features", tmp_path / "effects"
    info = {"delta": DELTA, "delta_fingerprints": {"0": "a", "1": "b"}}
    write_features(folder, synthetic_features(2, 3), info)
    for fingerprints, is_same in (({1: "b"}, True), ({0: "a", 1: "c"}, False), ({5: "a"}, False)):
        rank(effects, "elsewhere/delta", fingerprints=fingerprints)
        assert read_features(folder).rankings == ([effects] if is_same else [])
    with pytest.raises(ValueError, match=r"as it is now: rank the features anew"):
        read_features(folder, [effects])
    rank(effects)  # of older code, which named no tensors
    assert read_features(folder).rankings == [effects]
    rank(effects, str(Path(DELTA).resolve()))
    assert read_features(folder).rankings == [effects]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", r"it names no delta\); rank the features anew with `python"),
        ("[]", "it holds a list and no dict"),
        ('{"delta": "x", "format_version": 9}', "format_version is 9, this code reads 1; rank"),
    ],
)
def test_a_ranking_that_cannot_be_read_is_named(folder, text, problem):
    rank(folder.parent / "effects")
    (folder.parent / "effects" / "ranking.json").write_text(text)
    with pytest.raises(ValueError, match=rf"effects/ranking\.json.*{problem}"):
        read_features(folder)


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished feature statistics there; make them"):
        read_features(tmp_path / "nowhere")
    found = read_features(folder)
    for layer, number in ((0, 3), (2, 0), (0, -1)):
        with pytest.raises(KeyError, match=f"has no feature L{layer}F{number}"):
            found.feature(layer, number)
    for name, gone in (("features.jsonl", "does not exist; make"), ("contexts.safetensors", "not")):
        path = folder / "layer_1" / name
        text = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"layer_1/{name} does {gone}|{gone}"):
            read_features(folder).feature(1, 0)
        path.write_bytes(text)
    lines = folder / "layer_1" / "features.jsonl"
    lines.write_text(lines.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="has 1 features instead of 3"):
        read_features(folder).feature(1, 0)
    (folder / "tokens.json").write_text("{}")
    with pytest.raises(ValueError, match=r"features.json is damaged \(KeyError\('tokens'\)\)"):
        read_features(folder)


def test_another_version_is_refused(folder):
    path = folder / "features.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(ValueError, match="format_version is 2, this code reads 1; make them anew"):
        read_features(folder)
    with pytest.raises(ValueError, match="there is no feature to write"):
        write_features(folder, [], {})
