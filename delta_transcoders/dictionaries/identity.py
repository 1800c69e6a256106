"""Where a dictionary comes from and where it belongs: what a set's reader says of it."""

from __future__ import annotations

from dataclasses import dataclass

from delta_transcoders.dictionaries.transcoder import Activation
from delta_transcoders.families.sites import SiteName

L0 = int | float


@dataclass(frozen=True)
class BaseId:
    """Which base dictionary this is, and which tensors of which model it is for."""

    source: str
    """Folder or hub id of the set."""
    file: str
    """Of its weights, below the source."""
    layer: int
    width: int
    """Number of features."""
    average_l0: L0 | None
    """As its files or their names say it; None where they do not."""
    hash: str
    """`Transcoder.fingerprint`."""
    hook_site: SiteName | None
    """Where it reads and writes; None where its files do not say, and the model family's is meant. Scales of
    its own are in the dictionary."""
    activation: Activation
    k: int | None
    skip: bool
    leading: int
    """How many of a text's first tokens it was not trained on."""
    base_model: str | None
    """The model it explains, where its files say so."""

    @property
    def path(self) -> str:
        """Folder or hub path of the file: what `DeltaConfig.base_id` records."""
        return f"{self.source}/{self.file}"
