"""A figure as a part of a page: SVG with its text as text, a name, and the page's own colours."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from delta_transcoders.report.charts import BLUE, GREY, INK, LINE, MUTED, ORANGE, VIOLET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE_CSS = Path(__file__).parents[1] / "pages" / "base.css"
"""What all pages include, and where colours have their values."""
VARIABLES = {
    INK: "--fg",
    MUTED: "--muted",
    LINE: "--line",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREY: "--grey",
    VIOLET: "--violet",
    "#ffffff": "--bg",
    "#000000": "--fg",
}
"""Colours of figures, and what `pages/base.css` and `report.css` call them."""

_NUMBER = re.compile(r"\d+\.\d{3,}")


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}"


def inline_svg(figure: Figure, name: str, title: str, description: str = "") -> Markup:
    """
    Args:
        name: of letters, the first part of all ids, which may occur once in a page.
        title: what a reader hears who cannot see the figure; `description` says more.
    """
    import matplotlib

    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    out = io.StringIO()
    # Paths would be as many bytes as the rest of the page, and no one could search them.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # would rule the whole page
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)  # text again, and not escaped
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's
    svg = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;\"]*", r"font-weight: \1; font-size: \2", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: _NUMBER.sub(_rounded, tag[0]), svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"|<g [^>]*/>|<defs>\s*</defs>', "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    # Text without a colour of its own is black, which no theme changes.
    svg = re.sub(r'<text style="(?![^"]*fill:)', '<text style="fill: var(--fg); ', svg)
    svg = re.sub(r"(?m)^ +|\n(?=<)", "", svg)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    label = f'<title id="{name}-title">{escape(title)}</title>'
    if description:
        label += f'<desc id="{name}-desc">{escape(description)}</desc>'
    names = f"{name}-title {name}-desc" if description else f"{name}-title"
    head = (
        f'<svg viewBox="{view[0][9:-1]}" role="img" aria-labelledby="{names}" '
        f'style="width: {float(view[1]):.0f}px">{label}'
    )
    return Markup(head + svg[svg.index(">") + 1 :])
