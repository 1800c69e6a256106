"""What circuit-tracer's pages show of a feature: examples, logits and a histogram, as files they read.

    features/index.json.gz    gzip of [{"filename": "layer_0.bin", "offsets": [...]}, ...], by layer
    features/layer_L.bin      for each feature a uint32, little-endian, the length of what follows: a record,
                              gzip of JSON; offsets count the layer's features and the end of the last

A record has the fields of its `feature_models.Model`. Every feature needs one: where a page finds none it
leaves the examples of the feature before on the screen. Its pages put labels, not tokens, into HTML.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from delta_transcoders.features.feature import Context, Feature, Kind, range_of
from delta_transcoders.foreign_text import shown

if TYPE_CHECKING:
    from delta_transcoders.dictionaries.files.exported import ExportCard, LayerCard
    from delta_transcoders.features.files import FeatureSet

FOLDER, INDEX_NAME = "features", "index.json.gz"
TITLES: dict[Kind, str] = {
    "top": "Top activations",
    "fifth_4": f"Drawn at {range_of('fifth_4')}",
    "fifth_3": f"Drawn at {range_of('fifth_3')}",
    "fifth_2": f"Drawn at {range_of('fifth_2')}",
    "fifth_1": f"Drawn at {range_of('fifth_1')}",
    "silent": "Never active here",
}
WITHOUT_CONTEXTS = "Exported without contexts"
SPACES = str.maketrans({"\n": "⏎", "\t": "→", "\r": "↵"})  # as its own pages write them


def visible(token: str) -> str:
    """A token without characters that act on the text around them.

    >>> visible(" a\\n\\u202eb")
    ' a⏎U+202Eb'
    """
    return shown(token.translate(SPACES))


def stub(text: str) -> dict[str, Any]:
    """The record of a feature that nothing is known of: it clears what a page showed before."""
    return {"isDead": True, "top_logits": [text]}


def record(feature: Feature, alpha: float, with_contexts: bool) -> dict[str, Any]:
    """What a page shows of a delta feature.

    Args:
        alpha: weight of the delta's decoder rows: below 0 they suppress what they promoted.
        with_contexts: whether texts of the study are in it. Without, nothing is that depends on which
            tokens the texts hold, but how often and how strongly the feature fires on them.
    """
    logits = [
        [visible(token) for token, _ in pairs] for pairs in (feature.promotes, feature.suppresses)
    ]
    top, bottom = logits if alpha > 0 else logits[::-1] if alpha < 0 else ([], [])
    activity = feature.activity.values()
    n_tokens = sum(a.n_tokens for a in activity)
    histogram = np.sum([a.histogram for a in activity], axis=0).tolist() if activity else []
    quantiles = _quantiles(feature.contexts) if with_contexts else [_group(WITHOUT_CONTEXTS, ())]
    return {
        "examples_quantiles": quantiles,
        "top_logits": top,
        "bottom_logits": bottom,
        "act_min": 0.0,
        "act_max": feature.maximum,
        "histogram": histogram,
        "quantile_values": _percentiles(histogram, feature.maximum),
        "activation_frequency": sum(histogram) / n_tokens if n_tokens else 0.0,
    }


def _quantiles(contexts: Sequence[Context]) -> list[dict[str, Any]]:
    """By kind, and of each kind the subset first in which the feature is strongest."""
    groups: dict[tuple[Kind, str], list[Context]] = defaultdict(list)
    for context in contexts:
        groups[context.kind, context.subset].append(context)
    order = list(TITLES)
    ordered = sorted(groups, key=lambda k: (order.index(k[0]), -max(map(_at_peak, groups[k]))))
    return [_group(f"{TITLES[kind]} · {subset}", groups[kind, subset]) for kind, subset in ordered]


def _at_peak(context: Context) -> float:
    return context.activations[context.peak]


def _group(title: str, contexts: Sequence[Context]) -> dict[str, Any]:
    return {"quantile_name": title, "examples": [_example(context) for context in contexts]}


def _example(context: Context) -> dict[str, Any]:
    return {
        "tokens": [visible(token) for token in context.tokens],
        "tokens_acts_list": [0.0 if math.isnan(a) else round(a, 4) for a in context.activations],
        "train_token_ind": context.peak,
        "is_repeated_datapoint": False,
    }


def _percentiles(counts: Sequence[int], maximum: float) -> list[float]:
    """Percentiles 1 to 99 of the activations above 0, as well as a histogram from 0 tells them."""
    if not sum(counts):
        return []
    share = np.cumsum([0, *counts]) / sum(counts)
    edges = np.linspace(0, maximum, len(share))
    return np.interp(np.arange(1, 100) / 100, share, edges).round(4).tolist()


def statistics_of(
    run: Path, deltas: Path, hashes: Mapping[int, str], with_contexts: bool
) -> FeatureSet | None:
    """A study's feature statistics, where it has some of these deltas.

    Args:
        deltas: their folder.
        hashes: of the deltas, by layer.
        with_contexts: whether statistics are needed, for the texts in them.

    Raises:
        FileNotFoundError: they are needed and not there, or of other deltas.
    """
    folder = run / "features"
    if folder.is_dir():
        from delta_transcoders.features.files import read_features

        features = read_features(folder, rankings=())
        of = Path(features.info.get("delta", run / "delta"))
        described = features.info.get("delta_fingerprints")
        # A study may have moved since. Another delta under the same name is refused when files are written.
        if of.resolve() == deltas.resolve() or described == {str(n): h for n, h in hashes.items()}:
            return features
        if with_contexts:
            raise FileNotFoundError(
                f"--with-contexts: the contexts in {folder} are of {of}, not of the deltas given ({deltas})"
            )
    elif with_contexts:
        raise FileNotFoundError(
            f"--with-contexts: {folder} does not exist, and it holds the contexts; run the study's stage "
            "`features` first"
        )
    return None


def write_feature_files(
    folder: Path, card: ExportCard, features: FeatureSet, with_contexts: bool
) -> None:
    """Write `folder/features/`, with a record for every feature of every layer of an export.

    Raises:
        ValueError: the features are not those of the deltas in the export.
    """
    described = features.info.get("delta_fingerprints", {})
    for layer in features.layers:
        if described.get(str(layer)) != card.layers[layer].delta_hash:
            raise ValueError(
                f"{features.folder} is of another delta of layer {layer} than is written; run the study's "
                "stage `features` again"
            )
    folder = folder / FOLDER
    folder.mkdir()
    index = []
    for layer, of_layer in card.layers.items():
        start, found = of_layer.delta_features[0], features.n_features.get(layer, 0)
        offsets, name = [0], f"layer_{layer}.bin"
        with (folder / name).open("wb") as file:
            for number in range(n_features(of_layer)):
                if start <= number < start + found:
                    feature = features.feature(layer, number - start)
                    packed = _packed(record(feature, card.alpha, with_contexts))
                else:
                    packed = _packed_stub(part_of(of_layer, number))
                offsets.append(offsets[-1] + file.write(packed))
        index.append({"filename": name, "offsets": offsets})
    # Without a time stamp the same features make the same files.
    (folder / INDEX_NAME).write_bytes(gzip.compress(json.dumps(index).encode(), mtime=0))


def n_features(of_layer: LayerCard) -> int:
    ranges = (of_layer.base_features, of_layer.delta_features, of_layer.padding_features)
    return max(stop for _, stop in ranges)


def part_of(of_layer: LayerCard, number: int) -> str:
    """Whose a feature of an export is, in words for its record."""
    if number in range(*of_layer.delta_features):
        return "delta feature without statistics"
    return "base feature" if number in range(*of_layer.base_features) else "padding, never active"


def _packed(found: dict[str, Any]) -> bytes:
    packed = gzip.compress(json.dumps(found, allow_nan=False).encode(), mtime=0)
    return struct.pack("<I", len(packed)) + packed


@functools.cache  # a base has tens of thousands of features
def _packed_stub(text: str) -> bytes:
    return _packed(stub(text))


class FeatureFiles:
    """The records of an export's feature files.

    Raises:
        FileNotFoundError: no index in the folder.
        ValueError: a damaged file, from `record` too; names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / INDEX_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; export the study again")
        try:
            index = json.loads(gzip.decompress(path.read_bytes()))
            self._layers = [(entry["filename"], entry["offsets"]) for entry in index]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); export the study again") from error

    def record(self, layer: int, number: int) -> dict[str, Any]:
        name = INDEX_NAME
        try:
            name, offsets = self._layers[layer]
            with (self.folder / name).open("rb") as file:
                file.seek(offsets[number])
                packed = file.read(offsets[number + 1] - offsets[number])
            return json.loads(gzip.decompress(packed[4:]))
        except (OSError, EOFError, ValueError, IndexError, TypeError) as error:
            raise ValueError(
                f"{self.folder / name} is damaged at feature {number} of layer {layer} ({error!r}); "
                "export the study again"
            ) from error
