"""What pages are made of: Jinja2 templates, and styles and scripts that they hold inline."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from delta_transcoders.report.templates import environment

FOLDER = Path(__file__).parent


def asset(name: str) -> Markup:
    """A style or script of this folder, to be put into a page as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def page_environment() -> jinja2.Environment:
    """For this folder; templates call `asset`."""
    found = environment(FOLDER)
    found.globals["asset"] = asset
    return found
