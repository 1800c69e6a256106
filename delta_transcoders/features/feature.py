"""What is known of one delta feature; `features.files` reads and writes it, pages and exports show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["top", "fifth_4", "fifth_3", "fifth_2", "fifth_1", "silent"]
"""Why a context is shown: among the strongest; drawn from the places with activations in a fifth of the
range, 60–80 % of the maximum in `fifth_4`; drawn from texts on which the feature never fires."""
HELD_OUT = " (held out)"
"""Ends the name of a held-out subset where the cache has one of the same name."""


def range_of(fifth: Kind) -> str:
    """
    >>> range_of("fifth_4")
    '60–80 % of its maximum'
    """
    n = int(fifth.removeprefix("fifth_"))
    return f"{20 * n - 20}–{20 * n} % of its maximum"


@dataclass(frozen=True)
class Context:
    """A stretch of a text around the token that it is shown for."""

    kind: Kind
    subset: str
    example: str
    """The text's number in its split, as the cache or the evaluation's records count it."""
    tokens: tuple[str, ...]
    """As the tokenizer decodes each alone, at most `WINDOW`; bytes that are no character as `\\xNN`."""
    special: tuple[bool, ...]
    """Whether a token is one of the tokenizer's special ones, such as BOS."""
    activations: tuple[float, ...]
    """Of the finetuned model's own run; NaN where the feature is never read, as on BOS."""
    peak: int
    """Index into `tokens`: the text's strongest token, or the one that was drawn; in a silent context the
    last."""
    target_from: int | None
    """Index of the first token that the model is to write; None where the window holds none."""
    cut_left: bool
    cut_right: bool
    n_alike: int
    """Further texts that are the same up to the peak but for digits; none of them is shown for it."""


WINDOW = 64


@dataclass(frozen=True)
class Activity:
    """How much a feature fires on the texts of one subset."""

    held_out: bool
    """Whether these are texts that the delta was not trained on."""
    n_tokens: int
    n_examples: int
    density: float
    """Share of the tokens on which it fires."""
    example_density: float
    """Share of the texts on which it fires at all."""
    mean: float
    """Over the tokens on which it fires; NaN where there is none."""
    maximum: float
    histogram: tuple[int, ...]
    """Tokens on which it fires by activation, in equal bins from 0 to `Feature.maximum`."""


@dataclass(frozen=True)
class TokenActivity:
    token: str
    share: float
    """Of the feature's whole activity."""
    fires: float
    """Share of the token's occurrences on which the feature fires."""
    mean: float
    """Over those."""


@dataclass(frozen=True)
class Effect:
    """What one ablation changes on one subset; intervals are 95 %, NaN where not measured."""

    ablation: str
    subset: str
    measure: str
    """A column of `ranking.csv`, such as `dce`."""
    value: float
    low: float
    high: float
    n_examples: int


@dataclass(frozen=True)
class Feature:
    layer: int
    number: int
    """Its row in the layer's decoder."""
    maximum: float
    activity: dict[str, Activity]
    """By subset, of the cache first; held-out subsets of the same name end in `HELD_OUT`."""
    tokens: tuple[TokenActivity, ...]
    """Over all subsets; the largest shares first."""
    promotes: tuple[tuple[str, float], ...]
    """Decoder row through the final norm's scale and the unembedding: tokens with their logits. Later layers
    are left out, so this is a hint everywhere but in the last."""
    suppresses: tuple[tuple[str, float], ...]
    together: tuple[tuple[int, int, float], ...]
    """Features that fire with it: layer, number, Jaccard index of the tokens, or of a sample of them."""
    matches: tuple[tuple[str, int, float], ...]
    """The nearest feature of the same layer in deltas of other seeds: folder, number, rows' cosine."""
    effects: tuple[Effect, ...]
    """Of its removal, where that was measured."""
    attributions: dict[str, dict[str, float]]
    """By name (`ig_target`) and subset, nats an example."""
    contexts: tuple[Context, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """L0F31."""
        return f"L{self.layer}F{self.number}"
