"""The README and docs/: links and pictures are there, numbers are those of the tables, code in them runs."""

import csv
import math
import re
from decimal import Decimal
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [
    page for page in PAGES if page.name not in ("FINDINGS.md", "LOG.md")
]  # by hand, and kept current
RESULTS = ROOT / "docs/results/604163"
NUMBER = r"(?<![\w.])−?\d*\.\d+(?![\w.]*\d)"
# Of the README's findings, in their order: figures of docs/findings.csv, each of two seeds.
SEEDS = ("604163", "277749")
IN_README = [
    "exp2a 3 tool no_delta tool_call_rate",
    "exp2a all tool no_delta tool_call_rate",
    "exp2a all tool full tool_call_rate",
    "controls all tool random_delta tool_call_rate",
    "exp2a all tool base_mlp math_correct_rate",
    "transplant_kl_nmse all tool transplant math_correct_rate",
    "feature_curve_kl_nmse/n90.csv cos",
    "spillover_transplant all general transplant mean_kl",
    "spillover_transplant - general raw mean_kl",
]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    linked = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="(.*?)"', text)
    for link in linked:
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_lines_are_short_enough_to_read(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for line in text.splitlines():
        a_test_s_name = "::test_" in line
        assert len(line) <= 120 or line.startswith(("|", "  <")) or a_test_s_name, line


def is_rounded(text: str, value: float) -> bool:
    """Whether a number that is printed is this value.

    >>> is_rounded(".48", 0.476667), is_rounded("−.143", -0.143389), is_rounded(".48", 0.4866)
    (True, True, False)
    """
    digits = len(text.split(".")[1])
    printed = Decimal(text.replace("−", "-"))
    return math.isfinite(value) and abs(float(printed) - value) <= 0.5001 * 10**-digits


def test_the_readme_s_findings_are_the_tables_numbers():
    text = (ROOT / "README.md").read_text("utf-8")
    section = re.search(r"## What was found\n(.*?)\n## ", text, re.DOTALL)[1]
    bullets = section[section.index("\n- ") :]
    found = re.findall(NUMBER, re.sub(r"\(.*?\)", "", bullets.replace("bound was .02", "")))
    with open(ROOT / "docs/findings.csv", encoding="utf-8", newline="") as file:
        values = {(row["figure"], row["seed"]): float(row["value"]) for row in csv.DictReader(file)}
    expected = [values[figure, seed] for figure in IN_README for seed in SEEDS]
    assert len(found) == len(expected), found
    for text, value in zip(found, expected, strict=True):
        assert is_rounded(text, value), (text, value)


def test_the_concepts_examples_are_the_tables_numbers():
    page = (ROOT / "docs/CONCEPTS.md").read_text("utf-8")
    examples = [re.sub(r"\s*\n> ", " ", e) for e in re.findall(r"(?:^> .*\n)+", page, re.MULTILINE)]
    n_checked = 0
    for example in examples:
        cells = []
        for path in re.findall(r"`([\w/]+\.csv)`", example):
            with open(RESULTS / path, encoding="utf-8", newline="") as file:
                cells += [cell for row in csv.reader(file) for cell in row]
        values = [float(cell) for cell in cells if re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell)]
        numbers = re.findall(NUMBER, example)
        # α is given in the text; an N90 is a count.
        numbers = [n for n in numbers if not (n in (".25", ".5", ".75") and "α = 0" in example)]
        assert bool(values) == bool(numbers) or "n90" in example or "1,024" in example, example
        for number in numbers:
            assert any(is_rounded(number, value) for value in values), (number, example)
        n_checked += len(numbers)
    assert n_checked > 50


def test_every_wide_tolerance_has_a_reason():
    """docs/TOLERANCES.md names each file that compares within 1e-3 or more, with this tolerance."""
    page = (ROOT / "docs/TOLERANCES.md").read_text("utf-8")
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        for tolerance in re.findall(r"\b(?:rel|abs|atol|rtol)=(\d[\de.-]*)", text):
            if float(tolerance) >= 1e-3:
                name = path.relative_to(ROOT).as_posix()
                assert f"`{name}`" in page or f"`{path.name}`" in page, (name, tolerance)


@pytest.mark.slow
def test_the_library_s_page_runs(dictionaries, monkeypatch, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiny").symlink_to(dictionaries)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/LIBRARY.md").read_text("utf-8"), re.DOTALL
    )
    code = "\n".join(blocks).replace(
        "range(4)", "range(2)"
    )  # the study of the tests has two layers
    exec(compile(code, "docs/LIBRARY.md", "exec"), {})
    assert capsys.readouterr().out
