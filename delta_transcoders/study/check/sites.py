"""Do public dictionaries fit where the study puts them? On ordinary text, before anything is trained."""

from __future__ import annotations

import argparse
import difflib
import heapq
import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from delta_transcoders.study.check.sources import DictionaryUse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from delta_transcoders.dictionaries.identity import BaseId
    from delta_transcoders.metrics.reconstruction import ReconstructionFit

N_TOKENS = 128
"""Of each text, at most."""

PUBLISHED = {
    "gemma-scope-2b-pt-transcoders": {
        **{0: 0.082, 1: 0.311, 4: 0.296, 6: 0.353, 8: 0.358, 12: 0.5},
        **{16: 0.386, 18: 0.34, 20: 0.325, 24: 0.21, 25: 0.153},
    }
}
"""FVU by layer that others measured on the base model, at an average L0 near 76 (docs/DICTIONARIES.md)."""


def texts() -> list[str]:
    """Paragraphs of plain English that every Python brings along."""
    docs = (heapq.__about__, difflib.SequenceMatcher.__doc__, argparse.__doc__)
    paragraphs = [
        " ".join(p.split()) for doc in docs for p in re.split(r"\n\s*\n", inspect.cleandoc(doc))
    ]
    return [p for p in paragraphs if len(p.split()) >= 25]


def token_rows(tokenizer: PreTrainedTokenizerBase, context: int) -> list[list[int]]:
    return [tokenizer(text).input_ids[: min(N_TOKENS, context)] for text in texts()]


def some(layers: Sequence[int]) -> list[int]:
    """The first, the middle and the last.

    >>> some([0, 3, 7, 9]), some([4])
    ([0, 7, 9], [4])
    """
    return sorted({layers[0], layers[len(layers) // 2], layers[-1]})


class SiteCheck:
    """A base model, opened once for several layers.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: a model that cannot be loaded.
    """

    def __init__(self, use: DictionaryUse) -> None:
        import torch

        from delta_transcoders.activations.capture import boot_bridge
        from delta_transcoders.families import family_of
        from delta_transcoders.families.sites import HOOK_SITES
        from delta_transcoders.language_models import load_model, load_tokenizer

        self.use = use
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_model(use.base_model, use.dtype).to(self.device)
        self.family = family_of(model.config)
        tokenizer = load_tokenizer(use.base_model)
        self.rows = token_rows(tokenizer, self.family.context)
        self.bridge = boot_bridge(model, tokenizer)
        self.site = HOOK_SITES[use.site] if use.site else self.family.site

    def layer(self, layer: int) -> str:
        """How well a layer's dictionary fits, beside the other sites and what is published.

        Raises:
            ValueError: it fits at no site, or clearly better at another than the study's.
        """
        from delta_transcoders.activations.site_check import base_model_fits, require_site
        from delta_transcoders.dictionaries.bases import load_base

        base, base_id = load_base(self.use.dictionaries, layer, **dict(self.use.which))
        if base_id.hook_site not in (None, self.site.name):
            raise ValueError(
                f"its files say that it is for the site {base_id.hook_site!r}, the study captures at "
                f"{self.site.name!r}: --activations.model.hook_site {base_id.hook_site}"
            )
        leading = max(self.family.tokens.leading, base_id.leading)
        table, fits = base_model_fits(
            self.bridge,
            layer,
            {"base": base.to(self.device)},
            self.rows,
            self.site,
            leading=leading,
        )
        ours = require_site(table, self.site, base_id.average_l0)
        others = [row for row in table if row is not ours][:2]  # the best ones
        rivals = ", ".join(f"{row.site.name} {row.fvu:.2f}" for row in others)
        said = f"FVU {ours.fvu:.2f}, cosine {ours.cosine:.2f} at {self.site.name}"
        said += f" ({rivals})" if rivals else ""
        return said + published(base_id, layer, fits["base"])


def published(base_id: BaseId, layer: int, fit: ReconstructionFit) -> str:
    """L0 beside the one that the files' names tell, and others' FVU where it is known.

    >>> from types import SimpleNamespace as Of
    >>> published(Of(source="google/gemma-scope-2b-pt-transcoders", average_l0=76), 12, Of(l0=70.4))
    ', L0 70 (its name says 76), published FVU .50'
    """
    said = f", L0 {fit.l0:.0f}"
    if base_id.average_l0 is not None:
        said += f" (its name says {base_id.average_l0})"
    for name, by_layer in PUBLISHED.items():
        if name in base_id.source and layer in by_layer:
            said += f", published FVU {by_layer[layer]:.2f}".replace(" 0.", " .")
    return said
