"""Weight baselines: what is trained, what the conditions are identical to, and what is refused."""

import json
import shutil

import pytest
import torch

import evaluate
import train
from delta_transcoders.language_models import load_model
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.weight_patches.baselines import delta_parameters, differences, truncated
from delta_transcoders.weight_patches.patch import load_patch

D_MODEL = 32
FULL = 18  # features whose numbers hold all 12 components of 96 numbers
QUICK = {
    "data.batch_size": 8,
    "data.n_train": 32,
    "data.n_validation": 12,
    "model.n_features": f"[2, {FULL}]",
    "model.warmup_steps": 0,
    "trainer.max_steps": 6,
    "trainer.val_check_interval": 2,
    "trainer.log_every_n_steps": 2,
}


@pytest.fixture(scope="module")
def study(study, arguments, tmp_path_factory):
    """The study with a finetune of few components: LoRA of rank 2 on the MLPs alone."""
    folder = shutil.copytree(study, tmp_path_factory.mktemp("few_components") / "study")
    few = {"model.lora_r": 2, "model.target_modules": "[gate_proj, up_proj, down_proj]"}
    calls = {"data.n_train": 64, "data.n_validation": 15, "data.n_evaluation": 5}
    steps = {"data.batch_size": 8, "trainer.max_steps": 4, "trainer.val_check_interval": 2}
    train.main(arguments("tiny/lora.yaml", folder, few | calls | steps))
    return folder


@pytest.fixture(scope="module")
def refit(study, arguments, tmp_path_factory):
    """`refit(**options)`: the folder of patches, trained for a few steps."""

    def run(**options):
        folder = tmp_path_factory.mktemp("refit")
        given = QUICK | {"model.output": folder / "out", "trainer.default_root_dir": folder}
        given |= {"trainer.logger": "false", "trainer.enable_checkpointing": "true"}
        given |= {k.replace("__", "."): v for k, v in options.items()}
        train.main(arguments("tiny/weight_refit.yaml", study, given))
        return folder / "out"

    return run


@pytest.fixture(scope="module")
def patches(refit):
    return refit()


def worst(folder, name) -> float:
    return max(load_patch(folder / name)[1].kl.values())


def test_training_brings_the_worst_subset_nearer(refit, patches):
    start = refit(model__lr=1e-12)
    for name in ("bias", "svd_n2"):
        assert worst(patches, name) < worst(start, name)
    # All components are the finetuned model, from the first step on.
    assert worst(start, f"svd_n{FULL}") < 1e-6


def test_the_sizes_are_those_of_a_delta(patches):
    _, config = load_patch(patches / "svd_n2")
    assert config.n_parameters == 96 <= delta_parameters(2, D_MODEL)
    patch, config = load_patch(patches / "bias")
    assert config.n_parameters == sum(p.numel() for p in patch.parameters()) == 2 * (64 + 64 + 32)
    assert set(config.kl) == {"tool", "copy"}


def test_patches_start_at_the_singular_components_and_take_their_own_paths(refit, study, patches):
    start, _ = load_patch(refit(model__lr=1e-12) / "svd_n2")
    models = [load_model(str(study / name)) for name in ("base_model", "finetune/merged")]
    expected = truncated(differences(*models), delta_parameters(2, D_MODEL))
    assert start.paths == expected.paths
    for ours, theirs in zip(start.layers, expected.layers, strict=True):
        torch.testing.assert_close(ours.A, theirs.A, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(ours.B, theirs.B, atol=1e-6, rtol=1e-4)
    alone, _ = load_patch(refit(model__n_features="[2]") / "svd_n2")
    among, _ = load_patch(patches / "svd_n2")
    for ours, theirs in zip(alone.parameters(), among.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture(scope="module")
def measured(study, patches, arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    options = {
        "model.output": folder / "out",
        "model.refits": patches,
        "model.n_features": f"[2, {FULL}]",
        "model.alphas": "[0, 0.5, 1]",
        "model.max_new_tokens": 4,
        "model.correct": "{tool: valid_tool_format}",
    }
    evaluate.main(arguments("tiny/weight_baselines.yaml", study, options))
    return folder / "out"


def by_condition(folder) -> dict[str, list[dict]]:
    lines = [json.loads(line) for line in (folder / "generations.jsonl").open()]
    return {
        name: [x for x in lines if x["condition"] == name]
        for name in dict.fromkeys(x["condition"] for x in lines)
    }


def test_nothing_of_the_change_is_the_base_model_and_all_of_it_the_finetuned(measured):
    rows = by_condition(measured)
    for name, twin in (("alpha_0", "base_model"), ("alpha_1", "raw"), (f"svd_n{FULL}", "raw")):
        for ours, theirs in zip(rows[name], rows[twin], strict=True):
            assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-4)
            assert ours["kl"] == pytest.approx(theirs["kl"], abs=1e-4)
            assert ours["text"] == theirs["text"]
    assert all(row["kl"] == 0 for row in rows["raw"])
    assert all(row["kl"] > 0 for row in rows["base_model"])


def test_the_table_has_every_condition_with_its_numbers(measured):
    rows = read_metrics(measured / "baselines.csv")
    sizes = {row["condition"]: (row["d_new"], row["n_parameters"]) for row in rows}
    assert sizes.pop("raw") == sizes.pop("base_model") == ("", "")
    whole, dense = str(12 * 96), str(12 * 32 * 32)
    assert sizes == {
        "alpha_0": ("", dense),
        "alpha_0.5": ("", dense),
        "alpha_1": ("", dense),
        "svd_n2": ("2", "96"),
        "neurons_n2": ("2", "96"),
        f"svd_n{FULL}": (str(FULL), whole),
        f"neurons_n{FULL}": (str(FULL), whole),
        "refit_bias": ("", "320"),
        "refit_svd_n2": ("2", "96"),
        f"refit_svd_n{FULL}": (str(FULL), whole),
    }
    assert {row["subset"] for row in rows} == {"tool", "copy", "tool_ood"}
    assert len(rows) == 12 * 3


def test_patches_have_curves_with_the_fidelity_of_their_mlps(measured):
    """Of all components the MLPs are the finetuned ones; no components write nothing."""
    rows = read_metrics(measured / "curve.csv")
    sizes = [("neurons", "2"), ("neurons", str(FULL)), ("refit_bias", "0")]
    sizes += [(name, n) for name in ("refit_svd", "svd") for n in ("2", str(FULL))]
    assert sorted({(row["delta"], row["n"]) for row in rows}) == sorted(sizes)
    fidelity = {
        (row["delta"], row["n"], row["layer"]): row
        for row in read_metrics(measured / "fidelity.csv")
    }
    assert len(fidelity) == 2 * len(sizes)
    for layer in ("0", "1"):
        whole = fidelity["svd", str(FULL), layer]
        assert float(whole["cos"]) == pytest.approx(1, abs=1e-4)
        assert float(whole["unexplained"]) == pytest.approx(0, abs=1e-4)
        assert float(fidelity["svd", "2", layer]["unexplained"]) > 1e-3
    n90 = {row["delta"]: row["n90"] for row in read_metrics(measured / "n90.csv")}
    # A model of four steps calls nothing.
    assert n90 == {
        "svd": f">{FULL}", "neurons": f">{FULL}", "refit_svd": f">{FULL}", "refit_bias": ">0",
    }  # fmt: skip


def test_patches_of_other_models_are_refused(study, patches, arguments, tmp_path):
    other = shutil.copytree(patches, tmp_path / "patches")
    config = json.loads((other / "bias" / "config.json").read_text())
    (other / "bias" / "config.json").write_text(json.dumps(config | {"base_fingerprint": "x" * 64}))
    options = {"model.output": tmp_path / "out", "model.refits": other, "model.n_features": "[2]"}
    with pytest.raises(ValueError, match="bias is for another model"):
        evaluate.main(arguments("tiny/weight_baselines.yaml", study, options))
    options["model.refits"] = tmp_path / "none"
    with pytest.raises(FileNotFoundError, match=r"no patches in .*weight_refit\.yaml"):
        evaluate.main(arguments("tiny/weight_baselines.yaml", study, options))


def test_a_size_without_room_for_a_component_is_refused(refit):
    with pytest.raises(ValueError, match="65 parameters hold no singular component"):
        refit(model__n_features="[1]")
    with pytest.raises(ValueError, match=r"n_features is \[2, 2\], expected different sizes"):
        refit(model__n_features="[2, 2]")


def test_a_resumed_refit_ends_as_an_uninterrupted_one(refit, study, arguments, patches, tmp_path):
    keep = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: "
    keep += f"{{dirpath: {tmp_path}, every_n_train_steps: 3, save_top_k: -1}}}}"
    refit(**{"trainer__callbacks+": keep})
    (checkpoint,) = tmp_path.glob("*step=3.ckpt")
    names = {name.split(".")[0] for name in torch.load(checkpoint)["state_dict"]}
    assert names == {"patches", "best", "best_kl_PS"}
    resumed = refit(ckpt_path=checkpoint)
    for name in ("bias", "svd_n2", f"svd_n{FULL}"):
        (ours, config), (theirs, expected) = (load_patch(f / name) for f in (resumed, patches))
        assert config == expected
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_refit_with_room_for_the_whole_change_is_the_finetuned_model(refit, study):
    n = 2000  # more numbers than all components have
    models = [load_model(str(study / name)) for name in ("base_model", "finetune/merged")]
    changes = differences(*models)
    patch, config = load_patch(refit(model__n_features=f"[{n}]") / f"svd_n{n}")
    for path, layer in patch.items():
        torch.testing.assert_close(layer.A @ layer.B, changes[path], atol=1e-6, rtol=1e-4)
    assert max(config.kl.values()) < 1e-6
