"""A study as one picture: `python -m delta_transcoders.report.readme_figure STUDY [--out docs]`.

Left the behaviour against the strength of the delta, right the contexts of one feature on which it is
strongest. Writes `readme_light.svg` and `readme_dark.svg`, for a page that has both themes.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from delta_transcoders.command import run
from delta_transcoders.files import write_text
from delta_transcoders.report.answer import feature_sentence
from delta_transcoders.report.charts import dose_response
from delta_transcoders.report.one_feature import (
    OneFeature,
    feature_set,
    is_of_ranking,
    one_feature,
    one_word,
)
from delta_transcoders.report.sentences import spoken
from delta_transcoders.report.study_results import StudyResults
from delta_transcoders.report.svg import BASE_CSS, inline_svg

if TYPE_CHECKING:
    from delta_transcoders.features.feature import Context, Feature
    from delta_transcoders.features.files import FeatureSet

WIDTH, HEIGHT, LEFT, HALF = 1240, 390, 12, 590
N_CONTEXTS, N_CHARACTERS, CHARACTER = 4, 76, 7.8
"""Contexts, characters a line, and the width of one at 13 points."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def draw(results: StudyResults) -> str:
    """The picture with the colours' names in their places.

    Raises:
        ValueError: a study without answers at several strengths.
    """
    if results.measure is None or not results.alphas:
        raise ValueError(
            f"{results.study} has no answers at several strengths of the delta (exp2b)"
        )
    rows = [row for row in results.exp2b if row["layer"] == results.swept_layer]
    figure = dose_response(rows, [results.measure])
    chart = str(inline_svg(figure, "dose", "Answers by strength of the delta"))
    chart = chart.replace("<svg ", f'<svg x="{LEFT}" y="40" width="540" height="340" ', 1)
    heading = f"Turn the delta up: share of prompts with {spoken(results.measure)}"
    parts = [_text(LEFT, 24, heading, size=17, weight=650), chart]
    found = one_feature(results)
    features = feature_set(results)
    if features and not is_of_ranking(results, features):
        found = None  # it is of another delta
    feature = _feature(features, found)
    if feature is not None:
        token = one_word(feature.tokens[0].token) if feature.tokens else ""
        name = f"{feature.name} fires on “{token}”" if token else feature.name
        parts += [_text(HALF, 24, f"Look at a feature: {name}", size=17, weight=650)]
        parts += _contexts(feature, results.subset)
    sentence = feature_sentence(results, found)
    if sentence:
        text = re.sub(r"^\S+(, strongest on “[^”]*”)?: ", f"{sentence.heading}: ", sentence.text)
        text = text[0].upper() + text[1:]
        for i, line in enumerate(textwrap.wrap(text, 90)):
            parts.append(_text(HALF, HEIGHT - 78 + 20 * i, line, size=14))
    title = f"{heading}. {sentence.text if sentence else ''}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="{FONT}" '
        f'aria-labelledby="name"><title id="name">{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="var(--bg)"/>{"".join(parts)}</svg>\n'
    )


def _feature(features: FeatureSet | None, named: OneFeature | None) -> Feature | None:
    """The feature that the study's answer names, or else the one that is active most."""
    if not features:
        return None
    if named:
        layer, _, number = named.name[1:].partition("F")
        return features.feature(int(layer), int(number))
    return max(features, key=lambda feature: feature.maximum)


def _contexts(feature: Feature, subset: str) -> Iterator[str]:
    """The strongest contexts, of a subset first, held-out before trained ones; two lines of each.

    Their tokens are shaded.
    """
    y = 60
    strongest = [context for context in feature.contexts if context.kind == "top"]

    def place(context: Context) -> tuple[bool, bool]:
        is_other = context.subset not in (subset, f"{subset} (held out)")
        return is_other, not feature.activity[context.subset].held_out

    strongest.sort(key=place)
    for context in strongest[:N_CONTEXTS]:
        yield f'<path d="M {HALF} {y - 20} H {WIDTH}" stroke="var(--line)"/>'
        for line in _lines(context):
            x = HALF
            for i in line:
                token = one_word(context.tokens[i]).replace("␣", " ")
                width = CHARACTER * len(token)
                share = context.activations[i] / feature.maximum if feature.maximum else 0.0
                if share > 0.02:
                    yield (
                        f'<rect x="{x:.1f}" y="{y - 13}" width="{width:.1f}" height="18" rx="3" '
                        f'fill="var(--blue)" fill-opacity="{0.08 + 0.47 * share:.2f}"/>'
                    )
                yield _text(x, y, token, size=13, mono=True, width=width)
                x += width
            y += 21
        y += 14


def _lines(context: Context) -> Sequence[list[int]]:
    """Indices of the tokens around the peak, the line with the peak last or, where it begins one, first."""
    lines: list[list[int]] = [[]]
    used = 0
    for i, token in enumerate(context.tokens):
        length = len(one_word(token))
        if used + length > N_CHARACTERS or ("\n" in context.tokens[i - 1] and i):
            lines.append([])
            used = 0
        lines[-1].append(i)
        used += length
    at = next((k for k, line in enumerate(lines) if context.peak in line), 0)
    start = max(0, min(at - (at > 0), len(lines) - 2))
    return lines[start : start + 2]


def _text(
    x: float,
    y: float,
    text: str,
    size: int,
    weight: int = 400,
    mono: bool = False,
    width: float = 0,
):
    more = f' font-family="{MONO}" textLength="{width:.1f}" xml:space="preserve"' if mono else ""
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" fill="var(--fg)"{more}>'
        f"{escape(text)}</text>"
    )


def themes() -> dict[str, dict[str, str]]:
    """Values of the pages' colours, by theme."""
    css = BASE_CSS.read_text(encoding="utf-8")
    light = css[css.index(":root {") :]
    dark = css[css.index(":root[data-theme=dark]") :]
    return {
        name: dict(re.findall(r"(--[\w-]+): (#\w+);?", block[: block.index("}")]))
        for name, block in (("light", light), ("dark", dark))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study, for example runs/tiny")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the files (docs)")
    args = parser.parse_args()
    picture = draw(StudyResults(args.study))
    for theme, colors in themes().items():
        colors.setdefault("--violet", colors["--grey"])
        text = re.sub(r"var\((--[\w-]+)\)", lambda found, c=colors: c[found[1]], picture)
        write_text(args.out / f"readme_{theme}.svg", text)
    print(f"written: {args.out / 'readme_light.svg'}, {args.out / 'readme_dark.svg'}")


if __name__ == "__main__":
    run(main)
