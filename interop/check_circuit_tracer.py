"""Load the exports with circuit-tracer, compare, and attribute one prompt of the finetuned model.

    .venv-circuit-tracer/bin/python interop/check_circuit_tracer.py OUT

Writes `OUT/graph/`, which circuit-tracer's viewer shows.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_transcoder
from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from comparison import CASES, Comparison, run_card
from safetensors.torch import load_file

CPU = torch.device("cpu")


@torch.inference_mode()
def check_dictionaries(out: Path, comparison: Comparison) -> None:
    for case in CASES:
        loaded, config = load_transcoder_from_hub(str(out / "circuit_tracer" / case), device=CPU)
        assert config["feature_input_hook"] == "ln2.hook_normalized"
        card = json.loads((out / "gemma_scope" / case / "export.json").read_text())
        for layer, x, a, y in comparison.layers(case):
            scope = load_gemma_scope_transcoder(
                str(out / "gemma_scope" / case / card["layers"][str(layer)]["path"]), layer, CPU
            )
            for name, transcoder in (("circuit-tracer", loaded[layer]), ("Gemma Scope", scope)):
                encoded = transcoder.encode(x)
                what = f"{name}, {case}, layer {layer}"
                comparison.compare(what, encoded, transcoder.decode(encoded), a, y)


def check_graph(out: Path, comparison: Comparison) -> None:
    """The replacement model is our model, its active features are ours, and the delta's are in the graph."""
    folder = out / "circuit_tracer" / "full"
    card = json.loads((folder / "export.json").read_text())
    expected = load_file(out / "expected" / "graph.safetensors")
    model = ReplacementModel.from_pretrained(
        str(folder / "model"), str(folder), backend="nnsight", device=CPU
    )
    with torch.inference_mode():
        logits = model._model(expected["ids"][None]).logits[0, -1]
    error = (logits - expected["logits"]).abs().max().item()
    comparison.check("the model", error <= 1e-4, f"logits differ by at most {error:.1e}")

    graph = attribute(expected["ids"], model, max_n_logits=5, max_feature_nodes=2048)
    found = {tuple(row) for row in graph.active_features.tolist()}
    ours, ties = set(), set()
    for layer in range(graph.cfg.n_layers):
        for kind, features in (("a", ours), ("tie", ties)):
            rows = (expected[f"{kind}.{layer}"] > 0).nonzero().tolist()
            features |= {(layer, row + 1, feature) for row, feature in rows}  # BOS has no row
    found, ours = found - ties, ours - ties
    figures = f"{len(found)} active features over {len(expected['ids'])} tokens, {len(found ^ ours)} differ"
    comparison.check("the graph", found == ours, figures)

    create_graph_files(graph, slug="calculation", output_path=str(out / "graph"))
    nodes = json.loads((out / "graph" / "calculation.json").read_text())["nodes"]
    delta = set()
    for node in nodes:
        if node["feature_type"] == "cross layer transcoder":  # what it calls any feature
            layer, feature, _ = map(int, node["node_id"].split("_"))
            start, stop = card["layers"][str(layer)]["delta_features"]
            if start <= feature < stop:
                delta.add(node["node_id"])
    figures = f"{len(nodes)} nodes, {len(delta)} of them delta features, such as {min(delta, default='none')}"
    comparison.check("the graph's files", bool(delta), figures)


def main(out: Path) -> int:
    print(*(f"{name} {version(name)}" for name in ("circuit-tracer", "nnsight", "torch")), sep=", ")
    comparison = Comparison(out)
    check_dictionaries(out, comparison)
    check_graph(out, comparison)
    graph = run_card(out / "circuit_tracer" / "full")["graph"]
    n_active = len(graph.active_features)
    comparison.check("the card's code", n_active > 0, f"{n_active} active features")
    return comparison.missed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
