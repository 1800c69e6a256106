"""What a study of a public model says once, for all its stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublicBase:
    """A base model and a public set of its dictionaries: `${base.model}` and so on in `configs/public/`.

    Attributes:
        model: hub id or folder of the base model.
        transcoders: hub id or folder of the dictionaries.
        files: which of them, where a layer has several kinds: `files` of `dictionaries.bases.load_base`.
        layers: those that are captured and get a delta; all where None.
        groups: what the experiments replace, each a layer, several joined by `+`, or `all`.
        hook_site, leading: where the dictionaries read, and how many of a text's first tokens they were not
            trained on, where the model's family says otherwise: options of `ActivationCapture`.
        rows: texts that go through the model at once in the experiments.
    """

    model: str | None = None
    transcoders: str | None = None
    files: str | None = None
    layers: list[int] | None = None
    groups: list[int | str] | None = None
    hook_site: str | None = None
    leading: int | None = None
    rows: int = 32
