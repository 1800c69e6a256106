"""The site check on ordinary text, and the hashes beside what a study has noted."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.random_dictionaries import fitted_dictionary
from delta_transcoders.activations.site_check import _activations
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.files.gemma_scope import save_base
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.study.check import sites
from delta_transcoders.study.check.hashes import dictionary_hashes, model_hash
from delta_transcoders.study.check.sites import SiteCheck, texts, token_rows
from delta_transcoders.study.check.sources import DictionaryUse, Source
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.study_file import read_study
from delta_transcoders.weights import StoredWeights

LAYER, L0 = 1, 8


@pytest.fixture(scope="module")
def use(model_folder, tmp_path_factory) -> DictionaryUse:
    """A dictionary of one layer, made for Gemma Scope's site on the check's own text."""
    folder = str(tmp_path_factory.mktemp("set"))
    which = (("width", None), ("files", None), ("percentile", 0.5))
    use = DictionaryUse(model_folder, folder, which, (LAYER,), "float32", None, None)
    opened = SiteCheck(use)
    site = HOOK_SITES["gemma_scope"]
    found = _activations(opened.bridge, opened.rows, LAYER, [site], 8, None)
    x_ND, y_ND = (found[name] for name in site.hook_points(LAYER))
    save_base(folder, LAYER, fitted_dictionary(x_ND, y_ND, 2048, L0, seed=0), L0)
    return use


def test_the_text_is_english_and_long_enough(tokenizer):
    rows = token_rows(tokenizer, context=128)
    assert sum(map(len, rows)) > 300
    assert max(map(len, rows)) <= 128
    assert texts()[0].startswith("Heaps are arrays for which")


def test_a_dictionary_in_its_place(use, monkeypatch):
    monkeypatch.setitem(sites.PUBLISHED, use.dictionaries.rpartition("/")[2], {LAYER: 0.25})
    said = SiteCheck(use).layer(LAYER)
    assert said.startswith("FVU 0.") and "at gemma_scope (" in said
    assert said.endswith("L0 8 (its name says 8), published FVU .25")


def test_another_site_than_the_dictionary_s(use):
    with pytest.raises(
        ValueError, match=r"'after_gain' is not where the base dictionary of layer 1"
    ):
        SiteCheck(replace(use, site="after_gain")).layer(LAYER)


def test_another_model_s_set(use, tmp_path):
    base, _ = load_base(use.dictionaries, LAYER)
    generator = torch.Generator().manual_seed(0)
    base.W_dec.data = torch.randn(base.W_dec.shape, generator=generator)
    save_base(tmp_path, LAYER, base, L0)
    with pytest.raises(ValueError, match=r"fits at no site .*: another model's set"):
        SiteCheck(replace(use, dictionaries=str(tmp_path))).layer(LAYER)


# Hashes


@pytest.fixture
def graph(use, lab):
    """A study of the model and the set, of a capture and a delta."""
    lab.write(
        "configs/a.yaml",
        f"model: {{class_path: x.Y, init_args: {{output: '${{study}}/a', model: {use.base_model}}}}}\n",
    )
    lab.write(
        "configs/b.yaml",
        "model: {class_path: x.Y, init_args: {output: '${study}/b'}}\n"
        f"data: {{class_path: x.Z, init_args: {{base_transcoders: {use.dictionaries}}}}}\n",
    )
    lab.write(
        "configs/study.yaml",
        "study: runs\nstages:\n  a: {run: evaluate, config: a.yaml}\n  b: {run: train, config: b.yaml}\n",
    )
    return Graph(read_study("configs/study.yaml"))


def test_of_a_model(use, graph, lab):
    source = Source("model", use.base_model, ("--a.model.model",))
    found = StoredWeights(use.base_model).fingerprint()
    assert model_hash(source, graph) == f"sha256 {found} in float32, nothing ran on it yet"
    meta = {"model_dtype": "float32", "model_fingerprint": found}
    lab.write("runs/a/manifest.json", json.dumps({"meta": meta}))
    assert model_hash(source, graph).endswith("in float32, as in runs/a")
    lab.replace("runs/a/manifest.json", found, "0" * 64)
    with pytest.raises(ValueError, match=r"runs/a was made with other weights \(sha256 0000000"):
        model_hash(source, graph)


def test_of_a_set(use, graph, lab):
    _, base_id = load_base(use.dictionaries, LAYER)
    assert dictionary_hashes(use, [LAYER], graph) == (
        f"layer 1 sha256 {base_id.hash}, nothing ran on it yet"
    )
    noted = {"base_id": base_id.path, "base_hash": base_id.hash}
    lab.write("runs/b/layer_1/config.json", json.dumps(noted))
    assert dictionary_hashes(use, [LAYER], graph).endswith("as in runs/b/layer_1")
    lab.replace("runs/b/layer_1/config.json", base_id.hash, "f" * 64)
    with pytest.raises(ValueError, match=r"runs/b/layer_1 was made with other weights"):
        dictionary_hashes(use, [LAYER], graph)
