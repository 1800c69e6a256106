from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.hub import check_push, is_hub_id, local_folder, push_folder
from delta_transcoders.language_models import check_model_source


def test_a_folder_not_yet_written_in_a_study_is_no_hub_id(tmp_path, monkeypatch):
    """`mine/base_model` of a study `mine` looks like owner/name; a stranger's model must not be loaded."""
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("mine/base_model")
    check_model_source("mine/base_model")
    (tmp_path / "mine").mkdir()
    assert not is_hub_id("mine/base_model")
    with pytest.raises(FileNotFoundError, match="no model folder 'mine/base_model'"):
        check_model_source("mine/base_model")
    with pytest.raises(FileNotFoundError, match="no folder 'mine/base_transcoders'"):
        load_base("mine/base_transcoders", 0, percentile=0.5)
    with pytest.raises(FileNotFoundError, match="no folder 'mine/delta'"):
        local_folder("mine/delta", ["*"])
    (tmp_path / "mine/delta").mkdir()
    assert local_folder("mine/delta", ["*"]).name == "delta"


def test_a_folder_of_a_repository_out_of_reach_says_what_to_download_and_which_folder_to_give():
    message = (
        "hf download some/repo --local-dir models/repo`, then give models/repo/delta/ in place"
    )
    with pytest.raises(ConnectionError, match=message):
        local_folder("some/repo/delta", ["*"])


def test_a_folder_that_a_repository_does_not_hold_is_named(hub):
    (hub.root / "some/repo/delta").mkdir(parents=True)
    assert local_folder("some/repo/delta", ["layer_*/*"]) == hub.root / "some/repo/delta"
    message = r"copy here of 'some/repo' holds no folder 'dleta' with such files: layer_\*/\*"
    with pytest.raises(FileNotFoundError, match=message):
        local_folder("some/repo/dleta", ["layer_*/*"])


@pytest.fixture
def folder(tmp_path):
    for name in ("layer_0/config.json", "layer_1/config.json", "model.safetensors", "README.md"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "out"


def test_a_second_push_replaces_layers_and_weights_and_nothing_else(hub, folder):
    assert push_folder(folder, "user/name") == "https://hub/user/name"
    (hub.root / "user/name/notes.txt").write_text("of its owner")
    (folder / "layer_1/config.json").unlink()
    (folder / "layer_1").rmdir()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    push_folder(folder, "user/name")
    assert sorted(p.name for p in (hub.root / "user/name").iterdir()) == [
        "README.md",
        "layer_0",
        "model-00001-of-00002.safetensors",
        "notes.txt",
    ]


def test_a_private_push_into_a_public_repository(hub, folder):
    push_folder(folder, "user/name")
    with pytest.raises(ValueError, match="user/name exists and is public"):
        push_folder(folder, "user/name", private=True)
    push_folder(folder, "user/other", private=True)
    assert hub.private["user/other"] is True


def test_a_hub_that_refuses_or_is_out_of_reach(hub, monkeypatch, folder):
    refuse = mock.Mock(side_effect=OfflineModeIsEnabled("off\nit is"))
    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(ConnectionError, match=r"as user/name: it is; it needs a network and a tok"):
        push_folder(folder, "user/name")


@pytest.mark.parametrize(
    ("repo_id", "message"),
    [
        ("name", "--push-to-hub 'name': a hub id is USER/NAME"),
        ("a/b/c", "--push-to-hub 'a/b/c': a hub id is USER/NAME"),
        ("user/na me", "--push-to-hub 'user/na me': Repo id must"),
    ],
)
def test_what_is_no_hub_id(hub, repo_id, message):
    with pytest.raises(ValueError, match=message):
        check_push(repo_id)


def test_no_token(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match=r"no Hugging Face token here: .*HF_TOKEN"):
        check_push("user/name")
