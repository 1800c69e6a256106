"""What finetuning changed in the MLPs, where it changed any."""

import shutil

import pytest

from datamodules.mlp_difference import TARGET, MLPDifferenceData
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.language_models import load_model


def test_a_layer_that_finetuning_left_alone_is_refused(dictionaries, tmp_path):
    merged, base = str(dictionaries / "finetune/merged"), tmp_path / "base"
    shutil.copytree(merged, base)
    model = load_model(merged)
    model.model.layers[0].mlp.up_proj.weight.data += 0.1
    model.save_pretrained(base)
    cache = shutil.copytree(dictionaries / "activations", tmp_path / "activations")
    data = MLPDifferenceData(str(cache), merged, str(base))
    with pytest.raises(ValueError, match="left the MLP of layer 1 as it was: there is no differen"):
        data.prepare_data()
    assert ActivationCache(cache).target(TARGET, 0) is None  # before anything is computed

    MLPDifferenceData(str(cache), merged, str(base), layers=[0]).prepare_data()
    assert ActivationCache(cache).load("train", 0, [TARGET])[TARGET].abs().max() > 0.01
