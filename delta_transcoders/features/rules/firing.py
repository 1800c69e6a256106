"""The folder that says on which tokens the drawn units fire, on one half of the wordings.

    units.json            the units, see `units`
    texts.jsonl           each evaluation prompt with its target: example, subset, wording, tokens
    firing.safetensors    margins float32 [P, U], of all texts' tokens end to end; NaN where nothing is read
    firing.json           version, half, and of half B the rules for which it was opened; written last

Shapes: E texts, P tokens of all texts, U units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from delta_transcoders.features.rules.units import Unit, read_units, write_units
from delta_transcoders.files import check_version, read_json, write_json, write_text
from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.tasks.wordings import half_of
from delta_transcoders.tensor_files import load_tensors, save_tensors

FORMAT_VERSION = 1
INFO_NAME = "firing.json"
REMAKE = "make it anew with `python evaluate.py --config …/unit_firing.yaml`"


class Text(NamedTuple):
    """One evaluation prompt and its target."""

    example: int
    subset: str
    wording: str
    tokens: tuple[str, ...]
    """As `texts.shown_tokens` has them; special ones by their names."""


@dataclass(frozen=True)
class FiringTable:
    """Where units fire.

    Attributes:
        units: in the order of `margins_PU`.
        margins_PU: activation above the threshold, float32, see `units.margins`; NaN where nothing is read.
        half: of the wordings, A or B.
        opened_for: of half B, sha256 of the rules that were committed when it was opened.
        info: of the units: `delta`, `model` and the like.
    """

    units: list[Unit]
    texts: list[Text]
    margins_PU: np.ndarray
    half: str
    opened_for: str | None
    info: Mapping[str, Any]

    @property
    def starts_E(self) -> np.ndarray:
        """The first token of each text."""
        lengths = [len(text.tokens) for text in self.texts]
        return np.cumsum([0, *lengths[:-1]])

    @property
    def read_P(self) -> np.ndarray:
        """Whether a token is read: not the first ones, nor special tokens."""
        return ~np.isnan(self.margins_PU).any(axis=1)

    def without_prefixes_of(self, other: FiringTable) -> FiringTable:
        """The same without the tokens that a text of `other` has as well, all that precedes them included.

        A chat template begins every text alike, so that the other half of the wordings is not new there.
        """
        known = {text.tokens[:n] for text in other.texts for n in range(1, len(text.tokens) + 1)}
        known_P = [
            text.tokens[:n] in known for text in self.texts for n in range(1, len(text.tokens) + 1)
        ]
        margins_PU = self.margins_PU.copy()
        margins_PU[np.array(known_P)] = np.nan
        return replace(self, margins_PU=margins_PU)


def write_firing(
    folder: str | Path,
    units: Sequence[Unit],
    texts: Sequence[Text],
    margins_PU: np.ndarray,
    opened_for: str | None,
    info: Mapping[str, Any],
) -> None:
    """Write the folder's files; arguments as of `FiringTable`."""
    folder = Path(folder)
    write_units(folder, units, info)
    lines = (json.dumps(text._asdict()) + "\n" for text in texts)
    write_text(folder / "texts.jsonl", "".join(lines))
    save_tensors(folder / "firing.safetensors", {"margins": torch.from_numpy(margins_PU)})
    half = "A" if opened_for is None else "B"
    said = {"format_version": FORMAT_VERSION, "half": half, "opened_for": opened_for}
    write_json(folder / INFO_NAME, said)


def read_firing(folder: str | Path) -> FiringTable:
    """Read a folder of `write_firing`.

    Raises:
        FileNotFoundError: the folder is not there, or not finished; names the file and the fix.
        ValueError: another version, a damaged file, or texts of the other half; names it.
    """
    folder = Path(folder)
    said = read_json(folder / INFO_NAME, f"no table there of where units fire; {REMAKE}")
    check_version(folder / INFO_NAME, said.get("format_version"), FORMAT_VERSION, REMAKE)
    units, info = read_units(folder)
    path = folder / "texts.jsonl"
    try:
        lines = [parse_json(line, f"{path}, line {n}") for n, line in text_lines(path)]
        texts = [Text(**line | {"tokens": tuple(line["tokens"])}) for line in lines]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {REMAKE}") from error
    margins_PU = load_tensors(folder / "firing.safetensors")["margins"].numpy()
    shape = sum(len(text.tokens) for text in texts), len(units)
    if margins_PU.shape != shape:
        raise ValueError(
            f"{folder} is damaged: margins are {margins_PU.shape}, not {shape}; {REMAKE}"
        )
    half = said["half"]
    if wrong := [text for text in texts if half_of(text.wording) != half]:
        raise ValueError(f"{path}: example {wrong[0].example} is not of half {half}; {REMAKE}")
    return FiringTable(units, texts, margins_PU, half, said["opened_for"], info)
