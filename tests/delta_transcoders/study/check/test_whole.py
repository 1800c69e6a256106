"""Files that are whole, and files that are not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from delta_transcoders.study.check import whole
from delta_transcoders.study.check.sources import DictionaryUse, Source
from interop import published_sets

WHICH = (("width", None), ("files", None), ("percentile", 0.5))


def use(folder: Path, layers: tuple[int, ...] | None = None, which=WHICH) -> DictionaryUse:
    return DictionaryUse("base", str(folder), which, layers, "float32", None, None)


@pytest.fixture
def copied(model_folder, tmp_path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def check(folder: Path) -> tuple[str, float]:
    return whole.check_model(Source("model", str(folder), ("--all.base.model",)))


def cut(path: Path, by: int = 10) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def test_a_whole_model(copied):
    assert check(copied) == ("gemma2, 0.00 GB in 1 files, with chat template", 0.0)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda f: cut(f / "model.safetensors"),
            r"model.safetensors has .* bytes, its header says",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"<html>not found</html>"),
            r"is no whole safetensors file, its header cannot be read: fetch it again",
        ),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com"),
            r"is not the file but a Git LFS pointer",
        ),
        (lambda f: (f / "model.safetensors").unlink(), r"is missing: fetch it .*--all.base.model"),
        (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer"),
    ],
)
def test_a_model_that_is_not(copied, break_it, message):
    break_it(copied)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check(copied)


def test_a_shard_that_is_missing(copied):
    (copied / "model.safetensors").rename(copied / "a.safetensors")
    (copied / whole_index()).write_text(
        '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    )
    with pytest.raises(FileNotFoundError, match=r"has no b.safetensors, which .*index.json names"):
        check(copied)


def whole_index() -> str:
    from delta_transcoders.language_models import INDEX_NAME

    return INDEX_NAME


def test_half_of_a_download(copied):
    left = copied / ".cache/huggingface/download/x.incomplete"
    left.parent.mkdir(parents=True)
    left.touch()
    with pytest.raises(ValueError, match=r"x.incomplete is half of a download: run the same `hf d"):
        check(copied)


def test_a_file_without_tensors_is_whole(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(3)}, tmp_path / "b.safetensors", {"format": "pt"})
    for name in "ab":
        whole.check_safetensors(tmp_path / f"{name}.safetensors")


def test_a_set_of_dictionaries(tmp_path):
    published_sets.gemma_scope(tmp_path)
    text, size = whole.check_dictionaries(use(tmp_path))
    assert text.startswith("layers 0-1, 0.00 GB here, layer_0/width_12/average_l0_5/params.npz")
    assert size == 0
    assert [entry.layer for entry in whole.taken(use(tmp_path, (1,)))] == [1]
    with pytest.raises(ValueError, match=r"has nothing of width 99"):
        whole.check_dictionaries(use(tmp_path, which=(("width", 99), *WHICH[1:])))
    with pytest.raises(ValueError, match=r"holds no base dictionary of layer 7"):
        whole.check_dictionaries(use(tmp_path, (7,)))
    cut(tmp_path / "layer_1/width_12/average_l0_5/params.npz")
    with pytest.raises(ValueError, match=r"params.npz .* is cut short, it is no whole .npz"):
        whole.check_dictionaries(use(tmp_path))


def test_no_set(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(1))
    with pytest.raises(ValueError, match=r"holds no dictionaries: expected layer_L"):
        whole.check_dictionaries(use(tmp_path))


def test_what_is_still_to_be_downloaded(monkeypatch):
    monkeypatch.setattr(whole, "here", lambda name: None)
    monkeypatch.setattr(whole, "hub_bytes", lambda name, wanted: 5.2e9)
    source = Source("model", "google/gemma-2-2b", ("--all.base.model",))
    assert whole.check_model(source) == ("to be downloaded, 5.20 GB", 5.2e9)


def test_the_disk(monkeypatch, tmp_path):
    free = shutil.disk_usage(tmp_path)._replace(free=3e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    said = whole.check_free([], str(tmp_path / "runs/x"), 2e9)
    assert said == "2.0 GB needed (as the study file guesses), 3.0 GB free"
    with pytest.raises(OSError, match=r"4.0 GB are needed .* and 3.0 GB are free in .*: make room"):
        whole.check_free([], str(tmp_path), 4e9)
