"""Jinja2 templates of the pages that are written, and how they are read."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _one_line(text: str) -> str:
    """Prose that a template wraps, as one line: a table's row or a paragraph."""
    return " ".join(text.split()) + "\n"


def environment(folder: Path = Path(__file__).parent) -> jinja2.Environment:
    """For the templates in a folder; `.html` is escaped, and a name that is not given is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"base64": _base64, "one_line": _one_line}
    return found
