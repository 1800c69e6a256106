"""Counts and contexts of features whose activations are written down by hand."""

import math

import numpy as np
import pytest
import torch

from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.features import firing as firing_module
from delta_transcoders.features.contexts import BEFORE, ContextChooser
from delta_transcoders.features.feature import WINDOW
from delta_transcoders.features.firing import Firing, n_looked_at, together
from delta_transcoders.features.statistics import (
    Look,
    features_of,
    logit_extremes,
    nearest_rows,
)
from delta_transcoders.features.texts import Subset, TextRow, Texts, shown_tokens

SHOWN = ["<bos>", "a", " b", "1", "23", "<eos>", " c"]
BOS, A, B, ONE, MANY, EOS, C = range(7)
SUBSETS = [Subset("ask", False), Subset("echo", False), Subset("ask (held out)", True)]


def known(texts: list[tuple[list[int], int]], fires: dict[tuple[int, int], float], n_prompt=2):
    """Features 0 (fires as told, by text and position), 1 (silent) and 2 (fires wherever it reads)."""
    rows = [TextRow(ids, n_prompt, subset, f"{i}") for i, (ids, subset) in enumerate(texts)]
    everything = Texts(rows, SUBSETS)
    firing = Firing(3)
    for text in reversed(range(len(texts))):  # texts come in any order
        ids = texts[text][0]
        positions = np.array([p for p, i in enumerate(ids) if i not in (BOS, EOS)], dtype=int)
        a_NF = torch.zeros(len(positions), 3)
        a_NF[:, 0] = torch.tensor([fires.get((text, int(p)), 0.0) for p in positions])
        a_NF[:, 2] = 1
        firing.add(everything.places(np.full(len(positions), text), positions), a_NF)
    firing.finish()
    chooser = ContextChooser(everything, SHOWN, {BOS, EOS})
    look = Look((("x", 1.0),), (("y", -1.0),), ())
    return list(features_of({4: firing}, {4: [look] * 3}, chooser))


def test_counts_by_hand():
    texts = [([BOS, A, B, EOS], 0), ([BOS, A, A, EOS], 0), ([BOS, B, A, EOS], 1), ([BOS, A, B], 2)]
    fires = {(0, 1): 1.0, (0, 2): 3.0, (1, 2): 4.0, (3, 1): 2.0}
    feature, silent, always = known(texts, fires)
    assert (feature.name, feature.maximum) == ("L4F0", 4)
    ask, echo, held_out = (feature.activity[subset.name] for subset in SUBSETS)
    assert (ask.n_tokens, ask.n_examples, ask.density, ask.example_density) == (4, 2, 0.75, 1)
    assert (ask.mean, ask.maximum) == (pytest.approx(8 / 3), 4)
    assert ask.histogram == (0,) * 5 + (1,) + (0,) * 9 + (1,) + (0,) * 3 + (1,)
    assert (echo.density, echo.example_density, echo.maximum) == (0, 0, 0)
    assert math.isnan(echo.mean)
    assert (held_out.density, held_out.held_out, ask.held_out) == (0.5, True, False)
    first, second = feature.tokens
    assert (first.token, first.share, first.fires, first.mean) == (
        "a",
        0.7,
        0.6,
        pytest.approx(7 / 3),
    )
    assert (second.token, second.share, second.fires, second.mean) == (
        " b",
        0.3,
        pytest.approx(1 / 3),
        3,
    )
    assert (silent.tokens, silent.maximum, silent.together) == ((), 0, ())
    assert {c.kind for c in silent.contexts} == {"silent"}
    assert [a.density for a in always.activity.values()] == [1, 1, 1]
    assert feature.together == ((4, 2, 0.5),)
    assert always.together == ((4, 0, 0.5),)
    assert feature.promotes == (("x", 1.0),)


def test_a_context_says_where_everything_stands():
    (feature, _, _) = known(
        [([BOS, A, B, C, EOS], 0), ([BOS, C, A], 2)], {(0, 2): 3.0, (1, 1): 1.5}
    )
    top, held_out = feature.contexts
    assert (top.kind, top.subset, top.example, top.n_alike) == ("top", "ask", "0", 0)
    assert top.tokens == ("<bos>", "a", " b", " c", "<eos>")
    assert top.special == (True, False, False, False, True)
    assert [str(a) for a in top.activations] == ["nan", "0.0", "3.0", "0.0", "nan"]
    assert (top.peak, top.target_from, top.cut_left, top.cut_right) == (2, 2, False, False)
    assert (held_out.subset, held_out.peak, held_out.activations[1]) == ("ask (held out)", 1, 1.5)


def test_a_long_text_is_cut_around_the_peak():
    ids = [BOS, *[A] * 200]
    (feature, _, _) = known(
        [(ids, 0), (ids, 1), ([BOS, *[B] * 70], 2)], {(0, 120): 2.0, (1, 199): 3.0}
    )
    middle, end, silent = feature.contexts
    for context in (middle, end, silent):
        assert len(context.tokens) == len(context.activations) == WINDOW
        assert context.target_from == 0  # all of it is to be written
    assert (middle.peak, middle.cut_left, middle.cut_right) == (BEFORE, True, True)
    assert middle.activations[BEFORE] == 2
    assert (end.peak, end.cut_left, end.cut_right) == (WINDOW - 2, True, False)
    assert (silent.kind, silent.peak, silent.cut_left) == ("silent", WINDOW - 1, True)


def test_texts_that_are_alike_up_to_the_peak_are_shown_once():
    texts = [
        ([BOS, A, ONE, B, C], 0),
        ([BOS, A, MANY, B, A], 0),  # differs in digits, and after the peak
        ([BOS, A, ONE, MANY, B], 0),  # one number all the same
        ([BOS, B, ONE, B], 0),  # another text
        ([BOS, A, ONE, B, C], 1),  # another subset
    ]
    fires = {(0, 3): 1.0, (1, 3): 5.0, (2, 4): 2.0, (3, 3): 4.0, (4, 3): 3.0}
    (feature, _, _) = known(texts, fires)
    found = [(c.example, c.subset, c.n_alike) for c in feature.contexts]
    assert found == [("1", "ask", 2), ("3", "ask", 0), ("4", "echo", 0)]


def test_the_strongest_then_each_fifth_then_silent_ones():
    # The text with peak i begins with i times the token A, so that all differ.
    silent_texts = [([BOS, *[C] * i], 0) for i in range(1, 9)]
    texts = [([BOS, *[A] * i, B], 0) for i in range(1, 101)] + silent_texts
    fires = {(i - 1, i + 1): float(i) for i in range(1, 101)}
    (feature, _, _) = known(texts, fires)
    kinds = [c.kind for c in feature.contexts]
    fifths = [f"fifth_{n}" for n in (4, 3, 2, 1) for _ in range(4)]
    assert kinds == ["top"] * 12 + fifths + ["silent"] * 4
    peaks = [c.activations[c.peak] for c in feature.contexts]
    assert peaks[:12] == list(range(100, 88, -1))
    for n in (4, 3, 2, 1):
        of_fifth = [p for p, kind in zip(peaks, kinds, strict=True) if kind == f"fifth_{n}"]
        assert of_fifth == sorted(of_fifth, reverse=True)
        assert all(20 * (n - 1) < p <= 20 * n for p in of_fifth)
    again, _, _ = known(texts, fires)
    assert repr(again) == repr(
        feature
    )  # of equal draws; a text of it, as NaN is not equal to itself


def test_a_feature_that_fires_strongly_in_every_text_shows_its_weak_places_too():
    texts = [([BOS, *[A] * i, B, C], 0) for i in range(1, 41)]
    fires = {}
    for i in range(1, 41):
        fires |= {(i - 1, i + 1): 10.0, (i - 1, i + 2): 1.0 + i / 100}
    fires |= {(30, p): 3.0 for p in range(20, 30)}  # in one text, where each is another prefix
    feature, _, _ = known(texts, fires)
    top, weak, weakest = (
        [c for c in feature.contexts if c.kind == kind] for kind in ("top", "fifth_2", "fifth_1")
    )
    assert len(top) + len(weak) + len(weakest) == len(feature.contexts) == 12 + 1 + 4
    assert {c.activations[c.peak] for c in top} == {10.0}
    assert [(c.example, c.activations[c.peak]) for c in weak] == [("30", 3.0)]
    values = [c.activations[c.peak] for c in weakest]
    assert values == sorted(values, reverse=True) and max(values) <= 2
    assert all(max(c.activations[1:]) == 10 for c in weakest)
    assert len({c.example for c in feature.contexts}) == len(feature.contexts)


def test_places_like_those_that_are_shown_are_not_drawn():
    alike = [([BOS, A, ONE, B, C], 0), ([BOS, A, MANY, B, A], 0), ([BOS, A, ONE, MANY, B, C], 0)]
    others = [([BOS, B, ONE, C], 0), ([BOS, B, MANY, C], 0), ([BOS, C, ONE, C], 0)]
    fires = {(0, 3): 10.0, (0, 1): 5.0, (1, 3): 9.0, (1, 1): 5.0, (2, 4): 8.0, (2, 1): 5.0}
    fires |= {(3, 3): 5.0, (4, 3): 4.5, (5, 3): 10.0}
    feature, _, _ = known(alike + others, fires)
    found = [(c.kind, c.example, c.n_alike) for c in feature.contexts]
    assert found[:2] == [("top", "0", 2), ("top", "5", 0)]
    assert found[2][0] == "top" and found[2][1:] == ("3", 1) and len(found) == 3


def test_what_fires_together_is_sampled_where_it_is_too_much(monkeypatch):
    both, one = Firing(1), Firing(1)
    places = np.arange(60, dtype=np.int32)
    both.add(places, torch.ones(60, 1))
    one.add(places, (torch.arange(60) % 4 == 0).float()[:, None])
    for firing in (both, one):
        firing.finish()
    assert together({0: both, 3: one}, 60) == {(0, 0): ((3, 0, 0.25),), (3, 0): ((0, 0, 0.25),)}
    monkeypatch.setattr(firing_module, "MOST_WORK", 4 * 40)
    assert (n_looked_at(2, 60), n_looked_at(2, 30)) == (40, 30)
    ((_, _, overlap),) = together({0: both, 3: one}, 60)[0, 0]
    # Of 40 places at random, and not all or none of the 15 that have a period of four.
    assert 40 * overlap == pytest.approx(round(40 * overlap)) and 5 <= 40 * overlap < 15


def test_logits_and_nearest_rows():
    unembedding_VD = torch.randn(9000, 4, generator=torch.Generator().manual_seed(0))
    rows_GD = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    values, ids = logit_extremes(rows_GD, unembedding_VD)
    logits = rows_GD @ unembedding_VD.T
    ordered = logits.sort(dim=1, descending=True)
    assert ids[:, :10].tolist() == ordered.indices[:, :10].tolist()
    assert ids[:, 10:].tolist() == ordered.indices[:, -10:].flip(1).tolist()
    assert torch.allclose(values, logits.gather(1, ids), atol=1e-5)

    def transcoder(W_dec):
        n = len(W_dec)
        zeros = {"b_enc": torch.zeros(n), "threshold": torch.zeros(n), "b_dec": torch.zeros(4)}
        return Transcoder(W_enc=torch.zeros(4, n), W_dec=W_dec, **zeros)

    numbers, cosines = nearest_rows(transcoder(rows_GD), transcoder(-2 * rows_GD.flip(0)[:2]))
    expected = torch.nn.functional.cosine_similarity(
        rows_GD[:, None], -rows_GD.flip(0)[None, :2], dim=-1
    )
    assert numbers == expected.argmax(1).tolist()
    assert cosines == pytest.approx(expected.max(1).values.tolist(), abs=1e-6)


def test_tokens_are_shown_alone(tokenizer):
    ids = tokenizer("What is\n🙂?", add_special_tokens=False).input_ids
    shown = shown_tokens(tokenizer, ids)
    assert shown[-5:] == [r"\xf0", r"\x9f", r"\x99", r"\x82", "?"]
    assert "".join(shown[:-5]) == "What is\n"
    assert shown_tokens(tokenizer, [tokenizer.bos_token_id]) == ["<bos>"]


def test_other_texts_are_refused():
    texts = Texts([TextRow([BOS, A], 1, 0, "0")], SUBSETS)
    with pytest.raises(ValueError, match="beyond the end of its text"):
        texts.places(np.array([0]), np.array([2]))
