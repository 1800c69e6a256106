"""A study of every family, from a base model to shared deltas, by the stages that a user runs."""

import json
import shutil

import pytest
import torch
import yaml

import evaluate
import train
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.dictionaries.files import TOOL_FORMATS
from delta_transcoders.dictionaries.files.exported import load_export
from delta_transcoders.export import export
from delta_transcoders.families.tokens import special_ids
from delta_transcoders.language_models import end_ids, load_model, load_tokenizer
from delta_transcoders.report.tables import read_metrics

pytestmark = pytest.mark.slow

OPTIONS = {
    ("train", "lora"): {
        "model.target_modules": "null",  # those of the family
        "model.lr": 3e-2,
        "data.n_train": 48,
        "data.n_validation": 12,
        "data.n_evaluation": 4,
        "data.batch_size": 8,
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 1,
    },
    ("evaluate", "activations"): {},
    ("train", "mlp_difference"): {
        "data.batch_tokens": 128,
        "model.d_new": "[6]",
        "model.l0": 2,
        "model.warmup_steps": 2,
        "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 4,
    },
    ("evaluate", "exp2a"): {
        "model.layers": "[0, all]",
        "model.conditions": "[no_delta, full, base_mlp]",
        "model.max_new_tokens": 8,
        "data.n_per_subset": 2,
    },
}


@pytest.fixture(scope="module")
def finished(case, folder, arguments, tmp_path_factory):
    """The study's folder."""
    study = tmp_path_factory.mktemp("studies") / case.name
    shutil.copytree(folder, study / "base_model")
    for (script, config), options in OPTIONS.items():
        if config == "exp2a":
            options = options | {"model.deltas": f"[{study / 'mlp_difference'}]"}
        main = train.main if script == "train" else evaluate.main
        main(arguments(f"tiny/{config}.yaml", study, options))
    return study


@torch.inference_mode()
def test_the_adapter_is_merged_exactly_into_every_block(case, finished):
    """Also into layers that are stored transposed, and into none outside of the blocks."""
    from peft import PeftModel

    base, merged = (load_model(str(finished / n)) for n in ("base_model", "finetune/merged"))
    changed = {
        name.removesuffix(".weight")
        for name, weight in base.named_parameters()
        if not torch.equal(weight, merged.get_parameter(name))
    }
    blocks = [f"{case.family.blocks_path}.{layer}." for layer in range(3)]
    expected = {
        name
        for name, _ in base.named_modules()
        if name.startswith(tuple(blocks)) and name.endswith(case.family.lora_targets)
    }
    assert changed == expected
    ids = torch.randint(10, 400, (2, 20), generator=torch.Generator().manual_seed(0))
    plain = base(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(base, str(finished / "finetune/adapter")).eval()
    assert (adapted(input_ids=ids).logits - plain).abs().max() > 0.01
    torch.testing.assert_close(
        merged(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4, rtol=1e-4
    )


def test_the_cache_holds_no_spared_token(finished):
    cache = ActivationCache(finished / "activations")
    index = cache.index("train")
    special = special_ids(load_tokenizer(str(finished / "finetune/merged")))
    assert not torch.isin(index["token_ids"].long(), special).any()
    assert index["positions"].min() == 1


def test_what_corrects_the_base_models_mlp_is_measured(case, finished):
    rows = read_metrics(finished / "exp2a" / "metrics.csv")
    cells = {(row["layer"], row["condition"], row["subset"]): row for row in rows}
    assert {key[:2] for key in cells} == {("", "raw")} | {
        (layer, condition)
        for layer in ("0", "all")
        for condition in ("no_delta", "full", "base_mlp")
    }
    for (layer, condition, subset), row in cells.items():
        if condition == "base_mlp":  # what the delta corrects, under its own name
            assert row["mean_ce"] == cells[layer, "no_delta", subset]["mean_ce"]
            assert row["mean_ce"] != cells["", "raw", subset]["mean_ce"]
        if condition == "full":
            assert row["mean_ce"] != cells[layer, "no_delta", subset]["mean_ce"]


@pytest.mark.parametrize("format", ["deltas", "saelens", "circuit_tracer", "merged"])
def test_deltas_are_exported(case, finished, tmp_path, format):
    options = {"delta_only": True} if format in TOOL_FORMATS else {}
    if format != "merged":
        options["deltas"] = finished / "mlp_difference"
    out = export(finished, format, tmp_path / "out", **options)
    card = (out / "README.md").read_text()
    assert "from scratch" not in card  # no stage has made this base model
    hook_in, _ = case.family.site.names(0)
    if format == "merged":
        given, copied = (load_tokenizer(str(f)) for f in (finished / "base_model", out))
        assert copied("What?") == given("What?")
        assert end_ids(str(out), copied) == end_ids(str(finished / "base_model"), given)
        return
    assert hook_in.replace(".0.", ".L.") in card
    if format in TOOL_FORMATS:
        card, dictionaries = load_export(out)
        assert (card.hook_site, set(dictionaries)) == (case.family.site.name, {0, 1, 2})
    if format == "saelens":
        config = json.loads((out / "layer_0" / "cfg.json").read_text())
        assert config["metadata"]["prepend_bos"] is case.adds_bos
        assert config["metadata"]["hook_name"] == hook_in
    if format == "circuit_tracer":
        config = yaml.safe_load((out / "config.yaml").read_text())
        names = {"gemma_scope": "ln2.hook_normalized", "after_gain": "mlp.hook_in"}
        assert config["feature_input_hook"] == names[case.family.site.name]
        post_norm = case.name.startswith("gemma")
        assert config["feature_output_hook"] == ("hook_mlp_out" if post_norm else "mlp.hook_out")
