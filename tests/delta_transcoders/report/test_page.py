"""A study's page: its numbers are in tables, its figures have names, and nothing in a study can break it."""

import csv
import math
import re
import shutil
from html import unescape
from html.parser import HTMLParser

import pytest

from delta_transcoders.features.files import write_features
from delta_transcoders.features.synthetic import synthetic_features
from delta_transcoders.files import write_json
from delta_transcoders.report import html as command
from delta_transcoders.report.side_by_side import N_PROMPTS, side_by_side
from delta_transcoders.report.study_results import StudyResults
from delta_transcoders.report.tables import write_metrics, write_table
from tests.report_studies import DICTIONARIES, HOSTILE, N, page_of, row, write_effects, write_study

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
    """The text of a page outside of what quotes the study's answers, its folder or its configurations.

    Attributes:
        words: (section or "", whether within a figure, text).
    """

    def __init__(self, text):
        super().__init__()
        self.skipped, self.words, self.tags = 0, [], []
        self.section, self.n_figures = "", 0
        self.feed(re.sub(r'<p class="muted" id="about">.*?</p>', "", text))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.n_figures += tag == "svg"
        self.section = attrs["id"] if tag == "section" else self.section
        if self.skipped or tag in ("style", "head") or attrs.get("id") in ("made", "prompts"):
            self.skipped += tag in ("style", "head", "section")

    def handle_endtag(self, tag):
        self.n_figures -= tag == "svg"
        if self.skipped and tag in ("style", "head", "section"):
            self.skipped -= 1

    def handle_data(self, text):
        if not self.skipped:
            self.words.append((self.section, self.n_figures > 0, text))

    @property
    def numbers(self):
        """(section, whether within a figure, number, whether a percent sign follows)."""
        pattern = r"(?<![\w.])([−-]?\d+(?:\.\d+)?)(\s%)?"
        return [
            (section, is_figure, number, bool(sign))
            for section, is_figure, text in self.words
            for number, sign in re.findall(pattern, text)
        ]

    def names(self):
        """Of each svg, whether it has the role and a name that exists."""
        ids = {attrs.get("id") for _, attrs in self.tags}
        return [
            attrs.get("role") == "img" and set(attrs.get("aria-labelledby", "?").split()) <= ids
            for tag, attrs in self.tags
            if tag == "svg"
        ]


WHOLE = ("behaviour/metrics.csv", "exp2a/metrics.csv", "exp2a/comparisons/differences.csv")
SOURCES = {
    "": (*WHOLE, "report/dictionaries.csv"),
    "conditions": (*WHOLE, "controls/metrics.csv"),
    "dose": ("exp2b/metrics.csv",),
    "layers": ("exp2a/metrics.csv",),
    "split": ("exp2a/comparisons/split.csv",),
    "curve": ("feature_curve/curve.csv", "feature_curve/fidelity.csv", "feature_curve/n90.csv"),
    "reconstruction": ("report/dictionaries.csv", "exp1/metrics.csv"),
    "features": ("effects/ranking.csv", "report/one_feature.csv"),
    "missing": (),
    "tables": ("**/*.csv",),
}
"""The tables that each section's numbers are from."""


def cells_of(study, sources):
    """Numbers of tables, and those of them that are shares of examples."""
    plain, shares = set(), set()
    for path in (path for source in sources for path in study.glob(source)):
        with path.open() as file:
            for line in csv.DictReader(file):
                for column, cell in line.items():
                    found = map(float, re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", cell or ""))
                    is_share = re.search(r"_rate|share|^change", column)
                    (shares if is_share else plain).update(found)
                    if re.search(r"_rate", line.get("measure", "")):  # a row about a rate
                        shares.update(map(float, re.findall(r"-?\d+(?:\.\d+)?", cell or "")))
    return plain, shares


def is_written(text, cells):
    """Whether a number of the page is one of these, rounded."""
    decimals = len(text.partition(".")[2])
    close = 0.5 * 10**-decimals + 1e-9
    return any(abs(cell - float(text.replace("−", "-"))) <= close for cell in cells)


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


def test_every_number_is_in_a_table_of_its_section(study, page):
    # Of intervals, the rule for enough features, the darkest cell, and the study's 2 layers of 8 features.
    constants = {"95", "90", "100", "2", "8", "16"}
    ticks = {f"{k / 20:.2f}" for k in range(-20, 21)} | {f"{k / 10:.1f}" for k in range(-10, 11)}
    ticks |= {"0", "1", "25", "50", "75", "1.0", "0.01", "0.001"}
    missing, n_found = [], 0
    cells = {section: cells_of(study, sources) for section, sources in SOURCES.items()}
    for section, is_figure, text, is_percent in Page(page).numbers:
        plain, shares = cells[section]
        percents = {100 * share for share in shares}
        known = percents if is_percent else plain | shares | percents
        n_found += 1
        if text in constants or (is_figure and text.replace("−", "-") in ticks):
            continue
        if not is_written(text, known):
            missing.append((section, text))
    assert not missing and n_found > 300


def test_the_tables_of_a_section_do_not_hold_everything(study, page):
    _, shares = cells_of(study, SOURCES["dose"])
    assert is_written("66", {100 * share for share in shares})
    assert not is_written("40", {100 * share for share in shares})


def test_what_no_table_held_is_written_beside_it(study, page):
    text = (study / "report" / "one_feature.csv").read_text()
    columns = "feature,subset,measure,n,with_it,without_it,change,change_ci_low,change_ci_high"
    assert text.splitlines()[0] == columns
    (line,) = (found for found in text.splitlines() if found.startswith("L0F1,asked,polite_rate"))
    n, with_it, without = line.split(",")[3:6]
    told = f"polite on {without} of {n} asked prompts, with it on {with_it}."
    assert f"L0F1: without it {told}" in page
    text = (study / "report" / "dictionaries.csv").read_text()
    assert text.startswith("layer,fvu_base,fvu_full,l0_delta")


def test_figures_have_names_and_their_text_is_text(page):
    parsed = Page(page)
    assert len(parsed.names()) == 6 and all(parsed.names())
    assert "not measured" in " ".join(text for _, _, text in parsed.words) and "<image" not in page
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
    headings = [unescape(text) for text in re.findall(r"<h2>(.*?)</h2>", page)]
    assert headings[:5] == [
        "with the delta the behaviour is back, wherever both were measured",
        "half a delta does most of it",
        "no layer holds it alone",
        "the loss is finetuning's",
        "it takes many features",
    ]
    assert "a control does not do it: random delta: 16\u00a0%" in page


def test_what_it_does_not_show_is_named(page):
    missing = page[page.index('id="missing"') : page.index('id="tables"')]
    assert "Not measured: other seeds." in missing and "controls" not in missing
    assert "The delta was not measured on third." in missing


def test_features_are_linked_where_they_can_be_looked_at(study):
    assert "L0F1" in page_of(study) and 'href="features.html' not in page_of(study)
    write_features(study / "features", synthetic_features(2, 3, hostile=True), {"delta": "d"})
    page = page_of(study)
    assert 'href="features.html#L0F1"' in page and '<span class="token">' in page
    shutil.rmtree(study / "effects")
    page = page_of(study)
    assert 'href="features.html"' in page and 'href="features.html#L0F1"' not in page
    assert "single features&#39; effects (effects)" in page


def test_damaged_features_and_effects_are_named(study):
    write_json(study / "features" / "features.json", {"format_version": 99})
    (study / "effects" / "generations.jsonl").write_text("[]\n")
    page = page_of(study)
    missing = page[page.index('id="missing"') : page.index('id="tables"')]
    assert "features.json: format_version is 99" in missing
    assert "generations.jsonl, line 1 is no answer" in missing
    assert 'href="features.html"' not in page and "L0F1" in page  # from ranking.csv
    (study / "effects" / "ranking.csv").write_text("layer,rank\n0,1\n")
    page = page_of(study)
    assert "ranking.csv has no column &#39;feature&#39;" in page and "L0F1" not in page


def test_a_subset_of_the_controls_alone(study):
    write_metrics(study / "controls", [row("random_delta", "fourth", 0.5)])
    path = study / "exp2a" / "comparisons" / "split.csv"
    path.write_text(path.read_text().replace(",other,", ",fifth,"))
    page = page_of(study)
    assert "fourth" in page and "fifth" in page


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
    page = page_of(study)
    parsed = Page(page)
    assert not {"script", "img", "b"} & {tag for tag, _ in parsed.tags} - {"b"}
    assert not [tag for tag, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    assert "\u202e" not in page and "\x00" not in page and "\\u202e" in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page


def test_a_bare_study_has_a_page(tmp_path):
    write_study(tmp_path, {"asked": {"base_model": 0.0, "raw": 1.0}})
    page = page_of(tmp_path)
    assert "<h1>Not known: what it takes was not measured</h1>" in page
    assert "partial strengths of the delta (exp2b)" in page
    (tmp_path / "behaviour" / "metrics.csv").unlink()
    assert "<h1>Not known: no behaviour was measured</h1>" in page_of(tmp_path)
