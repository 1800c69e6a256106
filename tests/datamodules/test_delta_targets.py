"""The base model, which only the hook-site check needs."""

import shutil
import warnings
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest

from datamodules import delta_targets
from datamodules.delta_targets import DeltaData
from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.families.sites import HOOK_SITES
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


def test_a_set_of_another_model_is_told_once(dictionaries, tmp_path, monkeypatch):
    base, instruct = "meta-llama/Llama-3.1-8B", "mirror/Llama-3.1-8B-Instruct"
    load_base, load_model = delta_targets.load_base, delta_targets.load_model
    said = {}

    def described(*args, **options):
        dictionary, base_id = load_base(*args, **options)
        return dictionary, replace(base_id, base_model=said["model"])

    folder = str(dictionaries / "base_model")
    monkeypatch.setattr(delta_targets, "load_base", described)
    monkeypatch.setattr(
        delta_targets, "load_model", lambda source, dtype: load_model(folder, dtype)
    )
    load_tokenizer = delta_targets.load_tokenizer
    monkeypatch.setattr(delta_targets, "load_tokenizer", lambda *_: load_tokenizer(folder))
    monkeypatch.setattr(delta_targets.ActivationData, "prepare_data", DeltaData._open)
    cache = shutil.copytree(dictionaries / "activations", tmp_path / "activations")
    data = DeltaData(
        str(cache),
        str(dictionaries / "finetune/merged"),
        str(dictionaries / "base_transcoders"),
        base,
        Calculator(),
        str(dictionaries / "finetune/data/validation.jsonl"),
        n_check_examples=8,
    )
    said["model"] = instruct
    with pytest.warns(
        StudyWarning, match=f"says that it is for {instruct}, and .* is {base}$"
    ) as told:
        data.prepare_data()
    assert sum("says that it is for" in str(warning.message) for warning in told) == 1
    for model in ("mirror/Llama-3.1-8B", None):
        said["model"] = model
        with warnings.catch_warnings():
            warnings.simplefilter("error", StudyWarning)
            data.prepare_data()


@pytest.mark.parametrize("site", ["residual", "original", "gemma_scope"])
def test_a_set_that_names_its_site_is_used_there_alone(dictionaries, site):
    """Also where the cache is not of the family's own site."""
    meta = SimpleNamespace(hook_site=HOOK_SITES[site], token_policy=Gemma2.tokens.name)
    data = SimpleNamespace(cache=SimpleNamespace(meta=meta), hparams=SimpleNamespace(cache="cache"))
    _, base_id = load_base(dictionaries / "base_transcoders", 0, percentile=0.5)
    assert base_id.hook_site is None
    for named in (None, site):
        DeltaData._check_cache(data, replace(base_id, hook_site=named), Gemma2, 1)
    said = f"is for hook site 'after_gain', the cache cache was captured at '{site}'"
    with pytest.raises(ValueError, match=said):
        DeltaData._check_cache(data, replace(base_id, hook_site="after_gain"), Gemma2, 1)
