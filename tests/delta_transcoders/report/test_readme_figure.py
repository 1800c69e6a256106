"""The picture of a study: two themes, valid SVG, tokens as text."""

import xml.dom.minidom

import pytest

from delta_transcoders.features.files import write_features
from delta_transcoders.features.synthetic import synthetic_features
from delta_transcoders.report import readme_figure
from delta_transcoders.report.readme_figure import draw, themes
from delta_transcoders.report.study_results import StudyResults
from tests.report_studies import write_effects, write_study

RATES = {"asked": {"base_model": 0.0, "raw": 1.0, "no_delta": 0.1, "full": 0.99}}


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "study", RATES, dose={0: 0.1, 0.5: 0.5, 1: 0.99})


def test_both_themes(study, tmp_path, monkeypatch, capsys):
    write_features(study / "features", synthetic_features(2, 3, hostile=True), {"delta": "d"})
    effects = {"": {"B": 1.0}, "L0F1": {"B": 0.5}, "L1F0": {"B": 1.0}}
    write_effects(study, effects, "asked", {"L0F1": 0.5})
    monkeypatch.setattr("sys.argv", ["readme_figure", str(study), "--out", str(tmp_path / "docs")])
    readme_figure.main()
    texts = {name: (tmp_path / "docs" / f"readme_{name}.svg").read_text() for name in themes()}
    for name, text in texts.items():
        assert "var(" not in text and themes()[name]["--blue"] in text
        words = [
            t.firstChild.data
            for t in xml.dom.minidom.parseString(text).getElementsByTagName("text")
        ]
        assert "Turn the delta up: share of prompts with polite" in words
        assert any(word.startswith("Look at a feature: L0F1 fires on") for word in words)
        assert any(
            word.startswith("One feature to look at: without it ΔCE on asked is") for word in words
        )
        assert "asked 99 %" in words
    assert texts["light"] != texts["dark"] and set(themes()) == {"light", "dark"}


def test_statistics_of_another_delta_do_not_go_with_the_effects(study):
    write_features(study / "features", synthetic_features(2, 3, hostile=True), {"delta": "other"})
    write_effects(study, {"": {"B": 1.0}, "L7F9": {"B": 0.5}}, "asked", {"L7F9": 0.5})
    picture = draw(StudyResults(study))
    assert "Look at a feature: L" in picture and "Look at a feature: L7F9" not in picture


def test_without_features_there_is_the_curve_alone(study):
    picture = draw(StudyResults(study))
    assert "asked 99 %" in picture and "Look at a feature" not in picture
    (study / "exp2b" / "metrics.csv").unlink()
    with pytest.raises(ValueError, match=r"no answers at several strengths of the delta \(exp2b\)"):
        draw(StudyResults(study))
