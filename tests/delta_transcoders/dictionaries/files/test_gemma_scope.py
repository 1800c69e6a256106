"""Gemma Scope files: layout, choice, exact round trip, and every refusal."""

import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from delta_transcoders.dictionaries.bases import available_l0s, choose_l0, load_base
from delta_transcoders.dictionaries.files import gemma_scope, listing
from delta_transcoders.dictionaries.files.gemma_scope import params_path, save_base
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.fingerprints import hash_tensors


def dictionary(n_features: int = 6, d_model: int = 4) -> Transcoder:
    generator = torch.Generator().manual_seed(n_features)
    return Transcoder(
        W_enc=torch.randn(d_model, n_features, generator=generator),
        b_enc=torch.randn(n_features, generator=generator),
        W_dec=torch.randn(n_features, d_model, generator=generator),
        b_dec=torch.randn(d_model, generator=generator),
        threshold=torch.rand(n_features, generator=generator),
    )


def arrays() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in dictionary().state_dict().items()}


def write(root: Path, content: dict[str, np.ndarray]) -> Path:
    path = root / params_path(0, 6, 8)
    path.parent.mkdir(parents=True)
    np.savez(path, **content)
    return path


def test_round_trip_is_exact(tmp_path):
    base = dictionary()
    path = save_base(tmp_path, 2, base, 8)
    assert path == tmp_path / "layer_2/width_6/average_l0_8/params.npz"
    assert list(path.parent.iterdir()) == [path]
    read, base_id = load_base(tmp_path, 2, average_l0=8, d_model=4)
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name])
    assert base_id.hash == hash_tensors(base.state_dict())
    assert base_id.path == str(path)
    assert (base_id.layer, base_id.width, base_id.average_l0) == (2, 6, 8)
    with np.load(path) as archive:
        assert sorted(archive.files) == ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]
        assert archive["W_enc"].dtype == np.float32
        assert archive["W_enc"].flags.c_contiguous


@pytest.mark.parametrize(
    ("width", "name"),
    [(512, "512"), (1024, "1k"), (16384, "16k"), (65536, "65k"), (2**20, "1m"), (45056, "45k")],
)
def test_width_names_are_the_published_ones_and_invertible(width, name):
    assert gemma_scope.width_name(width) == name
    assert gemma_scope.width_number(name) == width


def test_percentile_rule_on_unsorted_values():
    l0s = [151, 7, 40, 76, 19]
    chosen = [choose_l0(l0s, percentile=p) for p in (0, 0.25, 0.5, 0.75, 1)]
    assert chosen == [7, 19, 40, 76, 151]
    assert choose_l0(l0s, average_l0=40) == 40


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({"percentile": 1.5}, "between 0 and 1"),
        ({"percentile": -0.1}, "between 0 and 1"),
        ({"average_l0": 5}, r"there are \[8, 12.5\]"),
        ({}, "give percentile or average_l0"),
        ({"percentile": 0.5, "average_l0": 8}, "give percentile or average_l0"),
    ],
)
def test_bad_choices(tmp_path, selector, message):
    for l0 in (12.5, 8):
        save_base(tmp_path, 0, dictionary(), l0)
    assert available_l0s(tmp_path, 0, 6) == [8, 12.5]
    with pytest.raises(ValueError, match=message):
        load_base(tmp_path, 0, **selector)


def test_width_may_be_left_out_only_where_there_is_one(tmp_path):
    save_base(tmp_path, 0, dictionary(6), 8)
    assert load_base(tmp_path, 0, percentile=0.5)[1].width == 6
    save_base(tmp_path, 0, dictionary(7), 8)
    with pytest.raises(
        ValueError, match=r"is there as layer_\*/width_6/.*, layer_\*/width_7/.*by width"
    ):
        load_base(tmp_path, 0, percentile=0.5)
    with pytest.raises(ValueError, match=r"nothing of width 16384; it has .*width_6.*width_7"):
        load_base(tmp_path, 0, width=16384, percentile=0.5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a.pop("threshold"), "expected .*threshold"),
        (lambda a: a.update(scale=a["b_dec"]), "holds the keys .*scale"),
        (
            lambda a: a.update(W_dec=a["W_dec"].T),
            r"W_dec .* \[4, 6\], expected \[6, 4\].*transposed",
        ),
        (
            lambda a: a.update(W_enc=a["W_enc"].T),
            r"W_enc .* \[6, 4\], expected \[4, 6\].*transposed",
        ),
        (lambda a: a.update(b_enc=a["b_enc"][:3]), r"W_enc has shape \[4, 6\], expected \[4, 3\]"),
        (lambda a: a.update(W_enc=a["W_enc"].astype(np.float16)), "W_enc has dtype float16"),
        (lambda a: a.update(W_enc=a["W_enc"].astype(np.float64)), "W_enc has dtype float64"),
        (lambda a: a.update(b_enc=np.zeros(6, dtype=np.int32)), "b_enc has dtype int32"),
        (lambda a: a.update(b_dec=a["b_dec"] * np.nan), "b_dec .*NaN"),
        (lambda a: a.update(b_dec=np.array([{}] * 4)), "b_dec cannot be read as a plain array"),
    ],
)
def test_bad_files_are_named_with_key_found_and_expected(tmp_path, edit, message):
    content = arrays()
    edit(content)
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        load_base(tmp_path, 0, average_l0=8)
    assert str(path) in str(error.value)


def test_another_models_dictionary_is_refused(tmp_path):
    save_base(tmp_path, 0, dictionary(), 8)
    with pytest.raises(ValueError, match="d_model 4, the model expects 2304"):
        load_base(tmp_path, 0, average_l0=8, d_model=2304)


def test_a_folder_that_lies_about_its_width_is_refused(tmp_path):
    path = save_base(tmp_path, 0, dictionary(), 8)
    path.parent.parent.rename(tmp_path / "layer_0" / "width_7")
    with pytest.raises(ValueError, match="has 6 features, expected 7"):
        load_base(tmp_path, 0, average_l0=8)


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (self.marker.touch, ())


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    path = tmp_path / params_path(0, 6, 8)
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(ValueError, match=r"not a NumPy \.npz archive"):
        load_base(tmp_path, 0, average_l0=8)
    np.savez(path, **{**arrays(), "b_dec": np.array([Bomb(tmp_path / "executed")], dtype=object)})
    with pytest.raises(ValueError, match="b_dec cannot be read"):
        load_base(tmp_path, 0, average_l0=8)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("source", ["./runs/none", "/nowhere/at/all", "runs/tiny/base", "plain"])
def test_a_missing_local_folder_is_not_looked_for_on_the_hub(source):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_base(source, 0, percentile=0.5)


@pytest.fixture
def hub(monkeypatch):
    """A hub out of reach with nothing cached; tests replace single calls."""

    def offline(*_, **__):
        raise OfflineModeIsEnabled("offline")

    def uncached(*_, **__):
        raise LocalEntryNotFoundError("not cached")

    listing._hub_listing.cache_clear()
    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", uncached)
    yield monkeypatch
    listing._hub_listing.cache_clear()


def test_unreachable_hub_says_what_to_put_where(hub):
    with pytest.raises(FileNotFoundError, match=r"hf download some/repo --local-dir models/repo"):
        load_base("some/repo", 0, percentile=0.5)


def test_hub_files_are_downloaded_one_by_one(hub, tmp_path):
    save_base(tmp_path, 0, dictionary(), 8)
    listed = [params_path(0, 6, l0) for l0 in (4, 8, 16)] + ["README.md"]
    hub.setattr(huggingface_hub, "list_repo_files", lambda repo: listed)
    hub.setattr(huggingface_hub, "hf_hub_download", lambda repo, path: str(tmp_path / path))
    assert available_l0s("some/repo", 0, 6) == [4, 8, 16]
    _, base_id = load_base("some/repo", 0, percentile=0.5)
    assert base_id.path == "some/repo/layer_0/width_6/average_l0_8/params.npz"


def test_offline_cache_is_used_with_a_warning(hub, tmp_path):
    save_base(tmp_path, 0, dictionary(), 8)
    hub.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.warns(UserWarning, match="choosing among the files"):
        _, base_id = load_base("some/repo", 0, percentile=0.5)
    assert base_id.average_l0 == 8


def test_a_source_without_the_layer_and_a_damaged_archive_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no dictionaries: expected layer_L/width_W/"):
        load_base(tmp_path, 7, percentile=0.5)
    save_base(tmp_path, 6, dictionary(), 8)
    with pytest.raises(ValueError, match=r"no base dictionary of layer 7; its layers: \[6\]"):
        load_base(tmp_path, 7, percentile=0.5)
    path = save_base(tmp_path, 7, dictionary(), 8)
    row = dictionary().W_dec[2].numpy().tobytes()
    assert path.read_bytes().count(row) == 1
    path.write_bytes(path.read_bytes().replace(row, bytes(len(row))))
    with pytest.raises(
        ValueError, match=r"params\.npz: W_dec cannot be read as a plain array: Bad CRC"
    ):
        load_base(tmp_path, 7, percentile=0.5)
