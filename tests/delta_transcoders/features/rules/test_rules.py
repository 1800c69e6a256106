"""Planted units whose rules are known: what rules say, what they score, and what they are written from."""

import re
from dataclasses import replace

import numpy as np
import pytest

from delta_transcoders.features.rules.contexts import contexts_text
from delta_transcoders.features.rules.firing import Text, read_firing
from delta_transcoders.features.rules.language import predicted, read_rules, write_template
from delta_transcoders.features.rules.scores import DIFFERENCE, scored
from delta_transcoders.features.rules.units import Unit, draw, margins, with_thresholds


@pytest.fixture
def rules(tmp_path, names, rules_text):
    (tmp_path / "rules.yaml").write_text(rules_text)
    return read_rules(tmp_path, names)


@pytest.fixture
def firing(planted):
    return read_firing(planted("A"))


def test_rules_are_of_the_token_and_of_what_stands_directly_before_it(rules):
    tokens = ("<s>", " cat", " cats", " 12", "<call>", "\n", " 1", "\n", " sun", " cat", " sun")
    found_PU = predicted(rules, [Text(0, "ask", "w", tokens)])
    assert found_PU.shape == (len(tokens), 4)
    fires = [[t for t in range(len(tokens)) if found_PU[t, u]] for u in range(4)]
    assert fires == [[1, 9], [6, 8, 10], [6], []]


def test_known_rules_score_1_and_others_half(rules, firing):
    rows, means = scored(firing, rules)
    for row, unit in zip(rows[:3], firing.units, strict=False):
        shares = [row[k] for k in ("balanced_accuracy", "recall", "specificity", "precision")]
        assert shares == [1, 1, 1, 1]
        assert (row["balanced_accuracy_ci_low"], row["balanced_accuracy_ci_high"]) == (1, 1)
        assert (row["unit"], row["place"]) == (unit.name, unit.place)
    silent = rows[3]
    assert (silent["balanced_accuracy"], silent["recall"], silent["rule_rate"]) == (0.5, 0, 0)
    assert np.isnan(silent["precision"])
    for row in rows:
        assert (row["n_examples"], row["n_wordings"], row["n_tokens"]) == (60, 20, 60 * 30)
        assert row["base_rate"] == row["n_fires"] / row["n_tokens"]
    found = {(row["what"], row["drawn_by"]): row["balanced_accuracy"] for row in means}
    assert found == {
        ("feature", "effect"): 1,
        ("neuron", "effect"): 1,
        (DIFFERENCE, "effect"): 0,
        ("feature", "seed"): 1,
        ("neuron", "seed"): 0.5,
        (DIFFERENCE, "seed"): 0.5,
    }
    # The rule of the first unit for the last, which fires at random.
    shuffled, _ = scored(firing, [*rules[:3], replace(rules[0], unit="U4")])
    low, high = (shuffled[3][f"balanced_accuracy_ci_{end}"] for end in ("low", "high"))
    assert low < 0.5 < high < low + 0.1


def test_scores_by_hand(rules, firing):
    """Half of U1's rule: it misses the dogs."""
    (half,) = [replace(c, token=re.compile(" cat")) for c in rules[0].where]
    row = scored(firing, [replace(rules[0], where=(half,)), *rules[1:]])[0][0]
    tokens = [token for text in firing.texts for token in text.tokens]
    cats, dogs = tokens.count(" cat"), tokens.count(" dog")
    assert row["recall"] == cats / (cats + dogs)
    assert row["precision"] == row["specificity"] == 1
    assert row["balanced_accuracy"] == pytest.approx((row["recall"] + 1) / 2)
    assert row["n_fires"] == cats + dogs
    assert row["balanced_accuracy_ci_low"] < row["balanced_accuracy"]


@pytest.mark.parametrize("everywhere", [-1, 1])
def test_a_unit_that_fires_nowhere_or_everywhere_has_no_score_and_is_counted(
    rules, firing, everywhere
):
    margins_PU = firing.margins_PU.copy()
    margins_PU[firing.read_P, 0] = everywhere
    rows, means = scored(replace(firing, margins_PU=margins_PU), rules)
    assert np.isnan([rows[0]["balanced_accuracy"], rows[0]["balanced_accuracy_ci_low"]]).all()
    defined = "recall" if everywhere > 0 else "specificity"
    assert 0 < rows[0][defined] < 1 and rows[0]["base_rate"] == (everywhere > 0)
    counts = {(r["what"], r["drawn_by"]): (r["n_units"], r["n_unscored"]) for r in means}
    assert counts["feature", "effect"] == counts[DIFFERENCE, "effect"] == (0, 1)
    assert counts["neuron", "effect"] == counts["feature", "seed"] == (1, 0)


@pytest.mark.parametrize(
    ("was", "instead", "message"),
    [
        ("U4:", "U5:", "'U5' is no unit; known are U1, U2"),
        ("U4:\n  says: nothing can be said\n  where: []\n", "", "has no rule for U4: write one"),
        ("says: an animal", "says: ''", "U1: says is '', expected the rule in words"),
        ("says: an animal", "said: an animal", "U1: unknown key 'said'; known are says, where"),
        ("  says: an animal\n", "", "U1 has no 'says'"),
        ("where: []", "where: 3", "U4: where is 3, expected a list"),
        ("where: []", "where: [x]", "U4, where 1 is 'x', expected token and before"),
        ("where: []", "where: [{}]", "U4, where 1 is empty: give token, before or both"),
        ("where: []", "where: [{tokens: a}]", "U4, where 1: unknown key 'tokens'; did you mean"),
        ("where: []", "where: [{token: 7}]", "U4, where 1: token is 7, expected text: put it in"),
        ("{before: '\\n'}", "{before: '[a'}", r"U2, where 1: before is no regular .* at pos"),
        ("where: []", "where: [", r"rules.yaml, line \d+: not YAML"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_by_unit_and_place(
    tmp_path, names, rules_text, was, instead, message
):
    assert was in rules_text
    (tmp_path / "rules.yaml").write_text(rules_text.replace(was, instead))
    with pytest.raises(ValueError, match=message):
        read_rules(tmp_path, names)


def test_a_template_is_to_be_filled_in(tmp_path, names):
    write_template(tmp_path / "new", names)
    with pytest.raises(ValueError, match="U1: says is '', expected the rule in words"):
        read_rules(tmp_path / "new", names)
    with pytest.raises(FileExistsError):
        write_template(tmp_path / "new", names)
    with pytest.raises(ValueError, match=r"does not exist; `python -m .* draw` writes it"):
        read_rules(tmp_path / "none", names)


def test_equal_activations_at_its_threshold_leave_a_neuron_fewer_tokens():
    units = [
        Unit(name, kind, "effect", 0, 0, 0, 0.5)
        for name, kind in (("U1", "feature"), ("U2", "neuron"))
    ]
    values_PU = np.array([[1, -4], [1, -2], [1, -2], [0, -2], [0, 3]], dtype=np.float32)
    feature, neuron = with_thresholds(units, values_PU)
    assert (feature.sign, feature.threshold, feature.rate) == (1, 0, 0.6)
    assert (neuron.sign, neuron.threshold, neuron.rate) == (-1, 2, 0.2)


def test_the_table_is_read_as_it_was_written(planted, tmp_path):
    firing = read_firing(planted("B", "sha"))
    assert (firing.half, firing.opened_for) == ("B", "sha")
    assert firing.units[2] == Unit(
        "U3", "neuron", "effect", 0, 2, 7, 0.5, sign=-1, threshold=0.25, rate=0.2
    )
    assert [firing.units[i].place for i in (0, 2)] == ["L0F7", "L2N7"]
    assert firing.read_P.sum() == 60 * 30
    with pytest.raises(FileNotFoundError, match="no table there of where units fire; make it"):
        read_firing(tmp_path)
    folder = planted("A")
    path = folder / "texts.jsonl"
    path.write_text((folder.parent / "B" / "texts.jsonl").read_text())
    with pytest.raises(ValueError, match="example 0 is not of half A"):
        read_firing(folder)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=r"is damaged: margins are \(1860, 4\), not \(1829, 4\)"):
        read_firing(folder)


def test_contexts_end_with_the_token_in_question(firing, names):
    text = contexts_text(firing)
    parts = dict(re.findall(r"^(U\d): (.*?)(?=^U\d: |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(parts) == list(names)
    assert parts["U1"].startswith("fires on 20.0 % of the tokens")
    kinds = re.split(r"^(strongest|others.*|silent.*)\n", parts["U1"], flags=re.MULTILINE)
    by_kind = dict(zip(kinds[1::2], kinds[2::2], strict=True))
    lines = {kind: part.strip("\n").split("\n") for kind, part in by_kind.items() if part.strip()}
    # The token alone tells where it fires, and of U2 it does not.
    assert "silent, though the token is one on which it fires: none\n" in parts["U1"]
    assert "silent, though the token is one on which it fires\n" in parts["U2"]
    assert len(lines["strongest"]) == 12 and len(lines["others, at random"]) == 10
    assert lines["strongest"][0].startswith("  100 %  <s>")
    for kind, of_kind in lines.items():
        for line in of_kind:
            (token,) = re.findall("⟦(.*)⟧$", line)
            assert (token in (" cat", " dog")) == (not kind.startswith("silent"))
            assert line.startswith("      –") == kind.startswith("silent")
            # All that it fires on before is marked.
            marked = "".join(re.findall("«(.*?)»", line))
            assert not re.sub(" cat| dog", "", marked)
            assert not re.search(" cat| dog", re.sub("«.*?»|⟦.*", "", line))
    assert "⏎" in text and contexts_text(firing) == text


def test_half_of_the_units_are_drawn_by_effect_and_half_by_seed():
    features = {(layer, k): float(k) for layer in range(2) for k in range(5)}
    neurons = {(0, k): -k / 10 for k in range(8)}
    units = draw(features, neurons, 2, seed=3)
    assert [unit.name for unit in units] == [f"U{i}" for i in range(1, 9)]
    by = {(k, w): [] for k in ("feature", "neuron") for w in ("effect", "seed")}
    for unit in sorted(units, key=lambda unit: unit.pair):
        by[unit.kind, unit.drawn_by].append(unit)
    assert [u.place for u in by["feature", "effect"]] == ["L0F4", "L1F4"]
    assert [u.place for u in by["neuron", "effect"]] == ["L0N0", "L0N1"]
    assert all(u.number < 4 and u.attribution == u.number for u in by["feature", "seed"])
    assert [[u.pair for u in of] for of in by.values()] == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert len({unit.place for unit in units}) == 8
    assert draw(features, neurons, 2, seed=3) == units != draw(features, neurons, 2, seed=4)
    with pytest.raises(ValueError, match="10 neurons are to be drawn, but half A has 8 that fire"):
        draw(features, neurons, 5, seed=0)


def test_a_neuron_fires_as_often_as_its_feature():
    units = draw({(0, 0): 2.0, (0, 1): 1.0}, {(0, 0): 2.0, (0, 1): 1.0}, 1, seed=0)
    values_PU = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    of = {(unit.kind, unit.drawn_by): u for u, unit in enumerate(units)}
    for way, n in (("effect", 30), ("seed", 200)):
        values_PU[:, of["feature", way]] = np.arange(1000) < n
        values_PU[0, of["neuron", way]] = -9 if way == "effect" else 9
    units = with_thresholds(units, values_PU)
    assert {(units[u].sign, w) for (_, w), u in of.items()} == {
        (1, "effect"),
        (-1, "effect"),
        (1, "seed"),
    }
    fires_U = (margins(units, values_PU) > 0).sum(0)
    for (_, way), u in of.items():
        n = {"effect": 30, "seed": 200}[way]
        assert (fires_U[u], units[u].rate) == (n, n / 1000)
