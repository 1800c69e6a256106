"""What other tools' checks compare: nothing is no success."""

import pytest

from interop.comparison import Comparison


def test_a_folder_without_exports_is_refused(tmp_path):
    comparison = Comparison(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no .*/saelens/\*: give what interop\.prepare has"
    ):
        comparison.cases("saelens")
    with pytest.raises(FileNotFoundError, match="one request"):
        comparison.requests()
    assert comparison.cases("gemma_scope", required=False) == []
    (tmp_path / "saelens/full").mkdir(parents=True)
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected/full, one request.safetensors").touch()
    assert comparison.cases("saelens") == comparison.requests() == ["full"]
