"""A delta beside base dictionaries of every kind: residuals, training, interventions, exports."""

import shutil

import numpy as np
import pytest
import torch

import evaluate
import train
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.delta import load_delta
from delta_transcoders.dictionaries.files.exported import load_export
from delta_transcoders.export import export
from delta_transcoders.language_models import load_model
from delta_transcoders.report.tables import read_metrics
from interop import published_sets
from interop.published_sets import circuit_tracer

pytestmark = pytest.mark.slow

LAYERS = (0, 1)


def topk(folder, tensors, gain):
    circuit_tracer(folder, skip=True, tensors=tensors, activation="topk", k=16, **BEFORE_GAIN)


def skip(folder, tensors, gain):
    circuit_tracer(folder, skip=True, tensors=tensors, activation="relu", **BEFORE_GAIN)


def bfloat16(folder, tensors, gain):
    options = BEFORE_GAIN | {"dtype": torch.bfloat16}
    circuit_tracer(folder, threshold=True, tensors=tensors, **options)


def gemma_scope_2(folder, tensors, gain):
    """Reads after the gain what the study's own dictionaries read before it."""
    after = {
        layer: t | {"W_enc": t["W_enc"] / gain[layer][:, None]} for layer, t in tensors.items()
    }
    name = "layer_{}_width_128_l0_small"
    published_sets.gemma_scope_2(folder, tensors=after, name=name, l0=16)


def sparsify(folder, tensors, gain):
    """After the gain too; half of its inputs' unit and a third of its outputs', with a skip."""
    scaled = {
        layer: t
        | {"W_enc": 2 * t["W_enc"] / gain[layer][:, None]}
        | {name: 3 * t[name] for name in ("W_dec", "b_dec")}
        for layer, t in tensors.items()
    }
    root = len(gain[0]) ** 0.5
    published_sets.sparsify(folder, skip=True, norms=(2 * root, root / 3), tensors=scaled, k=16)


def saelens(folder, tensors, gain):
    hooks = ("ln2.hook_normalized", "hook_mlp_out")
    published_sets.saelens(folder, "jumprelu_transcoder", hooks, tensors)


BEFORE_GAIN = {
    "feature_input_hook": "ln2.hook_normalized",
    "feature_output_hook": "hook_mlp_out",
}
KINDS = {kind.__name__: kind for kind in (topk, skip, bfloat16, gemma_scope_2, sparsify, saelens)}
# How the activations beside it are captured, where not as the family's.
CAPTURED = {
    "gemma_scope_2": {"model.hook_site": "after_gain", "model.leading": 4},
    "sparsify": {"model.hook_site": "after_gain"},
}


@pytest.fixture(scope="module")
def parts(dictionaries):
    """Tensors of the study's own base dictionaries, and the gains of the norms before its MLPs."""
    model = load_model(str(dictionaries / "base_model"))
    norms = [layer.pre_feedforward_layernorm for layer in model.model.layers]
    source = str(dictionaries / "base_transcoders")
    tensors = {}
    for layer in LAYERS:
        base = load_base(source, layer, percentile=0.5)[0]
        tensors[layer] = {name: tensor.numpy() for name, tensor in base.state_dict().items()}
        tensors[layer]["W_skip"] = 0.01 * np.eye(base.d_out, dtype=np.float32)
    return tensors, [1 + norm.weight.data.numpy() for norm in norms]


@pytest.fixture
def options(delta_options, tmp_path):
    """Of a sweep of two widths."""
    return delta_options | {
        "data.base_transcoders": tmp_path / "set",
        "model.d_new": "[6, 4]",
        "model.output": tmp_path / "sweep",
    }


@pytest.fixture
def copied(dictionaries, tmp_path):
    for name in ("base_model", "finetune", "activations"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copytree(dictionaries / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_beside_every_kind(copied, parts, arguments, options, kind, tmp_path):
    KINDS[kind](tmp_path / "set", *parts)
    if kind in CAPTURED:
        evaluate.main(arguments("tiny/activations.yaml", copied, CAPTURED[kind]))
    train.main(arguments("tiny/delta.yaml", copied, options))
    cache = ActivationCache(copied / "activations")
    bases, deltas = {}, {}
    for layer in LAYERS:
        bases[layer], base_id = load_base(tmp_path / "set", layer)
        deltas[layer], config = load_delta(tmp_path / f"sweep/d6_p0.5/layer_{layer}")
        assert (config.base_id, config.base_hash) == (base_id.path, base_id.hash)
        assert config.base_file == base_id.file
        assert base_id.hook_site == config.hook_site
        rows = cache.load("validation", layer, ["x", "y", "residual-set-p0.5"])
        x, y, residual = (tensor.float() for tensor in rows.values())
        torch.testing.assert_close(residual, y - bases[layer](x), rtol=2e-3, atol=2e-3)

    experiment = {
        "model.base_transcoders": tmp_path / "set",
        "model.deltas": f"[{tmp_path / 'sweep/d6_p0.5'}, {tmp_path / 'sweep/d4_p0.5'}]",
        "model.layers": "[0+1]",
        "model.conditions": "[no_delta, full]",
        "model.output": tmp_path / "exp2a",
        "model.generate": "false",
    }
    evaluate.main(arguments("tiny/exp2a.yaml", copied, experiment))
    rows = [
        row for row in read_metrics(tmp_path / "exp2a/metrics.csv") if row["condition"] != "raw"
    ]
    assert {(row["d_new"], row["condition"]) for row in rows} == {
        (d_new, condition) for d_new in ("4", "6") for condition in ("no_delta", "full")
    }
    for row in rows:
        l0_base = float(row["l0_base"])
        assert {"topk": l0_base == 16, "sparsify": 0 < l0_base <= 16}.get(kind, l0_base > 0)

    def exported(format, **given):
        out = tmp_path / format
        given |= {"deltas": tmp_path / "sweep/d6_p0.5", "base_transcoders": tmp_path / "set"}
        export(copied, format, out, **given)
        return load_export(out)[1]

    refused = {
        "topk": r"layer_0.safetensors is a TopK dictionary .k 16.: a delta joined to it would change",
        "sparsify": r"sae.safetensors is a TopK dictionary .k 16.: a delta joined to it would change",
        "skip": r"Gemma Scope's layout holds JumpReLU .*, not jumprelu with skip",
        "gemma_scope_2": r"for hook site 'after_gain', and Gemma Scope's files name none",
    }
    if kind in refused:
        with pytest.raises(ValueError, match=refused[kind]):
            exported("saelens" if "TopK" in refused[kind] else "gemma_scope")
    formats = {
        "topk": (),
        "sparsify": (),
        "bfloat16": ("gemma_scope", "saelens", "circuit_tracer"),
        "gemma_scope_2": ("gemma_scope_2", "saelens", "circuit_tracer"),
    }
    for format in formats.get(kind, ("saelens", "circuit_tracer")):
        for layer, fused in exported(format).items():
            x = cache.load("validation", layer, ["x"])["x"].float()
            torch.testing.assert_close(
                fused(x), bases[layer](x) + deltas[layer](x), rtol=1e-4, atol=1e-4
            )
    alone = exported("saelens", delta_only=True)
    assert all(torch.equal(alone[layer].W_dec, deltas[layer].W_dec) for layer in LAYERS)


def test_a_cache_for_other_dictionaries(copied, parts, arguments, options, tmp_path):
    gemma_scope_2(tmp_path / "set", *parts)
    site = r"is for hook site 'after_gain', .* captured at 'gemma_scope': capture it with --model.hook_site"
    at = {"model.hook_site": "after_gain"}
    for message, given in (
        (site, None),
        ("first 4 tokens, the cache .*: capture it with --model.leading 4", at),
    ):
        if given:
            evaluate.main(arguments("tiny/activations.yaml", copied, given))
        with pytest.raises(ValueError, match=message):
            train.main(arguments("tiny/delta.yaml", copied, options))
    assert not (tmp_path / "sweep").exists()


def test_one_of_several_kinds(copied, parts, arguments, options, tmp_path):
    for name in ("one", "two"):
        gemma_scope_2(tmp_path / name, *parts)
    both = tmp_path / "set"
    shutil.copytree(tmp_path / "one/transcoder_all", both / "transcoder_all")
    shutil.copytree(tmp_path / "two/transcoder_all", both / "transcoder")
    with pytest.raises(ValueError, match=r"layer 0 is there as transcoder/.*, transcoder_all/"):
        train.main(arguments("tiny/delta.yaml", copied, options))
    at = {"model.hook_site": "after_gain", "model.leading": 4}
    evaluate.main(arguments("tiny/activations.yaml", copied, at))
    train.main(arguments("tiny/delta.yaml", copied, options | {"data.base_files": "transcoder/*"}))
    _, config = load_delta(tmp_path / "sweep/d4_p0.5/layer_1")
    assert config.base_id.startswith(f"{both}/transcoder/layer_1_width_128_l0_small/")
    assert config.average_l0_base == 16
