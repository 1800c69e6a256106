"""Frozen dictionaries and deltas: identities, refusals, and the delta's folder."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from delta_transcoders.dictionaries import transcoder
from delta_transcoders.dictionaries.delta import DeltaConfig, load_delta, save_delta
from delta_transcoders.dictionaries.transcoder import Transcoder, concatenate
from delta_transcoders.fingerprints import hash_tensors, hash_texts

CONFIG = DeltaConfig(
    layer=1,
    d_in=6,
    d_out=5,
    d_new=4,
    base_id="base/layer_1/width_1k/average_l0_8/params.npz",
    base_hash="0" * 64,
    model_fingerprint="1" * 64,
    hook_site="gemma_scope",
    hook_in="blocks.1.ln2.hook_normalized",
    hook_out="blocks.1.hook_mlp_out",
    sparsity={"mode": "batch_topk", "l0": 2},
    target="residual",
    percentile=0.5,
    average_l0_base=8,
    seed=0,
    measured={"fvu_base": 0.3, "fvu_full": 0.1},
)


def tensors(n_features: int, seed: int, d_in: int = 6, d_out: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "W_enc": torch.randn(d_in, n_features, generator=generator),
        "b_enc": torch.randn(n_features, generator=generator),
        "W_dec": torch.randn(n_features, d_out, generator=generator),
        "b_dec": torch.randn(d_out, generator=generator),
        "threshold": torch.rand(n_features, generator=generator) - 0.2,
    }


def dictionary(n_features: int, seed: int) -> Transcoder:
    return Transcoder(**tensors(n_features, seed))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(9))


def test_encode_is_jumprelu_feature_by_feature(x):
    d = dictionary(16, 0)
    a = d.encode(x)
    for i in range(16):
        z = x @ d.W_enc[:, i] + d.b_enc[i]
        expected = [v if v > d.threshold[i] and v > 0 else 0 for v in z.flatten().tolist()]
        torch.testing.assert_close(a[..., i].flatten(), torch.tensor(expected))
    assert not list(d.parameters())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, -1.0])
def test_concatenated_equals_base_plus_alpha_delta(x, alpha):
    base, delta = dictionary(16, 0), dictionary(4, 1)
    fused = concatenate(base, delta, alpha)
    assert fused.n_features == 20
    torch.testing.assert_close(fused(x), base(x) + alpha * delta(x), rtol=1e-5, atol=1e-5)


def of_activation(activation: str, skip: bool = False, seed: int = 0, **options) -> Transcoder:
    t = tensors(16, seed)
    if activation != "jumprelu":
        t.pop("threshold")
    if skip:
        t["W_skip"] = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    return Transcoder(**t, activation=activation, **options)


def test_relu_skips_and_scales_concatenate_exactly(x):
    base = of_activation("relu", skip=True, scale_in=0.5, scale_out=3.0)
    for delta in (dictionary(4, 1), of_activation("jumprelu", skip=True, seed=1)):
        fused = concatenate(base, delta, 0.5)
        assert (fused.activation, fused.scale_in, fused.scale_out) == ("jumprelu", 1, 1)
        torch.testing.assert_close(fused(x), base(x) + 0.5 * delta(x), rtol=1e-5, atol=2e-5)


def test_topk_does_not_concatenate():
    topk = of_activation("relu_topk", k=3)
    for pair in ((topk, dictionary(4, 1)), (dictionary(4, 1), topk)):
        with pytest.raises(ValueError, match=r"a TopK transcoder \(k 3\) cannot be joined"):
            concatenate(*pair)


def test_a_skip_needs_the_input(x):
    skip = of_activation("relu", skip=True)
    with pytest.raises(ValueError, match=r"has a skip: decode\(a, x\) needs the input"):
        skip.decode(skip.encode(x))


def test_a_wide_dictionary_reads_the_active_rows_alone(x, monkeypatch):
    base = dictionary(16, 0)
    whole = base(x)
    monkeypatch.setattr(transcoder, "WIDE", 16)
    torch.testing.assert_close(base(x), whole)
    silent = ~(base.encode(x) > 0).flatten(0, -2).any(0)
    base.W_dec[silent] = torch.nan
    torch.testing.assert_close(base(x), whole)
    assert base.decode(torch.zeros(16)).tolist() == base.b_dec.tolist()


def test_many_tokens_go_through_a_few_at_a_time(x, monkeypatch):
    base, rows = of_activation("topk", k=3), x.flatten(0, 1)
    monkeypatch.setattr(transcoder, "rows_at_once", lambda n: 4)
    y, n_active = base.reconstruct(rows)
    torch.testing.assert_close(y, base(rows))
    assert n_active == 3 * len(rows)


def test_a_fingerprint_says_which_function_it_is():
    functions = [
        of_activation("jumprelu"),
        of_activation("jumprelu", skip=True),
        of_activation("relu"),
        of_activation("relu", scale_in=2.0),
        of_activation("relu", scale_out=2.0),
        *(of_activation(name, k=k) for name in ("topk", "relu_topk") for k in (1, 2)),
    ]
    assert len({function.fingerprint() for function in functions}) == len(functions)
    assert functions[0].fingerprint() == hash_tensors(functions[0].state_dict())


@pytest.mark.parametrize(
    ("activation", "options", "message"),
    [
        ("gelu", {}, "activation is 'gelu', expected one of"),
        ("relu", {"threshold": torch.zeros(16)}, "activation is 'relu' and the threshold is given"),
        ("relu", {"k": 3}, "k is 3, and activation 'relu' has none"),
        ("topk", {}, "k is None, expected a whole number from 1 to 16"),
        ("topk", {"k": 17}, "k is 17, expected a whole number from 1 to 16"),
        (
            "relu",
            {"W_skip": torch.zeros(5, 6)},
            r"W_skip has shape \[5, 6\], expected \[d_in, d_out\]",
        ),
    ],
)
def test_what_is_no_transcoder(activation, options, message):
    with pytest.raises(ValueError, match=message):
        of_activation(activation, **options)
    with pytest.raises(ValueError, match="activation is 'jumprelu' and the threshold is missing"):
        Transcoder(**{k: v for k, v in tensors(4, 0).items() if k != "threshold"})


def test_unequal_widths_of_x_do_not_concatenate():
    with pytest.raises(ValueError, match=r"\[7, 5\]"):
        concatenate(dictionary(16, 0), Transcoder(**tensors(4, 1, d_in=7)))


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("b_enc", torch.zeros(5), r"b_enc has shape \[5\], expected \[n_features\] = \[4\]"),
        ("W_dec", torch.zeros(3, 5), r"W_dec .* expected \[n_features, d_out\] = \[4, 5\]"),
        ("W_enc", torch.zeros(6), "W_enc .* expected a matrix"),
        ("threshold", torch.full((4,), torch.nan), "threshold .*NaN"),
        ("b_dec", torch.full((5,), torch.inf), "b_dec .*infinite"),
        ("b_dec", torch.zeros(5, dtype=torch.float64), "b_dec has dtype torch.float64"),
    ],
)
def test_bad_tensors_are_named(name, bad, message):
    with pytest.raises(ValueError, match=message):
        Transcoder(**{**tensors(4, 0), name: bad})


def test_delta_folder_reads_back_identical(tmp_path):
    delta = dictionary(4, 0)
    save_delta(tmp_path / "layer_1", delta, CONFIG)
    read, config = load_delta(tmp_path / "layer_1")
    assert config == CONFIG
    assert hash_tensors(read.state_dict()) == hash_tensors(delta.state_dict())
    names = sorted(path.name for path in (tmp_path / "layer_1").iterdir())
    assert names == ["config.json", "delta.safetensors"]


def test_interrupted_overwrite_leaves_no_config(tmp_path, monkeypatch):
    save_delta(tmp_path, dictionary(4, 0), CONFIG)
    monkeypatch.setattr("delta_transcoders.dictionaries.delta.save_tensors", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_delta(tmp_path, dictionary(4, 1), CONFIG)
    with pytest.raises(FileNotFoundError, match="no finished delta"):
        load_delta(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: raw.update(lauer=3), "unknown key 'lauer'"),
        (lambda raw: raw.pop("hook_site"), "key 'hook_site' is missing"),
        (lambda raw: raw.update(hook_site="elsewhere"), "hook_site is 'elsewhere'"),
        (
            lambda raw: raw.update(format_version=99),
            "format_version is 99, this code reads 1; train it anew",
        ),
        (lambda raw: raw.update(d_new=7), "d_new = 4, the config 7"),
    ],
)
def test_bad_config_is_refused_with_file_and_key(tmp_path, edit, message):
    save_delta(tmp_path, dictionary(4, 0), CONFIG)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message) as error:
        load_delta(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_saving_a_delta_its_config_does_not_describe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="d_out = 5, the config 6"):
        save_delta(tmp_path / "new", dictionary(4, 0), replace(CONFIG, d_out=6))
    assert not (tmp_path / "new").exists()


def test_a_delta_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(asdict(CONFIG)))
    (tmp_path / "delta.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_delta(tmp_path)


def test_hashes_see_names_dtypes_shapes_values_and_order():
    w = torch.arange(4.0)
    hashes = {
        hash_tensors({"w": w}),
        hash_tensors({"v": w}),
        hash_tensors({"w": w.double()}),
        hash_tensors({"w": w.to(torch.bfloat16)}),
        hash_tensors({"w": w.view(2, 2)}),
        hash_tensors({"w": w + 1}),
        hash_texts(["a", "b"]),
        hash_texts(["b", "a"]),
    }
    assert len(hashes) == 8
    assert hash_tensors({"a": w, "b": w + 1}) == hash_tensors({"b": w + 1, "a": w})
