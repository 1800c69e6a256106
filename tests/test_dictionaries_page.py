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
    assert len(named) == 7
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`make (\w+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def without_a_row(names: list[str]) -> list[str]:
    """Layouts and published sets that none of these rows is about."""
    sets = [case.name.replace("Gemma Scope 2, affine", "… `_affine`") for case in CASES]
    starts = {re.split(r",| \w+_transcoder| transcoder", name)[0] for name in (*LAYOUTS, *sets)}
    return [
        start
        for start in sorted(starts)
        if not any(re.match(rf"{re.escape(start)}(?! \d)", name) for name in names)
    ]


def test_every_layout_and_published_set_has_a_row():
    names = [name for name, *_ in rows()]
    assert not without_a_row(names)
    refused = [name for name, read, *_ in rows() if read.startswith("refused")]
    assert len(refused) == 2
    for name in set(names) - set(refused):
        assert without_a_row([other for other in names if other != name]), name
