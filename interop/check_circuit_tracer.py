"""Load a study's exports with circuit-tracer, compare, and attribute one prompt.

    .venv-circuit-tracer/bin/python interop/check_circuit_tracer.py OUT

Writes `OUT/graph/`, which circuit-tracer's viewer shows.
"""

import json
import sys
from pathlib import Path

import torch
from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_transcoder
from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from comparison import Comparison, run_card
from tracer_model import check_model, versions

CPU = torch.device("cpu")


def in_export(
    comparison: Comparison, case: str, layer: int, a: torch.Tensor, n: int
) -> torch.Tensor:
    """Activations [N, n] of all features of a layer's file; the padding never fires."""
    card = comparison.card("circuit_tracer", case, layer)
    whole = torch.zeros(len(a), n, dtype=a.dtype)
    whole[:, [*range(*card["base_features"]), *range(*card["delta_features"])]] = a
    return whole


@torch.inference_mode()
def check_dictionaries(out: Path, comparison: Comparison) -> None:
    for case in comparison.cases("circuit_tracer"):
        loaded, config = load_transcoder_from_hub(str(out / "circuit_tracer" / case), device=CPU)
        for layer, x, a, y in comparison.layers(case):
            hook_in = comparison.card("circuit_tracer", case, layer)["hook_in"]
            hook_in = hook_in.removeprefix(f"blocks.{layer}.").replace(
                "ln2.hook_out", "mlp.hook_in"
            )
            assert config["feature_input_hook"] == hook_in
            ours = in_export(comparison, case, layer, a, loaded[layer].d_transcoder)
            what = f"circuit-tracer, {case}, layer {layer}"
            comparison.compare(what, loaded[layer].encode(x), loaded[layer](x), ours, y)
    for case in comparison.cases("gemma_scope", required=False):  # of float32 at its site alone
        for layer, x, a, y in comparison.layers(case):
            path = out / "gemma_scope" / case / comparison.card("gemma_scope", case, layer)["path"]
            scope = load_gemma_scope_transcoder(str(path), layer, CPU)
            what = f"Gemma Scope, {case}, layer {layer}"
            comparison.compare(what, scope.encode(x), scope(x), a, y)


def with_padding(comparison: Comparison, case: str, n: int) -> dict[str, torch.Tensor]:
    """What is expected of one request, with features numbered as in the export."""
    expected = comparison.expected(f"{case}, one request")
    for name, tensor in expected.items():
        kind, _, layer = name.partition(".")
        if kind in ("a", "tie"):
            expected[name] = in_export(comparison, case, int(layer), tensor, n)
    return expected


def check_graph(case: str, comparison: Comparison) -> None:
    """What the card's code makes is our model, with our active features, the delta's among them."""
    folder = comparison.out / "circuit_tracer" / case
    made = run_card(folder)
    model, graph = made["model"], made["graph"]
    n_layers = model.cfg.n_layers
    ranges = {
        n: comparison.card("circuit_tracer", case, n)["delta_features"] for n in range(n_layers)
    }
    delta = {
        layer: slice(*features) for layer, features in ranges.items() if features[0] < features[1]
    }
    expected = with_padding(comparison, case, model.transcoders._module.d_transcoder)
    check_model(model, f"the finetuned model, {case}", comparison, expected, delta)

    positions = set(expected["positions"].tolist())
    found = {tuple(row) for row in graph.active_features.tolist() if row[1] in positions}
    ours, ties = set(), set()
    for layer in range(n_layers):
        for kind, features in (("a", ours), ("tie", ties)):
            rows = expected.get(f"{kind}.{layer}", torch.zeros(0, 0)).nonzero().tolist()
            features |= {(layer, int(expected["positions"][row]), n) for row, n in rows}
    found, ours = found - ties, ours - ties
    figures = (
        f"{len(found)} active features over {len(positions)} tokens, {len(found ^ ours)} differ"
    )
    comparison.check(f"the graph, {case}", found == ours, figures)

    create_graph_files(graph, slug=case, output_path=str(comparison.out / "graph"))
    nodes = json.loads((comparison.out / "graph" / f"{case}.json").read_text())["nodes"]
    in_files = set()
    for node in nodes:
        if node["feature_type"] == "cross layer transcoder":  # what it calls any feature
            layer, feature, _ = map(int, node["node_id"].split("_"))
            start, stop = ranges[layer]
            if start <= feature < stop:
                in_files.add(node["node_id"])
    example = min(in_files, default="none")
    figures = f"{len(nodes)} nodes, {len(in_files)} of them delta features, such as {example}"
    comparison.check(f"the graph's files, {case}", bool(in_files), figures)


def main(out: Path) -> int:
    print(versions())
    comparison = Comparison(out)
    check_dictionaries(out, comparison)
    for case in comparison.requests():
        check_graph(case, comparison)
    return comparison.missed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
