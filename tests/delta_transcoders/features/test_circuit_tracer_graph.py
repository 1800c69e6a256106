"""Labels, pins and records of a small graph in circuit-tracer's schema, and every refusal."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from delta_transcoders.export import export
from delta_transcoders.features.circuit_tracer_graph import label, label_graph, main
from delta_transcoders.features.files import write_features
from delta_transcoders.features.synthetic import synthetic_features

# Its pages put labels into HTML; of these characters none may reach it.
ACTIVE = "<\u202e\u2028\x00\n"


def cantor(layer: int, number: int) -> int:
    return (layer + number) * (layer + number + 1) // 2 + number


def node(layer: int, number: int, position: int, influence: float | None = 0.5) -> dict:
    """As `Node.feature_node` writes it, less what neither we nor a test reads."""
    return {
        "node_id": f"{layer}_{number}_{position}",
        "feature": cantor(layer, number),
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": "cross layer transcoder",
        "clerp": "",
        "influence": influence,
        "activation": 1.5,
    }


def error_node(layer: int, position: int) -> dict:
    found = node(0, layer, position) | {"layer": str(layer), "feature": -1}
    return found | {"feature_type": "mlp reconstruction error"}


def logit_node() -> dict:
    said = {"clerp": 'Output "<" (p=0.9)', "feature_type": "logit", "feature": 7}
    return node(4, 7, 3, None) | said


def graph(scan: Path, *nodes: dict) -> dict:
    return {
        "metadata": {"slug": "sums", "scan": str(scan), "transcoder_list": [], "prompt": "1 + 1"},
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": ""},
        "nodes": [*nodes, error_node(0, 1), error_node(2, 3), logit_node()],
        "links": [{"source": "0_40_1", "target": "4_7_3", "weight": 0.5}],
    }


@pytest.fixture
def make_export(random_study, tmp_path):
    """Of the random study with features of both deltas: layer 0 has them at 40 to 45, layer 2 at 48 to 53."""
    study = tmp_path / "study"
    shutil.copytree(random_study.folder, study)
    hashes = {str(layer): delta.fingerprint() for layer, delta in random_study.deltas.items()}
    features = [f for f in synthetic_features(3, 6, hostile=True) if f.layer != 1]
    write_features(study / "features", features, {"delta_fingerprints": hashes})

    def make(name="out", **options) -> Path:
        out, model = tmp_path / name, random_study.model
        return export(study, "circuit_tracer", out, model=model, **options)

    return make


NODES = (
    node(0, 3, 1),
    node(0, 40, 1, 0.7),
    node(0, 40, 2, 0.3),
    node(1, 5, 2),
    node(2, 50, 3, None),  # the synthetic feature 2 never fires
    node(2, 53, 3, 0.2),
)


@pytest.fixture
def graphs(tmp_path):
    folder = tmp_path / "graphs"
    folder.mkdir()

    def make(export: Path, nodes=NODES, name="sums.json", **changes) -> Path:
        path = folder / name
        path.write_text(json.dumps(graph(export, *nodes) | changes))
        return path

    return make


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_labels_pins_and_records(make_export, graphs):
    out = make_export(with_contexts=True)
    path = graphs(out)
    done = label_graph(path, out)
    assert (done.n_labels, done.n_pins, done.n_records, done.has_contexts) == (4, 4, 5, True)
    written = read(path)
    labels = {n["node_id"]: n["clerp"] for n in written["nodes"] if n["feature"] != -1}
    assert labels["0_3_1"] == labels["1_5_2"] == ""  # the base's
    assert labels["0_40_1"] == labels["0_40_2"] and labels["0_40_1"].startswith("Δ L0F0: ")
    assert labels["2_53_3"].startswith("Δ L2F5: ") and labels["2_50_3"].startswith("Δ L2F2 → ")
    assert labels["4_7_3"] == 'Output "<" (p=0.9)'
    assert written["qParams"]["pinnedIds"] == ["2_53_3", "0_40_2", "0_40_1", "2_50_3"]
    assert written["metadata"]["scan"] == "./data/sums-features"
    assert written["links"] == graph(out)["links"]
    folder = path.with_name("sums-features")
    numbers = {n["feature"] for n in NODES}
    assert {p.name for p in folder.iterdir()} == {f"{number}.json" for number in numbers}
    assert read(folder / f"{cantor(0, 3)}.json") == {"isDead": True, "top_logits": ["base feature"]}
    shown = read(folder / f"{cantor(2, 53)}.json")
    assert sum(len(group["examples"]) for group in shown["examples_quantiles"]) == 128


def test_again_changes_nothing_but_what_the_export_says(make_export, graphs):
    out = make_export(with_contexts=True)
    path = graphs(out)
    label_graph(path, out)
    before = read(path)
    label_graph(path, out)
    assert read(path) == before
    assert not label_graph(path, make_export()).has_contexts  # written anew, without
    assert read(path)["qParams"] == before["qParams"]
    assert all(": " not in n["clerp"] for n in read(path)["nodes"] if n["clerp"].startswith("Δ"))


def test_what_somebody_pinned_stays(make_export, graphs):
    out = make_export()
    saved = {"pinnedIds": "4_7_3,0_40_1", "linkType": "both"}  # as the page's Save writes them
    path = graphs(out, qParams=saved)
    label_graph(path, out)
    pinned = ["4_7_3", "0_40_1", "2_53_3", "0_40_2", "2_50_3"]
    assert read(path)["qParams"] == saved | {"pinnedIds": pinned}


def test_an_export_without_features_labels_and_pins_too(random_study, graphs, tmp_path):
    out = export(random_study.folder, "circuit_tracer", tmp_path / "out", model=random_study.model)
    path = graphs(out)
    assert label_graph(path, out).n_pins == 4
    assert [n["clerp"] for n in read(path)["nodes"]][:3] == ["", "Δ L0F0", "Δ L0F0"]
    stub = read(path.with_name("sums-features") / f"{cantor(0, 40)}.json")
    assert stub == {"isDead": True, "top_logits": ["delta feature without statistics"]}


def test_a_delta_alone_keeps_clear_of_error_nodes(make_export, graphs):
    out = make_export(delta_only=True)  # its features are 3 to 8 of each layer
    path = graphs(out, nodes=[node(0, 3, 1), node(2, 8, 3)])
    label_graph(path, out)
    names = [n["clerp"].split(" →")[0] for n in read(path)["nodes"]]
    assert names[:2] == ["Δ L0F0", "Δ L2F5"] and not any(names[2:4])


def test_labels_hold_nothing_that_acts_in_html():
    hostile = ["<img src=x onerror=alert(1)>", "\u202e", "\u2028", "\x00", " \n"]
    for token in hostile:
        said = label(0, 1, {"examples_quantiles": [], "top_logits": [token]})
        assert not set(said) & set(ACTIVE), said
    assert label(0, 1, {"top_logits": [" ", "x" * 40]}) == f"Δ L0F1 → ␣ · {'x' * 13}…"


def test_a_label_names_the_strongest_peaks():
    def example(token, activation):
        return {"tokens": ["a", token], "tokens_acts_list": [0, activation], "train_token_ind": 1}

    tops = [example("(", 4.0), example("of", 3.0), example("(", 3.5), example("weak", 1.9)]
    record = {
        "act_max": 4.0,
        "top_logits": ["coins"],
        "examples_quantiles": [
            {"quantile_name": "Top activations · tool", "examples": tops},
            {"quantile_name": "Never active here · tool", "examples": [example("silent", 0.0)]},
        ],
    }
    assert label(0, 31, record) == "Δ L0F31: ( · of"


def refused(path: Path, out: Path, error: type[Exception], message: str) -> None:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error, match=message):
        label_graph(path, out)
    assert before is None or path.read_bytes() == before
    assert not list(path.parent.glob("*-features/[0-9]*.json"))


def test_a_graph_of_another_export(make_export, graphs, tmp_path):
    out, other = make_export(), make_export("other", alpha=0.5)
    refused(graphs(other), out, ValueError, "holds other dictionaries than .*out: give that export")
    refused(
        graphs(tmp_path / "gone"), out, FileNotFoundError, "gone', which is not .*metadata.scan"
    )
    refused(graphs("./data/mine"), out, FileNotFoundError, "made with './data/mine'")
    label_graph(graphs(make_export("copy")), out)  # the same dictionaries elsewhere


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([node(0, 47, 1)], "node 0_47_1 is of a feature that the export does not have"),  # padding
        ([node(1, 40, 1)], "never active in it"),
        ([node(2, 54, 1)], "does not have"),
        ([node(7, 0, 1)], "does not have"),
        ([node(0, 40, 1) | {"feature": 40}], "is called feature 40, and circuit-tracer 0.5"),
        ([node(0, 40, 1) | {"node_id": "x"}], "node 'x' is called"),
        ([{"feature_type": "cross layer transcoder"}], "not a graph of circuit-tracer .*'node_id'"),
        (["text"], "not a graph of circuit-tracer"),
        ([node(0, 40, 1), node(0, 40, 1)], "node 0_40_1 has the name of another one"),
    ],
)
def test_nodes_that_cannot_be(make_export, graphs, broken, message):
    out = make_export()
    refused(graphs(out, nodes=broken), out, ValueError, message)


def test_what_is_no_graph(make_export, graphs, tmp_path):
    out = make_export()
    refused(graphs(out, metadata={}), out, ValueError, r"not a graph of circuit-tracer .*'scan'")
    refused(graphs(out, qParams=None), out, ValueError, "not a graph of circuit-tracer")
    refused(
        tmp_path / "none.json", out, FileNotFoundError, "none.json does not exist: circuit-tracer"
    )
    path = graphs(out)
    path.write_text("{")
    refused(path, out, ValueError, "it is not JSON")
    refused(graphs(out, name="my sums.json"), out, ValueError, "another slug")
    refused(graphs(out), tmp_path, FileNotFoundError, "is not an export")
    (path.with_name("sums-features")).mkdir()
    (path.with_name("sums-features") / "mine.txt").write_text("")
    refused(graphs(out), out, FileExistsError, "holds mine.txt, which is no record")


def test_an_export_for_another_tool(random_study, graphs, tmp_path):
    out = export(random_study.folder, "saelens", tmp_path / "out", model=random_study.model)
    refused(graphs(out), out, ValueError, "is an export for saelens, not for circuit-tracer")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("index.json.gz", "index.json.gz is damaged"),
        ("layer_0.bin", "layer_0.bin is damaged at fe"),
    ],
)
def test_damaged_feature_files(make_export, graphs, name, message):
    out = make_export()
    (out / "features" / name).write_bytes(b"\x1f\x8b\x08 not gzip")
    refused(graphs(out), out, ValueError, message)
    (out / "features" / name).unlink()
    refused(graphs(out), out, (FileNotFoundError, ValueError), name)


def test_the_command(make_export, graphs, monkeypatch, capsys):
    out = make_export(with_contexts=True)
    path = graphs(out)
    monkeypatch.setattr(sys, "argv", ["graph", str(path), "--export", str(out)])
    main()
    said = capsys.readouterr().out
    assert "4 nodes of the delta labelled, the 4 that the output depends on most pinned" in said
    assert said.endswith("what its page shows of 5 features, with contexts\n")
