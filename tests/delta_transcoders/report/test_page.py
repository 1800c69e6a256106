"""A study's page: its numbers are in tables, its figures have names, and nothing in a study can break it."""

import csv
import math
import re
import shutil
from html.parser import HTMLParser

import pytest

from delta_transcoders.features.files import write_features
from delta_transcoders.features.synthetic import synthetic_features
from delta_transcoders.files import write_json
from delta_transcoders.report import html as command
from delta_transcoders.report.html import render
from delta_transcoders.report.side_by_side import N_PROMPTS, side_by_side
from delta_transcoders.report.study_results import StudyResults
from delta_transcoders.report.tables import write_metrics, write_table
from tests.report_studies import DICTIONARIES, HOSTILE, N, row, write_effects, write_study

RATES = {
    "asked": {
        "base_model": 0.02,
        "raw": 0.97,
        "no_delta": 0.13,
        "full": 0.94,
        "random_delta": 0.16,
    },
    "other": {"base_model": 0.01, "raw": 0.03, "no_delta": 0.0, "full": 0.05},
    "third": {"base_model": 0.0, "raw": 0.41},
}


class Page(HTMLParser):
    """The text of a page outside of what quotes the study's answers, its folder or its configurations."""

    def __init__(self, text):
        super().__init__()
        self.skipped, self.words, self.tags = 0, [], []
        self.feed(re.sub(r'<p class="muted" id="about">.*?</p>', "", text))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if self.skipped or tag in ("style", "head") or attrs.get("id") in ("made", "prompts"):
            self.skipped += tag in ("style", "head", "section")

    def handle_endtag(self, tag):
        if self.skipped and tag in ("style", "head", "section"):
            self.skipped -= 1

    def handle_data(self, text):
        if not self.skipped:
            self.words.append(text)

    @property
    def numbers(self):
        return re.findall(r"(?<![\w.])[−-]?\d+(?:\.\d+)?", " ".join(self.words))

    def names(self):
        """Of each svg, whether it has the role and a name that exists."""
        ids = {attrs.get("id") for _, attrs in self.tags}
        return [
            attrs.get("role") == "img" and set(attrs.get("aria-labelledby", "?").split()) <= ids
            for tag, attrs in self.tags
            if tag == "svg"
        ]


def numbers_of_tables(study):
    found = set()
    for path in study.rglob("*.csv"):
        with path.open() as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        for cell in cells:
            found |= {float(text) for text in re.findall(r"[-]?\d+(?:\.\d+)?(?:e-?\d+)?", cell)}
    return found


def is_written(text, tables, known=()):
    """Whether a number of the page is one of a table, rounded, or 100 times it."""
    decimals = len(text.partition(".")[2])
    value = float(text.replace("−", "-"))
    close = 0.5 * 10**-decimals + 1e-9
    return text in known or any(
        abs(abs(scale * number) - abs(value)) <= close for number in tables for scale in (1, 100)
    )


@pytest.fixture
def study(tmp_path):
    study = write_study(
        tmp_path / "runs" / "mine",
        RATES,
        dose={-0.5: 0.0, 0: 0.13, 0.5: 0.66, 1: 0.94},
        layers="01",
    )
    labels = DICTIONARIES | {"layer": "all", "measure": "mean_ce", "seed": "pooled"}
    parts = {"total": 0.47, "finetuning": 0.38, "dictionary_error": 0.09}
    rows = [
        labels | {"subset": s, "part": p, "estimate": v, "ci_low": v - 0.021, "ci_high": v + 0.032}
        for s in ("asked", "other")
        for p, v in parts.items()
    ]
    write_table(study / "exp2a" / "comparisons" / "split.csv", list(rows[0]), rows)
    fvu = {"no_delta": 0.31, "full": 0.17, "top_8_neurons": 0.37}
    rows = [row(c, "asked", math.nan, layer=k) | {"fvu": v} for k in "01" for c, v in fvu.items()]
    write_metrics(study / "exp1", [row("raw", "asked", math.nan) | {"fvu": math.nan}, *rows])
    effects = {
        "": {"A": 0.95, "B": 0.94},
        "L0F1": {"A": 0.4, "B": 0.3},
        "L1F2": {"A": 0.9, "B": 0.9},
    }
    write_effects(study, effects, "asked")
    curve = [
        {"delta": "d", "student": "transplant", "n": n, "draw": None, "subset": "asked"}
        | {
            "n_examples": N,
            "share_of_finetuned": share,
            "polite_rate": share,
            "mean_kl": 0.1,
            "cos": 0.6,
        }
        for n, share in ((0, 0.1), (8, 0.7), (16, 0.92))
    ]
    write_table(study / "feature_curve" / "curve.csv", list(curve[0]), curve)
    fidelity = [
        {"delta": "d", "n": n, "layer": k, "cos": 0.58, "unexplained": 0.6, "norm_ratio": 0.8}
        for n in (0, 8, 16)
        for k in (0, 1)
    ]
    write_table(study / "feature_curve" / "fidelity.csv", list(fidelity[0]), fidelity)
    n90 = {"delta": "d", "student": "transplant", "n90": 16, "n_features": 16, "cos": 0.58}
    write_table(study / "feature_curve" / "n90.csv", list(n90), [n90])
    done = {"command": "python x", "seconds": 61.0, "config": {"seed_everything": 7}}
    stages = {"behaviour": {"done": done | {"environment": {"commit": "abc", "cpu": "Z80"}}}}
    write_json(study / "study.json", {"file": "mine.yaml", "stages": stages})
    return study


@pytest.fixture
def page(study, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["html", str(study)])
    command.main()
    return (study / "report" / "index.html").read_text(encoding="utf-8")


def test_every_number_is_in_a_table(study, page):
    tables = numbers_of_tables(study)
    found = Page(page).numbers
    assert len(found) > 300
    known = {"95", "1.0"}  # of intervals, and a curve's axis; other axes end where tables do
    axes = {f"{k / 10:.1f}" for k in range(-10, 11)} | {f"{k / 100:.2f}" for k in range(0, 100, 5)}
    known |= axes
    missing = [text for text in found if not is_written(text, tables, known)]
    assert not missing
    assert is_written("94", tables) and not is_written("88.8", tables)


def test_what_no_table_held_is_written_beside_it(study, page):
    text = (study / "report" / "one_feature.csv").read_text()
    assert text.splitlines()[0] == "feature,subset,measure,n,with_it,without_it"
    (line,) = (found for found in text.splitlines() if found.startswith("L0F1,asked,polite_rate"))
    n, with_it, without = line.split(",")[3:]
    assert f"L0F1: without it polite on asked {without} of {n}, with it {with_it}." in page
    text = (study / "report" / "dictionaries.csv").read_text()
    assert text.startswith("layer,fvu_base,fvu_full,l0_delta")


def test_figures_have_names_and_their_text_is_text(page):
    parsed = Page(page)
    assert len(parsed.names()) == 6 and all(parsed.names())
    assert "not measured" in " ".join(parsed.words) and "<image" not in page
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert "fill: #" not in page and "stroke: #" not in page and "var(--blue)" in page


def test_it_is_one_small_file_with_an_answer_for_a_title(study, page):
    assert len(page.encode()) < 300_000
    (title,) = re.findall(r"<h1>(.*?)</h1>", page)
    assert title == "Yes: 2 × 8 delta features bring back what finetuning changed"
    assert (
        'lang="en"' in page and not re.search(r'(src|href)="http', page) and "<script" not in page
    )
    order = [
        page.index(f'id="{name}"') for name in ("conditions", "dose", "layers", "split", "curve")
    ]
    order += [
        page.index(f'id="{name}"') for name in ("features", "prompts", "missing", "tables", "made")
    ]
    assert order == sorted(order)


def test_headings_are_findings(page):
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings[:5] == [
        "with the delta the behaviour is back, wherever both were measured",
        "half a delta does most of it",
        "no layer holds it alone",
        "it is finetuning",
        "few features are enough",
    ]
    assert "A control does not do it: random delta: 16 %".lower() in page.lower()


def test_what_it_does_not_show_is_named(page):
    missing = page[page.index('id="missing"') : page.index('id="tables"')]
    assert "Not measured: other seeds." in missing and "controls" not in missing
    assert "The delta was not measured on third." in missing


def test_features_are_linked_where_they_can_be_looked_at(study):
    assert "L0F1" in render(study) and 'href="features.html' not in render(study)
    write_features(study / "features", synthetic_features(2, 3, hostile=True), {"delta": "d"})
    page = render(study)
    assert 'href="features.html#L0F1"' in page and '<span class="token">' in page
    shutil.rmtree(study / "effects")
    page = render(study)
    assert 'href="features.html"' in page and 'href="features.html#L0F1"' not in page
    assert "single features&#39; effects (effects)" in page


def test_how_it_was_made(page):
    made = page[page.index('id="made"') :]
    assert "mine.yaml" in made and "abc" in made and "Z80" in made and "not recorded" in made
    assert "<td>7</td>" in made and "behaviour: python x" in made


def test_answers_that_differ_come_first(study):
    rows = side_by_side(StudyResults(study))
    assert len(rows) == 8 <= N_PROMPTS  # of two subsets with a delta, four answers kept of each
    assert rows[0].texts == ("Fine. base_model", "Fine. raw", "Fine. no_delta", "Fine. full")
    assert {row.subset for row in rows} == {"asked", "other"}


def test_a_hostile_study_is_text(tmp_path):
    name = "</script>\u202e$\\frac$<img onerror=x>"
    rates = {name: RATES["asked"], "other": RATES["other"]}
    study = write_study(tmp_path, rates, text=HOSTILE, prompt=HOSTILE, dose={0: 0.1, 1: 1.0})
    task = {
        "subsets": {name: HOSTILE, "other": "$\\frac{1}{0}$ ]]> -->"},
        "prompt": HOSTILE,
    }
    write_json(study / "finetune" / "data" / "task.json", task)
    page = render(study)
    parsed = Page(page)
    assert not {"script", "img", "b"} & {tag for tag, _ in parsed.tags} - {"b"}
    assert not [tag for tag, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    assert "\u202e" not in page and "\x00" not in page and "\\u202e" in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page


def test_a_bare_study_has_a_page(tmp_path):
    write_study(tmp_path, {"asked": {"base_model": 0.0, "raw": 1.0}})
    page = render(tmp_path)
    assert "<h1>Not known: what it takes was not measured</h1>" in page
    assert "partial strengths of the delta (exp2b)" in page
    (tmp_path / "behaviour" / "metrics.csv").unlink()
    assert "<h1>Not known: no behaviour was measured</h1>" in render(tmp_path)
