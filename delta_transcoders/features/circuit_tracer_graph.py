"""Label a delta's nodes in a graph that circuit-tracer made, pin the strongest, and give it their examples.

    python -m delta_transcoders.features.circuit_tracer_graph graphs/calculation.json --export runs/tiny/ct

The graph is changed in place: nodes of delta features are called `Δ L0F31: ( · of · coins`, by the tokens on
which the feature is strongest, or `Δ L0F31 → coins · the` by what it promotes, where the export holds no
contexts; the numbers are the delta's own, as on feature pages. What its page shows of each feature is written
beside it, into `GRAPH-features/`: no server has to be told of the export, and no network is asked.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transcoders.command import run as run_command
from delta_transcoders.features.circuit_tracer import (
    FOLDER,
    TITLES,
    FeatureFiles,
    part_of,
    stub,
    visible,
)
from delta_transcoders.files import read_json, replace_folder, write_json, write_text

if TYPE_CHECKING:
    from delta_transcoders.dictionaries.files.exported import ExportCard

FEATURE = "cross layer transcoder"
"""What circuit-tracer calls the node of any feature."""
N_PINS = 12
N_TOKENS = 3
WIDTH = 14  # of a token, as the page has little room
MADE_WITH = "made_with"
"""Our key in a graph's metadata: the export that `scan` named before."""


@dataclass(frozen=True)
class Labelled:
    """What `label_graph` did."""

    n_labels: int
    n_pins: int
    folder: Path
    n_records: int
    has_contexts: bool


def label_graph(path: str | Path, export: str | Path) -> Labelled:
    """Label and pin the delta's nodes of one graph, and write its features' records beside it.

    Nodes that somebody pinned stay pinned. Doing it again changes nothing but what the export says anew.

    Args:
        path: `SLUG.json` in the folder of circuit-tracer's `--graph_file_dir`.
        export: folder of a circuit-tracer export, with `features/` or without.

    Raises:
        FileNotFoundError: no graph, or no export.
        ConnectionError: the graph was made with a hub's export that cannot be had.
        FileExistsError: something else than records lies where they belong.
        ValueError: not a graph of circuit-tracer, or of another export; a damaged file. Nothing is changed.
    """
    path, export = Path(path), Path(export)
    # Torch takes seconds to import, and the command's help needs none of it.
    from delta_transcoders.dictionaries.files.exported import load_card

    card = load_card(export)
    if card.format != "circuit_tracer":
        raise ValueError(f"{export} is an export for {card.format}, not for circuit-tracer")
    graph = read_json(path, "circuit-tracer writes it: create_graph_files, or attribute --slug")
    files = FeatureFiles(export / FOLDER) if (export / FOLDER).is_dir() else None
    folder = path.with_name(f"{_slug(path)}-features")
    _check_folder(folder)
    try:
        graph["metadata"][MADE_WITH] = _check_export(path, graph["metadata"], export, card)
        records, deltas = {}, []
        for node, layer, number in _features(path, graph["nodes"], card):
            of_layer = card.layers[layer]
            record = files.record(layer, number) if files else stub(part_of(of_layer, number))
            records[node["feature"]] = record
            if number in range(*of_layer.delta_features):
                node["clerp"] = label(layer, number - of_layer.delta_features[0], record)
                deltas.append(node)
        _check_names(path, graph["nodes"], deltas)
        pins = _strongest(deltas)
        graph["qParams"]["pinnedIds"] = [*dict.fromkeys([*_pinned(graph["qParams"]), *pins])]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a graph of circuit-tracer ({error!r})") from error
    graph["metadata"]["scan"] = f"./data/{folder.name}"
    with replace_folder(folder) as partial:
        for number, record in records.items():
            write_text(partial / f"{number}.json", json.dumps(record))
    write_json(path, graph)
    shown = [group for record in records.values() for group in record.get("examples_quantiles", [])]
    has_contexts = any(group["examples"] for group in shown)
    return Labelled(len(deltas), len(pins), folder, len(records), has_contexts)


def label(layer: int, number: int, record: Mapping[str, Any]) -> str:
    """A node's label: the tokens that the strongest examples peak on, or else the most promoted ones.

    circuit-tracer's page puts labels into its tooltip as HTML, so none holds a `<`.

    >>> label(0, 31, {"isDead": True, "top_logits": ["delta feature without statistics"]})
    'Δ L0F31'
    >>> label(0, 31, {"examples_quantiles": [], "top_logits": [" coins", "<b>"]})
    'Δ L0F31 → coins · ‹b>'
    """
    groups = record.get("examples_quantiles", [])
    top = [g for g in groups if g["quantile_name"].startswith(TITLES["top"])]
    peaks: Counter[str] = Counter()
    for example in (example for group in top for example in group["examples"]):
        at = example["train_token_ind"]
        activation = example["tokens_acts_list"][at]
        if activation >= record["act_max"] / 2:  # the strongest of a subset may be weak
            peaks[example["tokens"][at]] += activation
    if peaks:
        return f"Δ L{layer}F{number}: {_words(token for token, _ in peaks.most_common())}"
    promoted = [] if record.get("isDead") else record["top_logits"]
    return f"Δ L{layer}F{number} → {_words(promoted)}" if promoted else f"Δ L{layer}F{number}"


def _words(tokens: Iterator[str] | list[str]) -> str:
    words = (visible(token).strip() or "␣" for token in tokens)
    short = (word if len(word) <= WIDTH else f"{word[: WIDTH - 1]}…" for word in words)
    return " · ".join([*dict.fromkeys(short)][:N_TOKENS]).replace("<", "‹")


def _slug(path: Path) -> str:
    if not re.fullmatch(r"[\w.~-]+", path.stem, re.ASCII):
        raise ValueError(
            f"{path.name}: circuit-tracer's page opens graphs whose slug has letters, digits, '-', '.' and "
            "'_' only; make the graph anew with another slug"
        )
    return path.stem


def _check_folder(folder: Path) -> None:
    for found in folder.iterdir() if folder.exists() else ():
        if not re.fullmatch(r"\d+\.json", found.name):
            raise FileExistsError(
                f"{folder} holds {found.name}, which is no record of a feature; move it away"
            )


def _check_export(path: Path, metadata: Mapping[str, Any], export: Path, card: ExportCard) -> str:
    """The export that the graph names, which must hold the same dictionaries."""
    from delta_transcoders.dictionaries.files.exported import CARD_NAME, load_card
    from delta_transcoders.hub import local_folder

    named = metadata.get(MADE_WITH, metadata["scan"])
    if Path(named).resolve() != export.resolve():
        try:
            found = load_card(local_folder(named, [CARD_NAME]))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} was made with {named!r}, which is not {export} and no export of ours that is here; "
                f"if it was moved to {export}, write that as metadata.scan into the graph"
            ) from error
        if {n: c.hash for n, c in found.layers.items()} != {
            n: c.hash for n, c in card.layers.items()
        }:
            raise ValueError(
                f"{path} was made with {named}, which holds other dictionaries than {export}: give that "
                "export, or make the graph anew"
            )
    return named


def _features(
    path: Path, nodes: list[dict[str, Any]], card: ExportCard
) -> Iterator[tuple[dict[str, Any], int, int]]:
    """The nodes of features, each with the layer and the number in the export."""
    for node in nodes:
        if node["feature_type"] != FEATURE:
            continue
        named = re.fullmatch(r"(\d+)_(\d+)_\d+", node["node_id"])
        layer, number = map(int, named.groups()) if named else (0, -1)
        if node["feature"] != (layer + number) * (layer + number + 1) // 2 + number:
            raise ValueError(
                f"{path}: node {node['node_id']!r} is called feature {node['feature']!r}, and circuit-tracer "
                "0.5 numbers them otherwise"
            )
        of_layer = card.layers.get(layer)
        ranges = (of_layer.base_features, of_layer.delta_features) if of_layer else ()
        if not any(number in range(*features) for features in ranges):
            raise ValueError(
                f"{path}: node {node['node_id']} is of a feature that the export does not have or that is "
                "never active in it: the graph was made with another export"
            )
        yield node, layer, number


def _check_names(path: Path, nodes: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    """Refuse deltas whose nodes have the name of another node: links and pins would mean both.

    circuit-tracer calls the error of layer L at position P `0_L_P`; our exports keep clear of those names.
    """
    names = Counter(node["node_id"] for node in nodes)
    for node in deltas:
        if names[node["node_id"]] > 1:
            raise ValueError(
                f"{path}: the delta's node {node['node_id']} has the name of another one: export the study "
                "again, and make the graph anew"
            )


def _strongest(deltas: list[dict[str, Any]]) -> list[str]:
    """The nodes that the output depends on most.

    `influence` is the share of all nodes' influence on the output that a node and those before it have.
    """
    ordered = sorted(deltas, key=lambda n: 1.0 if n.get("influence") is None else n["influence"])
    return [node["node_id"] for node in ordered[:N_PINS]]


def _pinned(parameters: Mapping[str, Any]) -> list[str]:
    """What is pinned; the page saves names with commas between them."""
    pinned = parameters["pinnedIds"] or []
    return [name for name in pinned.split(",") if name] if isinstance(pinned, str) else pinned


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Label the delta's nodes in a graph that circuit-tracer made with an export of ours, pin "
        "the strongest, and write what its page shows of each feature beside it."
    )
    parser.add_argument(
        "graph", help="SLUG.json in circuit-tracer's folder of graphs; changed in place"
    )
    parser.add_argument("--export", required=True, help="the folder that the graph was made with")
    args = parser.parse_args()
    done = label_graph(args.graph, args.export)
    texts = "with" if done.has_contexts else "without"
    print(
        f"{args.graph}: {done.n_labels} nodes of the delta labelled, the {done.n_pins} that the output "
        f"depends on most pinned\n{done.folder}: what its page shows of {done.n_records} features, {texts} "
        "contexts"
    )


if __name__ == "__main__":
    run_command(main)
