"""The folder of a study's feature statistics, written feature by feature and read layer by layer.

    features.json                   version, what was looked at, with fingerprints; written last
    features.csv                    a row for each (layer, feature, subset), for people and tables
    tokens.json                     text of each token that a context shows, and whether it is special
    layer_L/features.jsonl          a line for each feature: all but contexts and effects
    layer_L/contexts.safetensors    tokens of all contexts end to end: token_ids int32, activations float32
                                    [n]; of each context: starts int64 [C + 1], features and others int32 [C]

`token_ids` count in `tokens.json`. Effects and attributions are not here: `effects.read_rankings` takes them
from a ranking when features are read, so that one that is made anew is seen at once.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta_transcoders.features.effects import beside, read_rankings
from delta_transcoders.features.feature import Activity, Context, Feature, Kind, TokenActivity
from delta_transcoders.files import check_version, read_json, write_json, write_text
from delta_transcoders.tensor_files import load_tensors, save_tensors

FORMAT_VERSION = 1
INFO_NAME = "features.json"
COLUMNS = ("layer", "feature", "subset", "held_out", "n_tokens", "n_examples", "density")
COLUMNS += ("example_density", "mean", "maximum")
REMAKE = "make them anew with `python evaluate.py --config …/features.yaml`"
_NUMBERS = ("features", "kinds", "subsets", "peaks", "targets", "cuts", "alike")
_KINDS: dict[Kind, int] = {
    "top": 0, "fifth_4": 2, "fifth_3": 3, "fifth_2": 4, "fifth_1": 5, "silent": 6
}  # fmt: skip
"""As files number them; 1 is the highest fifth, which the strongest show."""
_KIND_OF = {number: kind for kind, number in _KINDS.items()}


class _Tokens:
    """Numbers of the tokens that contexts show, in the order in which they are met."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, bool], int] = {}

    def ids(self, context: Context) -> list[int]:
        pairs = zip(context.tokens, context.special, strict=True)
        return [self.numbers.setdefault(pair, len(self.numbers)) for pair in pairs]


def write_features(
    folder: str | Path, features: Iterable[Feature], info: Mapping[str, Any]
) -> None:
    """Write the folder's files; one layer's features are held at a time.

    Args:
        features: layer by layer, each layer's by number from 0. Their effects are left out.
        info: what was looked at, such as `delta`; goes into `features.json`.

    Raises:
        ValueError: no feature.
    """
    folder, tokens, rows, n_features = Path(folder), _Tokens(), [], {}
    subsets: dict[str, Activity] = {}
    for layer, group in groupby(features, key=lambda feature: feature.layer):
        of_layer = list(group)
        subsets = of_layer[0].activity
        n_features[str(layer)] = len(of_layer)
        lines = "".join(json.dumps(_line(feature)) + "\n" for feature in of_layer)
        write_text(folder / f"layer_{layer}" / "features.jsonl", lines)
        tensors = _context_tensors(of_layer, list(subsets), tokens)
        save_tensors(folder / f"layer_{layer}" / "contexts.safetensors", tensors)
        rows += [row for feature in of_layer for row in _rows(feature)]
    if not n_features:
        raise ValueError(f"there is no feature to write into {folder}")
    _write_csv(folder / "features.csv", rows)
    write_text(folder / "tokens.json", json.dumps({"tokens": list(tokens.numbers)}) + "\n")
    of_subsets = [
        {"name": name, **{k: getattr(a, k) for k in ("held_out", "n_tokens", "n_examples")}}
        for name, a in subsets.items()
    ]
    written = {"format_version": FORMAT_VERSION, "subsets": of_subsets, "n_features": n_features}
    write_json(folder / INFO_NAME, written | dict(info))


def _line(feature: Feature) -> dict[str, Any]:
    line = asdict(replace(feature, contexts=(), effects=(), attributions={}))
    for name in ("contexts", "effects", "attributions"):
        del line[name]
    for activity in line["activity"].values():  # JSON has no NaN
        activity["mean"] = None if math.isnan(activity["mean"]) else activity["mean"]
    return line | {"examples": [context.example for context in feature.contexts]}


def _rows(feature: Feature) -> Iterator[dict[str, Any]]:
    for subset, activity in feature.activity.items():
        where = {"layer": feature.layer, "feature": feature.number, "subset": subset}
        yield where | {name: getattr(activity, name) for name in COLUMNS[3:]}


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return "" if math.isnan(value) else f"{value:.6g}"
        return str(value)

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([text(row[column]) for column in COLUMNS] for row in rows)
    write_text(path, out.getvalue())


def _context_tensors(
    features: Sequence[Feature], subsets: Sequence[str], tokens: _Tokens
) -> dict[str, Tensor]:
    contexts = [(f.number, context) for f in features for context in f.contexts]
    numbers = [
        (
            number,
            _KINDS[c.kind],
            subsets.index(c.subset),
            c.peak,
            -1 if c.target_from is None else c.target_from,
            c.cut_left + 2 * c.cut_right,
            c.n_alike,
        )
        for number, c in contexts
    ]
    columns = torch.tensor(numbers, dtype=torch.int32).reshape(-1, len(_NUMBERS)).T
    lengths = torch.tensor([0, *(len(c.tokens) for _, c in contexts)], dtype=torch.int64)
    ids = [i for _, c in contexts for i in tokens.ids(c)]
    activations = [a for _, c in contexts for a in c.activations]
    return {
        "token_ids": torch.tensor(ids, dtype=torch.int32),
        "activations": torch.tensor(activations, dtype=torch.float32),
        "starts": lengths.cumsum(0),
        **dict(zip(_NUMBERS, columns, strict=True)),
    }


class FeatureSet:
    """A finished folder of feature statistics; iterating gives all features, by layer and number.

    Attributes:
        folder: where it lies.
        info: what `features.json` says.
        layers: ascending.
        rankings: folders that effects and attributions come from.

    Args:
        rankings: `effects` and `ranking` beside the folder if None, where they are of the same delta.

    Raises:
        FileNotFoundError: the folder is not there, or not finished; names the file and the fix.
        ValueError: another format version, or a damaged file, here or of a ranking; names it.
    """

    def __init__(self, folder: str | Path, rankings: Sequence[str | Path] | None = None) -> None:
        self.folder = Path(folder)
        path = self.folder / INFO_NAME
        self.info = read_json(path, f"no finished feature statistics there; {REMAKE}")
        check_version(path, self.info.get("format_version"), FORMAT_VERSION, REMAKE)
        try:
            self.n_features = {int(layer): n for layer, n in self.info["n_features"].items()}
            self._subsets = [subset["name"] for subset in self.info["subsets"]]
            self._tokens = read_json(self.folder / "tokens.json", REMAKE)["tokens"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); {REMAKE}") from error
        self.layers = tuple(sorted(self.n_features))
        self.rankings = beside(self.folder, self.info) if rankings is None else list(rankings)
        self._effects, self._attributions = read_rankings(self.rankings, self.info)
        self._held: tuple[int, list[dict[str, Any]], dict[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        return sum(self.n_features.values())

    def __iter__(self) -> Iterator[Feature]:
        for layer in self.layers:
            for number in range(self.n_features[layer]):
                yield self.feature(layer, number)

    def names(self) -> list[str]:
        """L0F0, L0F1 …, in the order of iteration."""
        return [f"L{layer}F{n}" for layer in self.layers for n in range(self.n_features[layer])]

    def feature(self, layer: int, number: int) -> Feature:
        """
        Raises:
            KeyError: no such feature.
            FileNotFoundError, ValueError: a file of the layer is missing or damaged; names it.
        """
        if not 0 <= number < self.n_features.get(layer, 0):
            raise KeyError(f"{self.folder} has no feature L{layer}F{number}")
        lines, tensors = self._layer(layer)
        line = dict(lines[number])
        examples = line.pop("examples")
        line["activity"] = {name: _activity(a) for name, a in line["activity"].items()}
        line["tokens"] = tuple(TokenActivity(**token) for token in line["tokens"])
        for name in ("promotes", "suppresses", "together", "matches"):
            line[name] = tuple(tuple(entry) for entry in line[name])
        first, last = np.searchsorted(tensors["features"], [number, number + 1])
        contexts = [
            self._context(tensors, at, example)
            for at, example in zip(range(first, last), examples, strict=True)
        ]
        return Feature(
            **line,
            effects=tuple(self._effects.get((layer, number), ())),
            attributions=self._attributions.get((layer, number), {}),
            contexts=tuple(contexts),
        )

    def _layer(self, layer: int) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        if self._held is None or self._held[0] != layer:
            path = self.folder / f"layer_{layer}" / "features.jsonl"
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist; {REMAKE}")
            try:
                lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            except ValueError as error:
                raise ValueError(f"{path} is damaged ({error}); {REMAKE}") from error
            if len(lines) != self.n_features[layer]:
                raise ValueError(
                    f"{path} has {len(lines)} features instead of {self.n_features[layer]}; {REMAKE}"
                )
            tensors = load_tensors(path.with_name("contexts.safetensors"))
            self._held = layer, lines, {name: tensor.numpy() for name, tensor in tensors.items()}
        return self._held[1:]

    def _context(self, tensors: dict[str, np.ndarray], at: int, example: str) -> Context:
        _, kind, subset, peak, target_from, cut, n_alike = (int(tensors[n][at]) for n in _NUMBERS)
        here = slice(*tensors["starts"][at : at + 2].tolist())
        shown = [self._tokens[i] for i in tensors["token_ids"][here].tolist()]
        return Context(
            kind=_KIND_OF[kind],
            subset=self._subsets[subset],
            example=example,
            tokens=tuple(text for text, _ in shown),
            special=tuple(special for _, special in shown),
            activations=tuple(tensors["activations"][here].tolist()),
            peak=peak,
            target_from=None if target_from < 0 else target_from,
            cut_left=bool(cut & 1),
            cut_right=bool(cut & 2),
            n_alike=n_alike,
        )


def _activity(raw: dict[str, Any]) -> Activity:
    mean = math.nan if raw["mean"] is None else raw["mean"]
    return Activity(**raw | {"mean": mean, "histogram": tuple(raw["histogram"])})


def read_features(folder: str | Path, rankings: Sequence[str | Path] | None = None) -> FeatureSet:
    """Open a folder of `write_features`; arguments and errors are those of `FeatureSet`."""
    return FeatureSet(folder, rankings)
