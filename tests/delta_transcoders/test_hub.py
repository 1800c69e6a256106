import pytest

from delta_transcoders.hub import is_hub_id, local_folder
from delta_transcoders.language_models import check_model_source
from delta_transcoders.transcoders.gemma_scope import load_base


def test_a_folder_not_yet_written_in_a_study_is_no_hub_id(tmp_path, monkeypatch):
    """`mine/base_model` of a study `mine` looks like owner/name; a stranger's model must not be loaded."""
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("mine/base_model")
    check_model_source("mine/base_model")
    (tmp_path / "mine").mkdir()
    assert not is_hub_id("mine/base_model")
    with pytest.raises(FileNotFoundError, match="no model folder 'mine/base_model'"):
        check_model_source("mine/base_model")
    with pytest.raises(FileNotFoundError, match="no such folder: mine/base_transcoders"):
        load_base("mine/base_transcoders", 0, percentile=0.5)
    with pytest.raises(FileNotFoundError, match="no such folder: mine/delta"):
        local_folder("mine/delta", ["*"])
    (tmp_path / "mine/delta").mkdir()
    assert local_folder("mine/delta", ["*"]).name == "delta"
