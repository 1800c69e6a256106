"""What feature pages hold, without a browser."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from delta_transcoders.features.feature import Activity, Context, Effect, Feature
from delta_transcoders.features.files import read_features, write_features
from delta_transcoders.features.synthetic import HOSTILE, SUBSETS, synthetic_features
from delta_transcoders.foreign_text import shown
from delta_transcoders.pages import feature_pages, inline_feature
from delta_transcoders.pages.encoding import block, drop_command, json_text, short
from delta_transcoders.pages.index import Index
from delta_transcoders.pages.words import measure_of, sentences

NAN = math.nan


@pytest.fixture(scope="module")
def features():
    return list(synthetic_features(2, 6, hostile=True))


def activity(density, held_out=False):
    return Activity(held_out, 100, 10, density, 1.0, 0.5, 1.0, (1, 0))


def feature(**changes):
    known = Feature(1, 4, 1.0, {"ask": activity(0.25)}, (), (), (), (), (), (), {}, ())
    return replace(known, **changes)


def context(tokens, target_from, **changes):
    n = len(tokens)
    known = Context(
        *("top", "ask", "7", tuple(tokens), (True, *[False] * (n - 1)), (NAN, *[0.5] * (n - 1))),
        *(n - 1, target_from, False, False, 0),
    )
    return replace(known, **changes)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_ends_a_script_or_breaks_a_line(text):
    encoded = json_text({text: text})
    assert json.loads(encoded) == {text: text}
    assert encoded.isascii() and encoded.isprintable() and not set("<>&") & set(encoded)


def test_what_is_no_number_is_null_and_not_0():
    assert json_text(short([NAN, math.inf, 0.0, 2.0, 0.000123456789])) == (
        "[null,null,0,2,0.000123457]"
    )
    with pytest.raises(ValueError, match="Out of range float"):
        json_text(NAN)


def test_a_block_gives_back_every_context(features):
    found = json.loads(json_text(block(features, "runs/x", with_contexts=True)))
    special = {found["tokens"][i] for i in found["special"]}
    assert special == {"<bos>"}
    for encoded, ours in zip(found["features"], features, strict=True):
        assert encoded["name"] == ours.name
        for (text, kind, peak, n_alike, sparse), expected in zip(
            encoded["contexts"], ours.contexts, strict=True
        ):
            subset, example, target_from, *cut, ids, unread = found["texts"][text]
            assert (subset, example, target_from) == (
                *(expected.subset, expected.example),
                expected.target_from,
            )
            assert cut == [expected.cut_left, expected.cut_right]
            assert [found["tokens"][i] for i in ids] == list(expected.tokens)
            assert (kind, peak, n_alike) == (expected.kind, expected.peak, expected.n_alike)
            values = dict(zip(sparse[::2], sparse[1::2], strict=True)) | dict.fromkeys(unread, NAN)
            assert [values.get(i, 0) for i in range(len(ids))] == pytest.approx(
                expected.activations, rel=5e-3, nan_ok=True
            )


def test_contexts_of_one_text_share_it():
    same = [context(["<bos>", "a"], None), context(["<bos>", "a"], None, kind="fifth_1")]
    other = context(["<bos>", "a"], None, example="8")
    found = block([feature(contexts=(*same, other))], "x", with_contexts=True)
    assert len(found["texts"]) == 2 and found["tokens"] == ["<bos>", "a"]


def test_the_index_has_null_where_nothing_was_measured(features):
    index = Index()
    for one in (*features, feature(activity={"x": activity(0.25)})):
        index.add(one)
    columns = {column["title"]: column for column in index.value()["columns"]}
    asked, rate = next(iter(SUBSETS)), features[0].effects[1].measure
    rates = columns[f"without it: {measure_of(rate).title}, {asked}"]
    assert rates["group"] == "without it" and rates["decimals"] == 1
    value = features[0].effects[1].value
    assert rates["values"][0] == pytest.approx(100 * value, rel=1e-3)
    assert rates["values"][1] is None and rates["values"][-1] is None
    assert columns["x"]["values"] == [None] * 12 + [0.25]
    assert index.value()["effectSubsets"] == [name for name in SUBSETS if " (" not in name] + ["x"]


def test_one_sentence_says_where_it_fires_and_what_it_does():
    effects = (
        Effect("dropped", "ask", "d_call_logprob", -0.3, -0.4, -0.2, 9),
        Effect("dropped", "ask", "dce", 0.2, 0.1, 0.3, 9),
        Effect("dropped", "echo", "dce", -0.5, -0.6, -0.4, 9),
        Effect("dropped", "ask", "d_hit_rate", -0.1, -0.3, 0.1, 9),
        Effect("kept", "ask", "d_hit_rate", 0.9, 0.8, 1.0, 9),
    )
    # Of the first subset alone, though the effect on the other is larger.
    assert sentences(feature(effects=effects)) == (
        "Fires on 25 % of the tokens of ask. Without it, everything else in place, cross-entropy on ask "
        "rises by 0.200 nats a token [+0.100, +0.300] and log p(call) on ask falls by 0.300 nats [−0.400, "
        "−0.200]."
    )
    assert sentences(feature(effects=effects[3:])).endswith(
        "Without it, everything else in place, no change on ask can be told from 0."
    )
    assert sentences(feature(effects=effects[4:])).endswith("was not measured.")


def test_the_sentence_names_held_out_texts_only_where_it_fires_on_no_others():
    both = {"ask": activity(0.5), "echo": activity(0.9, held_out=True)}
    assert sentences(feature(activity=both)).startswith("Fires on 50 % of the tokens of ask. ")
    alone = {"ask": activity(0.0), "echo": activity(0.9, held_out=True)}
    assert "90 % of the tokens of echo" in sentences(feature(activity=alone))
    assert sentences(feature(activity={})).startswith("There is no data")
    silent = {"ask": activity(0.0)}
    assert sentences(feature(activity=silent)).startswith("It fires on none of the texts")


def test_the_command_has_the_prompt_of_the_strongest_context_that_is_whole():
    def command(*contexts, with_prompt=True):
        return drop_command(feature(contexts=contexts), "runs/x", with_prompt)

    whole = context(["<bos>", "it's", " 1", "\n", "x"], 4)
    assert command(whole) == """delta-transcoders inspect runs/x 'it'"'"'s 1' --drop 1:4"""
    assert command(whole, with_prompt=False) == "delta-transcoders inspect runs/x PROMPT --drop 1:4"
    broken = [
        context(["<bos>", "a", "x"], 2, cut_left=True),
        context(["<bos>", "a", "x"], None),
        context(["<bos>", "a\nb", "x"], 2),
        context(["<bos>", "\u202e", "x"], 2),
        context(["<bos>", "\\xf0", "x"], 2),
    ]
    assert "PROMPT" in command(*broken)
    assert "'it'" in command(*broken, whole)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_a_notebook_s_view_is_static_and_inert(features):
    html = inline_feature(features[3])
    parser = Tags()
    parser.feed(html)
    assert parser.found <= {"div", "style", "b", "span", "table", "tr", "td", "th"}
    assert not {"\u202e", "\u2028", "\x00"} & set(html)
    assert html.count('class="text"') == 6
    top = [c for c in features[3].contexts if c.kind == "top"]
    densest = max(features[3].activity, key=lambda s: features[3].activity[s].density)
    strongest = next(c for c in top if c.subset == densest)
    assert "".join(map(shown, strongest.tokens[:2])) in parser.text
    effect = next(e for e in features[3].effects if e.measure == "dce")
    assert f"{effect.value:+.3f} [".replace("-", "−") in parser.text
    assert "fires on none" in inline_feature(features[2])


def test_the_command_writes_a_page_of_a_study(features, tmp_path, monkeypatch, capsys):
    info = {"delta": "runs/a/delta", "seed": 3, "model_fingerprint": "0123456789abcdef"}
    write_features(tmp_path / "features", features, info)
    monkeypatch.setattr(sys, "argv", ["features", str(tmp_path)])
    feature_pages.main()
    page = tmp_path / "report" / "features.html"
    assert capsys.readouterr().out == f"features: {page}\n"
    text = page.read_text(encoding="utf-8")
    assert "12 features in 2 layers of the delta runs/a/delta (seed 3, model 0123456789ab)." in text
    assert f"{list(SUBSETS)[3]} (100 texts, 2,000 tokens)" in text
    assert not (tmp_path / "report" / "features").exists()
    monkeypatch.setattr(feature_pages, "MOST_INSIDE", 11)
    feature_pages.main()
    (script,) = (tmp_path / "report" / "features").iterdir()
    start = "register(0, "
    assert script.name == "0.js" and script.read_text().startswith(start)
    found = json.loads(script.read_text().removeprefix(start).removesuffix(");\n"))
    expected = block(read_features(tmp_path / "features"), str(tmp_path), with_contexts=True)
    assert found == json.loads(json_text(expected))
    assert len(page.read_text()) < len(text) / 2


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from delta_transcoders.pages import feature_pages\n"
        "try: feature_pages.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--no-contexts" in done.stdout, done.stderr


def test_a_study_without_statistics_is_told_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["features", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"features\.yaml"):
        feature_pages.main()
