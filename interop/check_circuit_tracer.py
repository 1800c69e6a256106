"""Load our exports and public sets with circuit-tracer, compare, and attribute one prompt.

    .venv-circuit-tracer/bin/python interop/check_circuit_tracer.py OUT

Writes `OUT/graph/`, which circuit-tracer's viewer shows. TopK sets are not tried: from a folder they are read
as ReLU.
"""

import json
import sys
from importlib.metadata import metadata, version
from pathlib import Path

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoder.single_layer_transcoder import (
    TranscoderSet,
    load_gemma_scope_transcoder,
    load_transcoder_set,
)
from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from comparison import EXPORTS, Comparison, run_card
from nnsight import save

CPU = torch.device("cpu")
# Public sets that it reads: by their configuration, or with which of its loaders, from which files.
OWN = ("Qwen 3", "Llama 3.2 1B", "circuit-tracer, JumpReLU")
SIZED = "transcoder_all/layer_{}_width_12_l0_small"
OTHERS = {
    "Gemma Scope": ("gemma-scope", "layer_{}/width_12/average_l0_5/params.npz"),
    "Gemma Scope 2": ("gemma-scope-2", f"{SIZED}/params.safetensors"),
    "Gemma Scope 2, affine": ("gemma-scope-2", f"{SIZED}_affine/params.safetensors"),
}
INPUTS = {"gemma-scope": "ln2.hook_normalized", "gemma-scope-2": "mlp.hook_in"}
MODELS = {"Qwen 3": "qwen3", "Llama 3.2 1B": "llama3", "Gemma Scope 2, affine": "gemma-3-it"}


def which() -> str:
    """The package index's circuit-tracer is a fork by others; upstream's comes from its git tags."""
    said = metadata("circuit-tracer")
    pages = [page for page in said.get_all("Project-URL", []) if page.startswith("Homepage")]
    home = pages[0].split(", ")[1] if pages else "upstream, which names no home page"
    return f"circuit-tracer {said['Version']} ({home})"


def read_card(export: Path, layer: int) -> dict:
    return json.loads((export / "export.json").read_text())["layers"][str(layer)]


def load_published(folder: Path) -> TranscoderSet:
    if folder.name in OWN:
        return load_transcoder_from_hub(str(folder), device=CPU)[0]
    kind, path = OTHERS[folder.name]
    paths = {layer: str(folder / path.format(layer)) for layer in (0, 1)}
    hooks = {"feature_input_hook": INPUTS[kind], "feature_output_hook": "hook_mlp_out"}
    eager = {"lazy_encoder": False, "lazy_decoder": False}
    return load_transcoder_set(paths, scan="", special_load_fn=kind, device=CPU, **hooks, **eager)


@torch.inference_mode()
def check_dictionaries(out: Path, comparison: Comparison) -> None:
    for case in EXPORTS:
        loaded, config = load_transcoder_from_hub(str(out / "circuit_tracer" / case), device=CPU)
        assert config["feature_input_hook"] == "ln2.hook_normalized"
        for layer, x, a, y in comparison.layers(case):
            card = read_card(out / "circuit_tracer" / case, layer)
            ours = torch.zeros(len(x), loaded[layer].d_transcoder)  # the padding never fires
            ours[:, [*range(*card["base_features"]), *range(*card["delta_features"])]] = a
            what = f"circuit-tracer, {case}, layer {layer}"
            comparison.compare(what, loaded[layer].encode(x), loaded[layer](x), ours, y)
            path = out / "gemma_scope" / case / read_card(out / "gemma_scope" / case, layer)["path"]
            scope = load_gemma_scope_transcoder(str(path), layer, CPU)
            what = f"Gemma Scope, {case}, layer {layer}"
            comparison.compare(what, scope.encode(x), scope(x), a, y)
    for case in (*OWN, *OTHERS):
        loaded = load_published(out / "published" / case)
        for layer, x, a, y in comparison.layers(case):
            what = f"published, {case}, layer {layer}"
            comparison.compare(what, loaded[layer].encode(x), loaded[layer](x), a, y)


def replaced_logits(model, prompt: str) -> torch.Tensor:
    """Every MLP's output is its transcoder's, at its hook points, but on the positions that it spares.

    Of the replacement model itself no call gives this: it keeps every MLP's error.
    """
    transcoders, spared = model.transcoders._module, model.zero_positions
    with torch.inference_mode(), model.trace(prompt):
        for layer in range(len(transcoders)):
            x = model.get_feature_input_loc(layer).output
            location = model.get_feature_output_loc(layer)
            output = transcoders[layer](x)
            output[:, spared] = location.output[:, spared]
            location.output = output
        logits = save(model.output.logits)
    return logits[0]


def check_model(
    model, what: str, comparison: Comparison, expected: dict[str, torch.Tensor], removed: dict
) -> None:
    """The replacement model's parts are ours, on one prompt.

    Args:
        expected: of `replacement.expected`.
        removed: by layer, the features that are set to zero.
    """
    ids = expected["ids"]
    prompt = model.tokenizer.decode(ids, skip_special_tokens=True)
    assert model.tokenizer(prompt).input_ids == ids.tolist()
    logits, found = model.get_activations(prompt)
    comparison.logits(f"{what}: the model", logits[0], expected["logits"])
    first = len(ids) - len(expected["a.0"])
    errors = model.setup_attribution(ids).error_vectors
    for layer in removed:
        a, error = expected[f"a.{layer}"], expected[f"error.{layer}"]
        active = (found[layer, first:] > 0) & ~expected[f"tie.{layer}"].bool()
        ours = (a > 0) & ~expected[f"tie.{layer}"].bool()
        apart = (errors[layer, first:] - error).norm() / error.norm()
        differ = (active != ours).sum() + (found[layer, :first] > 0).sum()
        comparison.check(
            f"{what}: layer {layer}'s features and error",
            differ == 0 and apart <= 1e-4,
            f"{ours.sum()} active on {len(a)} tokens, {differ} differ; the error by {apart:.1e} of its norm",
        )
    comparison.logits(
        f"{what}: MLPs replaced", replaced_logits(model, prompt), expected["replaced"]
    )
    zero = [(layer, slice(None), features, 0.0) for layer, features in removed.items()]
    logits, _ = model.feature_intervention(prompt, zero, freeze_attention=False)
    comparison.logits(f"{what}: features removed", logits[0], expected["removed"])


def check_graph(out: Path, comparison: Comparison) -> None:
    """The replacement model is our model, its active features are ours, and the delta's are in the graph."""
    folder = out / "circuit_tracer" / "full"
    model = ReplacementModel.from_pretrained(
        str(folder / "model"), str(folder), backend="nnsight", device=CPU
    )
    expected = comparison.expected("graph")
    n_layers = model.cfg.n_layers
    ranges = {layer: read_card(folder, layer)["delta_features"] for layer in range(n_layers)}
    delta = {layer: slice(*features) for layer, features in ranges.items()}
    check_model(model, "the finetuned model, delta", comparison, expected, delta)

    graph = attribute(expected["ids"], model, max_n_logits=5, max_feature_nodes=2048)
    found = {tuple(row) for row in graph.active_features.tolist()}
    ours, ties = set(), set()
    for layer in range(n_layers):
        for kind, features in (("a", ours), ("tie", ties)):
            rows = (expected[f"{kind}.{layer}"] > 0).nonzero().tolist()
            features |= {(layer, row + 1, feature) for row, feature in rows}  # BOS has no row
    found, ours = found - ties, ours - ties
    figures = f"{len(found)} active features over {len(expected['ids'])} tokens, {len(found ^ ours)} differ"
    comparison.check("the graph", found == ours, figures)

    create_graph_files(graph, slug="calculation", output_path=str(out / "graph"))
    nodes = json.loads((out / "graph" / "calculation.json").read_text())["nodes"]
    in_files = set()
    for node in nodes:
        if node["feature_type"] == "cross layer transcoder":  # what it calls any feature
            layer, feature, _ = map(int, node["node_id"].split("_"))
            start, stop = ranges[layer]
            if start <= feature < stop:
                in_files.add(node["node_id"])
    example = min(in_files, default="none")
    figures = f"{len(nodes)} nodes, {len(in_files)} of them delta features, such as {example}"
    comparison.check("the graph's files", bool(in_files), figures)


def check_published_models(out: Path, comparison: Comparison) -> None:
    """Public sets of three kinds, one with skip, in random models of their families."""
    for case, name in MODELS.items():
        model = ReplacementModel.from_pretrained_and_transcoders(
            str(out / "models" / name),
            load_published(out / "published" / case),
            backend="nnsight",
            device=CPU,
        )
        expected = comparison.expected(f"{case} in a model")
        every = dict.fromkeys((0, 1), slice(None))
        check_model(model, f"{case} in a model, all", comparison, expected, every)


def main(out: Path) -> int:
    print(which(), *(f"{name} {version(name)}" for name in ("nnsight", "torch")), sep=", ")
    print("not tried: TopK sets, which it takes for ReLU where they lie in a folder")
    comparison = Comparison(out)
    check_dictionaries(out, comparison)
    check_published_models(out, comparison)
    check_graph(out, comparison)
    graph = run_card(out / "circuit_tracer" / "full")["graph"]
    n_active = len(graph.active_features)
    comparison.check("the card's code", n_active > 0, f"{n_active} active features")
    return comparison.missed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
