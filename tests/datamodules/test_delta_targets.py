"""The base model, which only the hook-site check needs."""

import shutil
import weakref

from datamodules import delta_targets
from datamodules.delta_targets import DeltaData
from delta_transcoders.tasks.calculator.task import Calculator


def test_the_base_model_is_loaded_as_asked_and_let_go_of(dictionaries, tmp_path, monkeypatch):
    loaded = []

    def recorded(source, dtype="float32"):
        model = load_model(source, dtype)
        loaded.append((source, dtype, weakref.ref(model.model.embed_tokens.weight)))
        return model

    load_model = delta_targets.load_model
    monkeypatch.setattr(delta_targets, "load_model", recorded)
    # The cache is of a float32 model; whose it is has been checked before.
    monkeypatch.setattr(delta_targets.ActivationData, "prepare_data", DeltaData._open)
    cache = shutil.copytree(dictionaries / "activations", tmp_path / "activations")
    data = DeltaData(
        str(cache),
        str(dictionaries / "finetune/merged"),
        str(dictionaries / "base_transcoders"),
        str(dictionaries / "base_model"),
        Calculator(),
        str(dictionaries / "finetune/data/validation.jsonl"),
        n_check_examples=8,
        model_dtype="bfloat16",
    )
    data.prepare_data()
    ((source, dtype, weights),) = loaded
    assert (source, dtype) == (str(dictionaries / "base_model"), "bfloat16")
    assert weights() is None
    data.setup("fit")
    assert all(0 < data.base_model_fit(layer, "p0.5").fvu < 1 for layer in data.layers)
