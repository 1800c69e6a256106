"""Named sources of what is written in place of an MLP's output.

A new kind is a new `Source` and, to name it in a YAML, a `LayerSources`; nothing else has to know it.

Shapes: N tokens, D d_model, F features, B rows of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from delta_transcoders.dictionaries.corrections import AffineCorrection
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.interventions.intervention import Intervention, Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Source(nn.Module):
    """A function of the MLP's input, in the units of the MLP's output.

    Attributes:
        n_features: how many can be kept or dropped; 0 for a source that has none.
        site: the only hook site that it is for; None: it does not know.
        leading: how many of a text's first tokens it was not trained on.
    """

    n_features: int = 0
    site: HookSite | None = None
    leading: int = 0

    def forward(self, x_ND: Tensor, feature_mask_NF: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The output [N, D] and the activations [N, F] it is made of (None without features).

        Args:
            x_ND: at the hook site's input, in its unit.
            feature_mask_NF: a factor of each activation; as bool, False where a feature is to be zero. None:
                all as they are.
        """
        raise NotImplementedError

    def activity(self, a_NF: Tensor) -> Tensor:
        """How much is active in each token [N]: Σ|a|, each times the norm of what it writes."""
        return a_NF.abs().sum(-1)


class LayerSources(ABC):
    """A source for every layer: what a user's own kind of source is given by (`class_path` in a YAML)."""

    @abstractmethod
    def load(self, layers: Collection[int], site: HookSite, d_model: int) -> dict[int, Source]:
        """The sources by layer, for those layers that have one.

        Args:
            layers: that an experiment may replace.
            site: whose input they read and whose output they stand for, in its unit.
            d_model: width of both.
        """


SourceBank = Mapping[str, Mapping[int, Source]]
"""By name (`base`, `delta`, `base_mlp`, …), then by layer."""


class DictionarySource(Source):
    """A transcoder; its bias and skip are part of the output whichever features are kept."""

    def __init__(self, transcoder: Transcoder, leading: int = 0) -> None:
        super().__init__()
        self.transcoder = transcoder
        self.n_features = transcoder.n_features
        self.leading = leading

    def forward(self, x_ND: Tensor, feature_mask_NF: Tensor | None) -> tuple[Tensor, Tensor]:
        a_NF = self.transcoder.encode(x_ND)
        if feature_mask_NF is not None:
            a_NF = a_NF * feature_mask_NF
        return self.transcoder.decode(a_NF, x_ND), a_NF

    def activity(self, a_NF: Tensor) -> Tensor:
        """Σ|a|·‖row‖: without the norms, larger rows and smaller activations would be another number."""
        norm_F = torch.linalg.vector_norm(self.transcoder.W_dec, dim=1, dtype=torch.float32)
        return a_NF.abs().float() @ norm_F


class RedrawnSource(DictionarySource):
    """A dictionary with another decoder of the same norms, drawn anew whenever it is used.

    So dozens of draws take no more memory than the one dictionary whose encoder they share.

    Args:
        transcoder: the dictionary.
        draw: what makes another one of it and a seed (`random_directions`, `permuted_directions`).
        seed: of the draw.
    """

    def __init__(
        self, transcoder: Transcoder, draw: Callable[[Transcoder, int], Transcoder], seed: int
    ) -> None:
        super().__init__(transcoder)
        self.draw = draw
        self.seed = seed

    def forward(self, x_ND: Tensor, feature_mask_NF: Tensor | None) -> tuple[Tensor, Tensor]:
        return DictionarySource(self.draw(self.transcoder, self.seed))(x_ND, feature_mask_NF)


class AffineSource(Source):
    """x @ W + b, or b alone: corrections without features."""

    def __init__(self, correction: AffineCorrection) -> None:
        super().__init__()
        self.correction = correction

    def forward(self, x_ND: Tensor, feature_mask_NF: None = None) -> tuple[Tensor, None]:
        return self.correction(x_ND.to(self.correction.b.dtype)), None


class MLPSource(Source):
    """A model's own MLP.

    Args:
        mlp: what a `ModelFamily` gives for this site.
    """

    def __init__(self, mlp: nn.Module, site: HookSite) -> None:
        super().__init__()
        self.mlp = mlp
        self.site = site

    def forward(self, x_ND: Tensor, feature_mask_NF: None = None) -> tuple[Tensor, None]:
        return self.mlp(x_ND), None


def mlp_sources(
    model: PreTrainedModel, layers: Collection[int], site: HookSite | None = None
) -> dict[int, MLPSource]:
    """The MLPs of a model that no bridge has wrapped, by layer; only they are kept alive of it.

    Args:
        site: where x is read; where the family's public dictionaries do if None.

    Raises:
        ValueError: an MLP cannot be put back exactly at this site.
    """
    family = family_of(model.config)
    site = site or family.site
    return {layer: MLPSource(family.mlp(model, layer, site), site) for layer in layers}


def check_sources(bank: SourceBank, interventions: Sequence[Intervention]) -> None:
    """Refuse interventions that the bank cannot serve, before any forward pass.

    Raises:
        ValueError: names the condition, the layer, the source and, where it is one, the feature.
    """
    for intervention in interventions:
        for layer, write in intervention.writes.items():
            for term in write.terms:
                where = f"condition {intervention.condition!r}, layer {layer}"
                if term.source not in bank:
                    known = ", ".join(sorted(bank)) or "none"
                    raise ValueError(f"{where}: no source {term.source!r}; there is {known}")
                if layer not in bank[term.source]:
                    held = ", ".join(map(str, sorted(bank[term.source]))) or "no layer"
                    raise ValueError(
                        f"{where}: source {term.source!r} has no layer {layer}; it has {held}"
                    )
                n_features = bank[term.source][layer].n_features
                for feature in (*(term.keep_features or ()), *term.drop_features):
                    if not 0 <= feature < n_features:
                        raise ValueError(
                            f"{where}: source {term.source!r} has no feature {feature}; "
                            f"it has {n_features}"
                        )


def feature_masks(terms: Sequence[Term | None], n_features: int) -> Tensor | None:
    """Which features may be active in each row, bool [B, F]; None where all may in every row.

    Args:
        terms: each row's term of one source; None for a row that does not use it.
    """
    restricted = [t is not None and (t.keep_features is not None or t.drop_features) for t in terms]
    if not any(restricted):
        return None
    mask_BF = torch.ones(len(terms), n_features, dtype=torch.bool)
    for row, term in enumerate(terms):
        if term is None:
            continue
        if term.keep_features is not None:
            mask_BF[row] = False
            mask_BF[row, list(term.keep_features)] = True
        mask_BF[row, list(term.drop_features)] = False
    return mask_BF
