"""docs/DICTIONARIES.md: every cell says one of three things, and what it names is there."""

import re
from pathlib import Path

from delta_transcoders.dictionaries.bases import LAYOUTS
from interop.published_sets import CASES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/DICTIONARIES.md").read_text("utf-8")


def rows() -> list[list[str]]:
    """Of the first table, without its head."""
    lines = [line for line in PAGE.split("\n\n")[2].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_cell_is_tested_refused_or_not_tried():
    for name, *cells in rows():
        assert len(cells) == 6, name
        for cell in cells:
            assert re.match(r"tested \([a-h]\)|refused: .|not tried|–$", cell), (name, cell)
            for letter in re.findall(r"\(([a-h])\)", cell):
                assert re.search(rf"^\({letter}\) ", PAGE, re.MULTILINE), letter


def test_the_tests_and_commands_that_it_names_are_there():
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE)
    assert len(named) == 6
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`make (\w+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_layout_and_published_set_has_a_row():
    names = " ".join(name for name, *_ in rows())
    for layout in LAYOUTS:
        assert layout in names
    for case in CASES:
        assert case.name.split(",")[0].split()[0] in names
