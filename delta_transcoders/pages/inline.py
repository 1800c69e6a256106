"""One feature as a piece of HTML for notebooks: `IPython.display.HTML(inline_feature(feature))`."""

from __future__ import annotations

from collections.abc import Iterator

from delta_transcoders.features.feature import Context, Feature
from delta_transcoders.foreign_text import shown
from delta_transcoders.pages.templates import page_environment
from delta_transcoders.pages.words import change, measure_of, percent, sentences
from delta_transcoders.report.formatting import number


def inline_feature(feature: Feature, n_contexts: int = 6) -> str:
    """What the feature fires on and what its removal does; static, without scripts and other files.

    Args:
        n_contexts: the strongest to show, of the subset on which the feature is densest.
    """
    top = [context for context in feature.contexts if context.kind == "top"]
    subsets = {context.subset for context in top}
    densest = max(
        subsets, key=lambda s: (getattr(feature.activity.get(s), "density", 0), s), default=None
    )
    environment = page_environment()
    environment.filters |= {"percent": percent, "number": number, "shown": shown, "strip": _strip}
    return environment.get_template("inline_feature.html.j2").render(
        feature=feature,
        words=sentences(feature),
        effects=[
            (measure_of(e.measure).titled(), e.subset, change(e))
            for e in feature.effects
            if e.ablation == "dropped"
        ],
        contexts=[context for context in top if context.subset == densest][:n_contexts],
    )


def _strip(context: Context, maximum: float) -> Iterator[tuple[str, str, float, float]]:
    """Of each token: text, classes, share of the maximum and activation."""
    tokens = zip(context.tokens, context.special, context.activations, strict=True)
    for i, (token, is_special, activation) in enumerate(tokens):
        is_active = activation > 0  # nan is not
        classes = [
            name for name, is_so in (("peak", i == context.peak), ("special", is_special)) if is_so
        ]
        text = token.replace("\n", "⏎\n") if is_active else token
        yield text, " ".join(classes), activation / maximum if is_active else 0.0, activation
