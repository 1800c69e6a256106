"""Every control through its own stages, and what must hold whatever the models are."""

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.report.tables import read_metrics

QUICK = {"model.layers": "[0, all]", "model.max_new_tokens": 8, "data.batch_size": 4}


@pytest.fixture(scope="module")
def controlled(dictionaries, arguments, delta_options, tmp_path_factory):
    """A copy of the study with everything that `make controls` trains."""
    study = shutil.copytree(dictionaries, tmp_path_factory.mktemp("controls") / "study")
    train.main(arguments("tiny/corrections.yaml", study, {"data.n_check_examples": 8}))
    dense = {"model.output": study / "dense", "model.sparsity": "{mode: l1, l1_weight: 0.0}"}
    train.main(arguments("tiny/delta.yaml", study, delta_options | dense))
    on_base = {"model.model": study / "base_model", "data.model": study / "base_model"}
    cache = study / "base_model_on_examples"
    evaluate.main(
        arguments("tiny/activations.yaml", study, on_base | {"trainer.callbacks.output": cache})
    )
    base_model_delta = {
        "data.model": study / "base_model",
        "data.cache": cache,
        "model.output": study / "base_model_delta",
    }
    train.main(arguments("tiny/delta.yaml", study, delta_options | base_model_delta))
    error = {"data.target": "dictionary_error", "model.output": study / "error_delta"}
    train.main(arguments("tiny/delta.yaml", study, delta_options | error))
    no_dictionary = {k: v for k, v in delta_options.items() if k != "data.n_check_examples"}
    two_widths = {"model.d_new": "[4, 6]"}
    train.main(arguments("tiny/mlp_difference.yaml", study, no_dictionary | two_widths))
    return study


def rows_of(folder) -> dict[tuple, dict]:
    keys = ("layer", "condition", "d_new", "target", "subset")
    return {tuple(row[k] for k in keys): row for row in read_metrics(folder / "metrics.csv")}


@pytest.fixture(scope="module")
def controls(controlled, arguments):
    finetuning = controlled / "mlp_difference/d6_mlp_difference"
    options = QUICK | {"model.controls.finetuning_delta": finetuning}
    evaluate.main(arguments("tiny/controls.yaml", controlled, options))
    return rows_of(controlled / "controls")


def test_a_subset_that_the_cache_lacks_is_refused(dictionaries, arguments, tmp_path):
    options = {"model.away": "poems", "data.n_check_examples": 8, "model.output": tmp_path / "out"}
    with pytest.raises(
        ValueError, match="away is 'poems', expected one of the cache's subsets: copy, tool"
    ):
        train.main(arguments("tiny/corrections.yaml", dictionaries, options))
    assert not (tmp_path / "out").exists()


def test_corrections_say_how_well_they_fit(controlled):
    cache = ActivationCache(controlled / "activations")
    for layer in (0, 1):
        fvu = {}
        for kind in ("bias", "low_rank", "ridge", "steering"):
            folder = controlled / "corrections" / kind / f"layer_{layer}"
            fvu[kind] = json.loads((folder / "config.json").read_text())["fvu"]
        base = json.loads((controlled / f"delta/layer_{layer}/config.json").read_text())["measured"]
        assert fvu["bias"] < base["fvu_base"]
        b = load_file(controlled / f"corrections/bias/layer_{layer}/correction.safetensors")["b"]
        residuals = torch.cat(
            [
                cache.rows("train", layer, "residual-base_transcoders-p0.5", shard).float()
                for shard in cache.shards("train")
            ]
        )
        torch.testing.assert_close(b, residuals.mean(0), rtol=1e-4, atol=1e-5)


def test_every_control_has_its_rows_and_differs_from_the_others(controls):
    conditions = {condition for _, condition, *_ in controls}
    assert conditions == {
        "raw", "no_delta", "full", "base_mlp", "dictionary_error", "error_kept", "random_delta",
        "base_model_delta", "finetuning_delta", "error_delta", "bias", "steering", "low_rank", "dense",
        "ridge",
    }  # fmt: skip
    at = {k: row for k, row in controls.items() if k[0] == "all" and k[-1] == "tool"}
    assert len({row["mean_ce"] for row in at.values()}) == len(conditions) - 1


def test_the_two_targets_meet_where_they_must(controlled, controls, arguments):
    deltas = ("delta", "mlp_difference/d4_mlp_difference", "mlp_difference/d6_mlp_difference")
    given = ", ".join(f'"{controlled / folder}"' for folder in deltas)
    conditions = (
        "[no_delta, full, error_kept, {condition: dictionary_and_delta, "
        "terms: [{source: base@d6_p0.5}, {source: delta}]}]"
    )
    options = QUICK | {"model.deltas": f"[{given}]", "model.conditions": conditions}
    evaluate.main(arguments("tiny/targets.yaml", controlled, options))
    rows = rows_of(controlled / "targets")
    for subset in ("tool", "copy", "tool_ood"):
        residual, difference = (
            {c: rows["all", c, "6", target, subset] for c in ("no_delta", "full", "error_kept")}
            for target in ("residual", "mlp_difference")
        )
        # The dictionary and the delta that corrects it are `full`; the base MLP is its own control.
        both = rows["all", "dictionary_and_delta", "6", "residual", subset]
        assert both["mean_ce"] == residual["full"]["mean_ce"]
        base_mlp = controls["all", "base_mlp", "6", "residual", subset]
        assert difference["no_delta"]["mean_ce"] == base_mlp["mean_ce"]
        for row in difference.values():
            assert row["d_new"] == "6"
    for width in (4, 6):
        config = controlled / f"mlp_difference/d{width}_mlp_difference/layer_0/config.json"
        assert json.loads(config.read_text())["target"] == "mlp_difference"


def test_a_residual_is_finetuning_s_part_and_the_dictionary_s_own_error(controlled):
    """r = d + e, token by token, as the cache holds the three."""
    cache = ActivationCache(controlled / "activations")
    names = (
        "residual-base_transcoders-p0.5",
        "mlp_difference",
        "dictionary_error-base_transcoders-p0.5",
    )
    for layer in (0, 1):
        for shard in cache.shards("train"):
            r, d, e = (cache.rows("train", layer, name, shard).float() for name in names)
            torch.testing.assert_close(d + e, r, rtol=0, atol=4e-3 * r.abs().max().item())
            assert min(d.abs().max(), e.abs().max()) > 0.01
        config = json.loads((controlled / f"error_delta/layer_{layer}/config.json").read_text())
        of_residual = json.loads((controlled / f"delta/layer_{layer}/config.json").read_text())
        assert config["target"] == "dictionary_error"
        for key in ("base_hash", "average_l0_base", "percentile"):
            assert config[key] == of_residual[key]
        assert config["measured"]["fvu_base"] != of_residual["measured"]["fvu_base"]


def test_a_finetune_of_nothing_has_no_effect(controlled, arguments, tmp_path):
    """The base model as its own finetune."""
    options = QUICK | {
        "model.model": controlled / "base_model",
        "model.deltas": f"[{controlled / 'base_model_delta'}]",
        "model.conditions": "[no_delta, full, base_mlp, {condition: top, terms: [{source: top_neurons}]}]",
        "model.controls.top_neurons.init_args.k": 64,
        "model.output": tmp_path,
        "data.model": controlled / "base_model",
    }
    evaluate.main(arguments("tiny/exp1.yaml", controlled, options))
    rows = rows_of(tmp_path)
    for subset in ("tool", "copy", "tool_ood"):
        # All neurons are the MLP.
        for layer, condition in itertools.product(("0", "all"), ("base_mlp", "top")):
            put_back = rows[layer, condition, "6", "residual", subset]
            assert float(put_back["dce"]) == pytest.approx(0, abs=1e-6)
            assert float(put_back["mean_kl"]) == pytest.approx(0, abs=1e-6)
        for condition in ("base_mlp", "top"):
            fvu = float(rows["0", condition, "6", "residual", subset]["fvu"])
            assert fvu == pytest.approx(0, abs=1e-6)


def test_the_base_s_own_floor_in_the_base_model(controlled, controls, arguments):
    evaluate.main(arguments("tiny/base_floor.yaml", controlled, QUICK))
    rows = rows_of(controlled / "base_floor")
    conditions = {"raw", "no_delta", "finetuned_mlp", "top_8_neurons"}
    assert {condition for _, condition, *_ in rows} == conditions
    for subset in ("tool", "copy", "tool_ood"):
        neurons = float(rows["0", "top_8_neurons", "", "", subset]["fvu"])
        assert 0.01 < neurons < 1
        floor = float(rows["0", "no_delta", "", "", subset]["fvu"])
        assert 0 < floor < float(controls["0", "no_delta", "6", "residual", subset]["fvu"]) * 1.5


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ("{base: X}", "'base' is the name of another source"),
        ("{mine: X/nowhere}", "no folder .*/nowhere"),
        ("{mine: X/finetune}", "holds no layer_L folders"),
    ],
)
def test_a_control_that_cannot_be_one(controlled, arguments, tmp_path, controls, message):
    options = QUICK | {
        "model.controls": controls.replace("X", str(controlled)),
        "model.conditions": "[full]",
        "model.output": tmp_path / "result",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate.main(arguments("tiny/controls.yaml", controlled, options))
    assert not (tmp_path / "result").exists()
