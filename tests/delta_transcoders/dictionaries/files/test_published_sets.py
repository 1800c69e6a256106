"""Public sets of every layout, which `interop.published_sets` writes without us, and how we read them."""

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from delta_transcoders.dictionaries import files as layouts
from delta_transcoders.dictionaries.bases import held, load_base
from delta_transcoders.dictionaries.files import listing
from delta_transcoders.dictionaries.identity import BaseId
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.interventions.sources import DictionarySource
from interop.published_sets import (
    CASES,
    DRAWN,
    LAYERS,
    Case,
    D,
    F,
    K,
    circuit_tracer,
    formula,
    gemma_scope_2,
    sparsify,
    write_json,
)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def x_ND() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(40, D)).astype(np.float32)


def test_a_set_is_the_function_that_was_published(case, x_ND, tmp_path):
    case.write(tmp_path)
    assert sorted({entry.layer for entry in held(tmp_path)}) == list(LAYERS)
    x = torch.from_numpy(x_ND)
    for layer in LAYERS:
        base, found = load_base(tmp_path, layer, d_model=D)
        a_NF, y_ND = formula(x_ND, DRAWN[layer], case.activation, case.skip, case.scales)
        close = {"rtol": 1e-6, "atol": 1e-6 * float(np.abs(y_ND).max()), "check_dtype": False}
        torch.testing.assert_close(base.encode(x), torch.from_numpy(a_NF), **close)
        torch.testing.assert_close(base(x), torch.from_numpy(y_ND), **close)
        y, n_active = base.reconstruct(x)
        assert torch.equal(y, base(x))
        assert n_active == (a_NF != 0).sum()

        assert (found.layer, found.width, found.average_l0) == (layer, F, case.average_l0)
        assert (found.activation, found.skip) == (case.activation, case.skip)
        assert found.k == (K if "topk" in case.activation else None)
        assert (found.hook_site, found.leading) == (case.site, case.leading)
        assert found.base_model == case.base_model
        assert found.hash == base.fingerprint()
        assert found.path == str(tmp_path / found.file)
        assert Path(found.path).is_file()


def write_again(folder: Path, base: Transcoder, found: BaseId) -> None:
    """By our writers, in the layout that it was read from."""
    layer, model, site = found.layer, found.base_model, HOOK_SITES.get(found.hook_site)
    if found.file.endswith("params.npz"):
        layouts.gemma_scope.save_base(folder, layer, base, found.average_l0)
    elif found.file.endswith("params.safetensors"):
        layouts.gemma_scope_2.save_layer(folder, layer, base, found.average_l0, model)
    elif found.file.endswith("sae_weights.safetensors"):
        layouts.saelens.save_layer(folder, layer, base, site, model, "finetuned", True)
    else:
        layouts.circuit_tracer.save_layer(folder, layer, base)
        layouts.circuit_tracer.save_config(folder, site, model, "finetuned", post_norm=False)


def test_what_is_read_and_written_again_holds_the_same(case, tmp_path):
    """Tensor by tensor in the files, whatever wrote them first, and under the same path."""
    case.write(tmp_path / "set")
    read = [load_base(tmp_path / "set", layer) for layer in LAYERS]
    if "topk" in case.activation:
        with pytest.raises(ValueError, match=rf"layer 0: .* without scales, not {case.activation}"):
            write_again(tmp_path, *read[0])
        return
    for name in ("again", "twice"):
        for base, found in read:
            write_again(tmp_path / name, base, found)
    for base, found in read:
        published, again = (tmp_path / name / found.file for name in ("set", "again"))
        load = np.load if published.suffix == ".npz" else load_file
        before, after = (dict(load(path).items()) for path in (published, again))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            np.testing.assert_array_equal(after[name], tensor, strict=True)
        base_again, found_again = load_base(tmp_path / "again", found.layer)
        assert base_again.fingerprint() == base.fingerprint()
        assert found_again == replace(found, source=str(tmp_path / "again"))
    files = sorted(path for path in (tmp_path / "again").rglob("*") if path.is_file())
    for path in files:
        twice = tmp_path / "twice" / path.relative_to(tmp_path / "again")
        assert twice.read_bytes() == path.read_bytes()
    if case.write is gemma_scope_2:
        before, after = (
            json.loads((tmp_path / name / found.file).with_name("config.json").read_text())
            for name in ("set", "again")
        )
        assert after == before


def test_scales_are_not_lost_by_a_writer(tmp_path):
    sparsify(tmp_path, norms=(2.5, 7.0))
    base, _ = load_base(tmp_path, 0)
    scaled = Transcoder(
        **base.state_dict(), threshold=torch.zeros(F), scale_in=base.scale_in, scale_out=2.0
    )
    for save in (
        lambda: layouts.gemma_scope.save_base(tmp_path, 0, scaled, 5),
        lambda: layouts.gemma_scope_2.save_layer(tmp_path, 0, scaled, 5, "m"),
        lambda: layouts.saelens.save_layer(tmp_path, 0, scaled, HOOK_SITES["residual"], "", "", 1),
        lambda: layouts.circuit_tracer.save_layer(tmp_path, 0, scaled),
    ):
        with pytest.raises(ValueError, match=r"scales, not jumprelu with scales"):
            save()


def test_features_are_dropped_and_the_skip_stays(case, x_ND, tmp_path):
    case.write(tmp_path)
    base, _ = load_base(tmp_path, 1)
    x = torch.from_numpy(x_ND)
    nothing, _ = DictionarySource(base)(x, torch.zeros(len(x), F, dtype=torch.bool))
    t = DRAWN[1]
    expected = t["b_dec"] + (case.scales[0] * x_ND @ t["W_skip"] if case.skip else 0)
    expected = torch.from_numpy(np.broadcast_to(expected * case.scales[1], nothing.shape).copy())
    torch.testing.assert_close(nothing, expected.float(), rtol=1e-5, atol=1e-5)


def test_half_precision_stays_on_disk_and_in_memory(x_ND, tmp_path):
    """Values as published, arithmetic in float32, and only the active rows of the decoder are touched."""
    from safetensors.torch import save_file as save_torch

    circuit_tracer(tmp_path, skip=True)
    path = tmp_path / "layer_1.safetensors"
    halves = {name: torch.from_numpy(t).bfloat16() for name, t in load_file(path).items()}
    save_torch(halves, path)
    base, _ = load_base(tmp_path, 1)
    assert {tensor.dtype for tensor in base.state_dict().values()} == {torch.bfloat16}
    x = torch.from_numpy(x_ND)
    t = {name: tensor.double() for name, tensor in halves.items()}
    a = (x.double() @ t["W_enc"].T + t["b_enc"]).relu()
    y = a @ t["W_dec"] + t["b_dec"] + x.double() @ t["W_skip"].T
    torch.testing.assert_close(base(x), y.float(), rtol=1e-6, atol=1e-5)
    base.W_dec[3:] = torch.nan
    only = torch.zeros(2, F)
    only[1, 2] = 1.5
    expected = torch.stack([base.b_dec.float(), base.b_dec.float() + 1.5 * base.W_dec[2].float()])
    torch.testing.assert_close(base.decode(only, torch.zeros(2, D)), expected)


@pytest.mark.parametrize(
    ("folder", "named", "base_model", "leading"),
    [
        ("set", "gemma-v3-1b-it", "google/gemma-3-1b-it", 4),
        ("set", "google/gemma-3-270m", "google/gemma-3-270m", 1),
        ("gemma-scope-2-1b-it/made-it", "google/gemma-3-1b-pt", "google/gemma-3-1b-pt", 1),
        ("gemma-scope-2-1b-it", None, "google/gemma-3-1b-it", 4),
        ("gemma-scope-2-1b-pt/transcoder_all", None, "google/gemma-3-1b-pt", 1),
        ("a-it/set", None, None, 1),
        ("set", ["x"], None, 1),
    ],
)
def test_sets_of_gemma_3_s_instruction_tuned_models_spare_four_tokens(
    tmp_path, folder, named, base_model, leading
):
    folder = tmp_path / folder
    gemma_scope_2(folder, parent="" if folder.name == "transcoder_all" else "transcoder_all/")
    for path in folder.rglob("config.json"):
        if named is None:
            path.unlink()
        else:
            write_json(path, json.loads(path.read_text()) | {"model_name": named})
    found = load_base(folder, 0)[1]
    assert (found.base_model, found.leading) == (base_model, leading)


def test_what_is_spared_is_the_same_in_every_layout(tmp_path):
    gemma_scope_2(tmp_path / "set")
    base, found = load_base(tmp_path / "set", 0)
    site, model = HOOK_SITES[found.hook_site], found.base_model
    layouts.saelens.save_layer(tmp_path / "saelens", 0, base, site, model, "finetuned", True)
    layouts.circuit_tracer.save_layer(tmp_path / "tracer", 0, base)
    layouts.circuit_tracer.save_config(tmp_path / "tracer", site, model, "finetuned", True)
    for name in ("set", "saelens", "tracer"):
        assert load_base(tmp_path / name, 0)[1].leading == 4


# Choice


def test_gemma_scope_2_is_chosen_by_size_percentile_width_and_path(tmp_path):
    gemma_scope_2(tmp_path)
    for size in ("medium", "big"):
        for layer in LAYERS:
            small = tmp_path / f"transcoder_all/layer_{layer}_width_12_l0_small"
            copy = Path(str(small).replace("small", size))
            copy.mkdir()
            (copy / "params.safetensors").write_bytes((small / "params.safetensors").read_bytes())
    sizes = [load_base(tmp_path, 0, percentile=p)[1].file for p in (0.0, 0.5, 1.0)]
    assert [path.split("_l0_")[1].split("/")[0] for path in sizes] == ["small", "medium", "big"]
    assert load_base(tmp_path, 1, average_l0="big")[1].file.endswith("l0_big/params.safetensors")
    with pytest.raises(ValueError, match=r"no average_l0 huge; .*\['small', 'medium', 'big'\]"):
        load_base(tmp_path, 1, average_l0="huge")

    gemma_scope_2(tmp_path, affine=True)
    gemma_scope_2(tmp_path, parent="transcoder/")
    with pytest.raises(ValueError, match=r"is there as transcoder/.*, transcoder_all/.*_affine"):
        load_base(tmp_path, 0, average_l0="small")
    for files, file in (
        ("transcoder/*", "transcoder/layer_0_width_12_l0_small"),
        ("transcoder_all/*_affine", "transcoder_all/layer_0_width_12_l0_small_affine"),
        ("transcoder_all/layer_*_width_12_l0_*", "transcoder_all/layer_0_width_12_l0_small"),
        ("transcoder_all/layer_0_width_12_l0_big", "transcoder_all/layer_0_width_12_l0_big"),
    ):
        found = load_base(tmp_path, 0, files=files, percentile=0)[1]
        assert found.file == f"{file}/params.safetensors"
    # The folder of one set is a source of its own.
    assert load_base(tmp_path / "transcoder", 0)[1].average_l0 == 20
    with pytest.raises(ValueError, match=r"layer 0 has nothing of width 16384; it has transcoder/"):
        load_base(tmp_path, 0, width=16384)


def test_autoencoders_beside_the_transcoders_are_no_candidates(tmp_path):
    gemma_scope_2(tmp_path)
    gemma_scope_2(tmp_path, parent="resid_post_all/")
    assert load_base(tmp_path, 0)[1].file.startswith("transcoder_all/")
    config = tmp_path / "resid_post_all/layer_0_width_12_l0_small/config.json"
    output = {"hf_hook_point_in": "model.layers.0.output", "hf_hook_point_out": None}
    write_json(config, json.loads(config.read_text()) | output)
    with pytest.raises(ValueError, match=r"config.json: reads at 'output', expected"):
        load_base(tmp_path / "resid_post_all", 0)


def test_k_of_the_set_that_leaves_it_out(tmp_path):
    folder = tmp_path / "models--facebook--crv-8b-instruct-transcoders"
    folder.mkdir()
    circuit_tracer(folder, activation="topk")
    with pytest.raises(ValueError, match=r"layer_0.safetensors: k is 128, expected .* to 12"):
        load_base(folder, 0)
    other = folder.rename(tmp_path / "crv-8b-instruct-transcoders-v2-k64")
    with pytest.raises(ValueError, match="activation is topk and k is missing"):
        load_base(other, 0)


def test_a_hub_id_and_a_folder_of_its_repository(tmp_path, monkeypatch):
    gemma_scope_2(tmp_path)
    listed = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: [*listed, "README.md"])
    asked = []

    def download(repo, path):
        asked.append((repo, path))
        return str(tmp_path / path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    listing._hub_listing.cache_clear()
    whole = load_base("google/some-set", 1)[1]
    inside = load_base("google/some-set/transcoder_all", 1)[1]
    listing._hub_listing.cache_clear()
    assert whole.path == inside.path
    assert inside.source == "google/some-set/transcoder_all"
    assert {repo for repo, _ in asked} == {"google/some-set"}
    assert {path for _, path in asked} == {
        f"transcoder_all/layer_1_width_12_l0_small/{n}"
        for n in ("config.json", "params.safetensors")
    }
