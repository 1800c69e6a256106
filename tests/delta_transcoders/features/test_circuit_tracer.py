"""Feature files of an export, read as circuit-tracer's page reads them; and that no text is in any without
the flag."""

import gzip
import json
import math
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from delta_transcoders.dictionaries.delta import save_delta
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.export import export
from delta_transcoders.features.circuit_tracer import record
from delta_transcoders.features.feature import TokenActivity
from delta_transcoders.features.files import read_features, write_features
from delta_transcoders.features.synthetic import synthetic_features

SECRET = "xylophone"


def secretive(feature):
    """The feature as if every text said one word, which the model's vocabulary knows nothing of."""
    contexts = tuple(
        replace(c, tokens=(SECRET,) * len(c.tokens), example=SECRET) for c in feature.contexts
    )
    tokens = (TokenActivity(SECRET, 0.5, 0.5, 1.0),)
    return replace(feature, contexts=contexts, tokens=tokens)


@pytest.fixture
def study(random_study, tmp_path):
    """The random study with features of both deltas; every text in them says the secret."""
    folder = tmp_path / "study"
    shutil.copytree(random_study.folder, folder)
    features = [secretive(f) for f in synthetic_features(3, 6, hostile=True) if f.layer != 1]
    hashes = {str(layer): delta.fingerprint() for layer, delta in random_study.deltas.items()}
    write_features(folder / "features", features, {"delta_fingerprints": hashes})
    return folder


@pytest.fixture
def exported(study, random_study, tmp_path):
    def make(format="circuit_tracer", **options) -> Path:
        if format in ("circuit_tracer", "saelens"):
            options.setdefault("model", random_study.model)
        return export(study, format, tmp_path / "out", **options)

    return make


def page_record(out: Path, layer: int, number: int) -> dict:
    """From UPSTREAM's description: a range of bytes, of which four say how long the gzip behind them is."""
    index = json.loads(gzip.decompress((out / "features/index.json.gz").read_bytes()))
    entry = index[layer]
    start, end = entry["offsets"][number], entry["offsets"][number + 1]
    asked = (out / "features" / entry["filename"]).read_bytes()[start : end + 1]  # both ends are in
    length = struct.unpack("<I", asked[:4])[0]
    assert length == end - start - 4
    return json.loads(gzip.decompress(asked[4 : 4 + length]))


def mentions(folder: Path, word: str) -> list[str]:
    """Files in which a word occurs, also inside gzip."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        held = path.read_bytes()
        for start in (i for i in range(len(held)) if held[i : i + 3] == b"\x1f\x8b\x08"):
            held += unzipped(held[start:])
        if word.encode() in held:
            found.append(path.relative_to(folder).as_posix())
    return found


def unzipped(stream: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(stream)
    except zlib.error:  # three bytes of weights that look like it
        return b""


def test_every_feature_has_a_record_and_the_deltas_have_their_own(exported, study):
    out = exported(with_contexts=True)
    features = read_features(study / "features")
    stubs = {
        0: {"base feature": range(40), "padding, never active": range(46, 54)},
        1: {"base feature": range(40), "padding, never active": range(40, 54)},
        2: {"base feature": range(48)},
    }
    for layer, of_layer in stubs.items():
        for text, numbers in of_layer.items():
            for number in numbers:
                expected = {"isDead": True, "top_logits": [text]}
                assert page_record(out, layer, number) == expected
    for layer, first in ((0, 40), (2, 48)):
        for number in range(6):
            feature = features.feature(layer, number)
            shown = page_record(out, layer, first + number)
            assert shown == record(feature, 1.0, True)
            assert (shown["act_min"], shown["act_max"]) == (0, feature.maximum)
            activity = feature.activity.values()
            histograms = [a.histogram for a in activity]
            assert shown["histogram"] == [sum(n) for n in zip(*histograms, strict=True)]
            fired = sum(a.n_tokens * a.density for a in activity)
            n_tokens = sum(a.n_tokens for a in activity)
            assert shown["activation_frequency"] == pytest.approx(fired / n_tokens)
            examples = [e for q in shown["examples_quantiles"] for e in q["examples"]]
            assert len(examples) == len(feature.contexts)


def test_an_example_is_its_context(exported, study):
    feature = read_features(study / "features").feature(0, 0)
    quantiles = record(feature, 1.0, True)["examples_quantiles"]
    tops = [q for q in quantiles if q["quantile_name"].startswith("Top activations")]
    assert quantiles[: len(tops)] == tops
    strongest = [max(max(e["tokens_acts_list"]) for e in q["examples"]) for q in tops]
    assert strongest == sorted(strongest, reverse=True)
    subset = tops[0]["quantile_name"].removeprefix("Top activations · ")
    contexts = [c for c in feature.contexts if (c.kind, c.subset) == ("top", subset)]
    for example, context in zip(tops[0]["examples"], contexts, strict=True):
        assert example["tokens"] == list(context.tokens)
        assert example["train_token_ind"] == context.peak
        known = [0.0 if math.isnan(a) else a for a in context.activations]
        assert example["tokens_acts_list"] == pytest.approx(known, abs=1e-4)


def test_percentiles_lie_where_the_histogram_says():
    feature = next(synthetic_features(1, 1))
    one = next(iter(feature.activity.values()))
    counts = (10, 0, 30, 60)
    feature = replace(feature, maximum=4.0, activity={"a": replace(one, histogram=counts)})
    values = record(feature, 1.0, False)["quantile_values"]
    assert len(values) == 99 and values == sorted(values)
    assert (values[4], values[24], values[69]) == (0.5, 2.5, 3.5)  # percentiles 5, 25 and 70


def test_a_feature_that_never_fires_shows_no_examples_and_no_percentiles():
    feature = list(synthetic_features(1, 3))[2]
    shown = record(feature, 1.0, True)
    assert (shown["act_max"], shown["quantile_values"], shown["activation_frequency"]) == (0, [], 0)
    assert {q["quantile_name"].partition(" · ")[0] for q in shown["examples_quantiles"]} == {
        "Never active here"
    }


@pytest.mark.parametrize(("alpha", "order"), [(0.5, 1), (-2.0, -1), (0.0, 0)])
def test_a_negative_alpha_suppresses_what_the_delta_promotes(alpha, order):
    feature = next(synthetic_features(1, 1))
    named = [[token for token, _ in pairs] for pairs in (feature.promotes, feature.suppresses)]
    named = [[t.replace("\n", "⏎") for t in tokens] for tokens in named]
    shown = record(feature, alpha, False)
    expected = {1: named, -1: named[::-1], 0: [[], []]}[order]
    assert [shown["top_logits"], shown["bottom_logits"]] == expected


def test_tokens_that_act_on_the_text_around_them_are_written_out():
    features = synthetic_features(2, 4, hostile=True)
    texts = [json.dumps(record(f, 1.0, True), ensure_ascii=False) for f in features]
    assert not any(c in text for text in texts for c in "\u202e\u2028\x00")
    assert all(any(sign in text for text in texts) for sign in ("U+202E", "U+2028", "U+0000"))


@pytest.mark.parametrize("format", ["circuit_tracer", "saelens", "gemma_scope", "deltas"])
def test_no_text_leaves_without_the_flag(exported, study, hub, tmp_path, format):
    assert mentions(study, SECRET)
    out = exported(format, push_to_hub="user/it")
    assert mentions(out, SECRET) == mentions(tmp_path / "hub", SECRET) == []
    assert (out / "features").is_dir() == (format == "circuit_tracer")


def test_texts_leave_with_it_and_a_later_push_without_takes_them_back(exported, hub, tmp_path):
    out = exported(with_contexts=True, push_to_hub="user/it")
    files = ["features/layer_0.bin", "features/layer_2.bin"]
    assert mentions(out, SECRET) == files
    assert mentions(tmp_path / "hub/user/it", SECRET) == files
    (tmp_path / "hub/user/it/features/layer_7.bin").write_text(SECRET)  # of an earlier one
    exported(push_to_hub="user/it")
    assert mentions(tmp_path / "hub", SECRET) == []


def test_the_same_features_make_the_same_files(exported):
    def files():
        folder = exported(with_contexts=True) / "features"
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert files() == files()


def test_the_card_says_whether_texts_are_inside(exported, study):
    assert "It holds contexts too: stretches of the study's texts" in card(
        exported(with_contexts=True)
    )
    assert "It holds no contexts, that is, none of the texts" in card(exported())
    shutil.rmtree(study / "features")
    out = exported()
    assert "contexts" not in card(out) and not (out / "features").exists()


def card(out: Path) -> str:
    return (out / "README.md").read_text()


def test_texts_that_are_not_there_are_not_promised(exported, study, random_study, tmp_path):
    with pytest.raises(ValueError, match="--with-contexts does not apply to --format deltas"):
        exported("deltas", with_contexts=True)
    others = random_study.variant(tmp_path / "others")
    other = random_study.deltas[2].state_dict() | {"b_dec": torch.ones(32)}
    save_delta(others / "layer_2", Transcoder(**other), random_study.configs[2])
    with pytest.raises(FileNotFoundError, match="not of the deltas given"):
        exported(deltas=others, with_contexts=True)
    assert not (exported(deltas=others) / "features").exists()
    moved = random_study.variant(
        tmp_path / "moved"
    )  # statistics are of these deltas, wherever they lie
    assert (exported(deltas=moved, with_contexts=True) / "features").is_dir()
    info = study / "features/features.json"
    info.write_text(info.read_text().replace(random_study.deltas[2].fingerprint(), "0" * 64))
    with pytest.raises(ValueError, match=r"of another delta of layer 2 .*stage `features` again"):
        exported()
    shutil.rmtree(study / "features")
    with pytest.raises(FileNotFoundError, match=r"--with-contexts: \S+/features does not exist"):
        exported(with_contexts=True)
