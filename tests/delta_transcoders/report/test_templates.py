"""Templates: where they are found, and what they refuse."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import jinja2
import pytest

from delta_transcoders.report import templates
from delta_transcoders.report.templates import environment

ROOT = Path(__file__).parents[3]


def test_all_templates_are_package_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    files = [p.name for p in Path(templates.__file__).parent.iterdir() if p.suffix == ".j2"]
    assert len(files) >= 3
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in files)
    assert set(files) <= set(environment().list_templates())


def test_only_html_is_escaped_and_a_missing_name_is_an_error(tmp_path):
    for name in ("page.html.j2", "page.md.j2"):
        (tmp_path / name).write_text("{{ text }}")
    pages = environment(tmp_path)
    assert pages.get_template("page.html.j2").render(text="<b>") == "&lt;b&gt;"
    assert pages.get_template("page.md.j2").render(text="<b>") == "<b>"
    with pytest.raises(jinja2.UndefinedError, match="'text' is undefined"):
        pages.get_template("page.md.j2").render()


def test_filters():
    pages = environment()
    text = "{% filter one_line %}\n| a\n  b\n| c |\n{% endfilter %}\nrest"
    assert pages.from_string(text).render() == "| a b | c |\nrest"
