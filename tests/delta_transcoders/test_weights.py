"""Weights read from disk one by one, against the model loaded as a whole."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from delta_transcoders import weights
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.language_models import load_model
from delta_transcoders.weights import StoredWeights


@pytest.fixture
def stored(model_folder, tmp_path, request) -> str:
    """The tiny model, saved in one of several ways."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    model = load_model(model_folder)
    if request.param == "bfloat16":
        model.bfloat16().save_pretrained(folder)
    elif request.param == "shards":
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="40KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 3
    elif request.param == "tied, twice in the file":
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif request.param == "untied":
        config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
        (folder / "config.json").write_text(json.dumps(config))
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif request.param == "pickled":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


WAYS = ["float32", "bfloat16", "shards", "tied, twice in the file", "untied", "pickled"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", WAYS, indirect=True)
def test_the_fingerprint_is_that_of_the_loaded_model(stored, dtype, monkeypatch):
    expected = model_fingerprint(load_model(stored, dtype))
    if not Path(stored, "pytorch_model.bin").is_file():
        monkeypatch.delattr(weights, "load_model")  # no whole model is loaded for it
    assert StoredWeights(stored, dtype).fingerprint() == expected


@pytest.mark.parametrize("stored", ["shards", "pickled"], indirect=True)
def test_some_layers_have_the_loaded_model_s_weights(stored):
    ours = StoredWeights(stored, "bfloat16").with_layers([0, 2])
    theirs = load_model(stored, "bfloat16")
    x_BTD = torch.randn(1, 5, 32, dtype=torch.bfloat16)
    for layer in (0, 2):
        mlps = [model.model.layers[layer].mlp for model in (ours, theirs)]
        assert torch.equal(*(mlp(x_BTD) for mlp in mlps))
    assert (
        ours.model.layers[1].mlp.up_proj.weight.is_meta
        is not Path(stored, "pytorch_model.bin").is_file()
    )


def test_a_damaged_file_has_the_error_of_the_loaded_model(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match=f"{folder}' cannot be loaded"):
        StoredWeights(str(folder))


@pytest.mark.parametrize("stored", ["shards"], indirect=True)
def test_a_shard_that_the_index_names_and_the_folder_lacks_is_named(stored):
    gone = sorted(Path(stored).glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"has no {gone.name}, which model.safetensors.index"
    ):
        StoredWeights(stored)
    with pytest.raises(FileNotFoundError, match=gone.name):
        load_model(stored)
