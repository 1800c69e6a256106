"""General text as examples."""

import pytest

from delta_transcoders.tasks.paragraphs import Paragraphs

WORDS = [f"w{i}" for i in range(150)]


def test_paragraphs_are_cut_into_pieces_and_short_ones_left_out(tmp_path):
    path = tmp_path / "text.txt"
    lines = [" ".join(WORDS[:70]), " ".join(WORDS[70:150])]  # one paragraph of two lines
    path.write_text("A title\n\n" + "\n".join(lines) + "\n\n\nToo short to use.\n")
    found = Paragraphs().read(path)
    assert [len(f"{e.prompt}{e.target}".split()) for e in found.values()] == [64, 64, 22]
    assert list(found) == [1, 2, 3]
    assert found[1].prompt == "w0 w1 w2 w3" and found[1].target.startswith(" w4 w5")
    assert "".join(f" {e.prompt}{e.target}" for e in found.values()).split() == WORDS
    Paragraphs().write(tmp_path / "again.txt", found.values())
    assert Paragraphs().read(tmp_path / "again.txt") == found


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"A few words.\n", "has no paragraph of 12 words"), (b"\xff" * 9, "line 1: not UTF-8")],
)
def test_a_file_without_text_is_refused(tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Paragraphs().read(tmp_path / "text.txt")
    with pytest.raises(FileNotFoundError, match="no file"):
        Paragraphs().read(tmp_path / "absent.txt")
