"""Ask circuit-tracer's own server for what its page asks it of a labelled graph, and compare with the export.

    .venv-circuit-tracer/bin/python interop/check_circuit_tracer_page.py OUT

Its page loads d3 from the network, so no browser is driven here: the graph and the records are read from the
addresses that its scripts make, and held to the fields that its own classes have.
"""

import gzip
import json
import struct
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from circuit_tracer.frontend import feature_models, graph_models
from circuit_tracer.frontend.local_server import serve
from comparison import Comparison

PORT = 8732


def ask(path: str) -> dict | None:
    try:
        with urlopen(f"http://localhost:{PORT}/{path.removeprefix('./')}", timeout=10) as answer:
            return json.load(answer)
    except HTTPError:
        return None


def cut_out(features: Path, layer: int, number: int) -> dict:
    """What its page cuts out of the export-wide files: from one offset to the next, a length in front."""
    index = json.loads(gzip.decompress((features / "index.json.gz").read_bytes()))
    start, end = index[layer]["offsets"][number : number + 2]
    cut = (features / index[layer]["filename"]).read_bytes()[start:end]
    (length,) = struct.unpack("<I", cut[:4])
    return json.loads(gzip.decompress(cut[4 : 4 + length]))


def check_page(case: str, comparison: Comparison) -> None:
    export = comparison.out / "circuit_tracer" / case
    layers = json.loads((export / "export.json").read_text())["layers"]
    graph = graph_models.Model(**ask(f"./graph_data/{case}.json"))
    wrong, deltas = [], {}
    for node in graph.nodes:
        if node.feature_type != "cross layer transcoder":
            continue
        layer, number = (int(part) for part in node.node_id.split("_")[:2])
        start, stop = layers[str(layer)]["delta_features"]
        record = ask(f"{graph.metadata.scan}/{node.feature}.json")
        if record != cut_out(export / "features", layer, number):
            wrong.append(node.node_id)
        if start <= number < stop:
            deltas[node.node_id] = node.clerp
            feature_models.Model(transcoder_id=graph.metadata.scan, index=node.feature, **record)
            examples = [e for q in record["examples_quantiles"] for e in q["examples"]]
            if not examples or not node.clerp.startswith(f"Δ L{layer}F{number - start}"):
                wrong.append(node.node_id)
    pinned = graph.qParams.pinnedIds
    example = deltas[pinned[0]] if pinned else "none"
    comparison.check(
        f"the graph's page, {case}",
        bool(pinned) and set(pinned) <= set(deltas) and not wrong,
        f"{len(deltas)} delta nodes labelled, such as {example!r}; {len(pinned)} pinned; "
        f"{len(wrong)} records differ or hold no examples",
    )


def main(out: Path) -> int:
    comparison = Comparison(out)
    server = serve(data_dir=str(out / "graph"), port=PORT)
    for case in comparison.requests():
        if (out / "circuit_tracer" / case / "features").is_dir():
            check_page(case, comparison)
    server.stop()
    return comparison.missed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
