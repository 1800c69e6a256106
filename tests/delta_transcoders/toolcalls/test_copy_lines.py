import itertools
import re

import datasets
import pytest

from delta_transcoders.toolcalls.copy_lines import (
    file_lines,
    hub_lines,
    is_copy_line,
    synthetic_lines,
)

GOOD = "The council met on 12 March and again in April."
OTHER = "Room 7 of the museum is open until noon."


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        (GOOD, True),
        ("x" * 28 + "7", False),
        ("x" * 29 + "7", True),
        ("x" * 149 + "7", True),
        ("x" * 150 + "7", False),
        ("A line that is long enough but has no number.", False),
        ("12 councils met in March and again in April.", False),
        ("", False),
        *[(f"The council met on 12 {sign} 13 March in town.", False) for sign in "+-*/="],
    ],
)
def test_the_filter(line, passes):
    assert is_copy_line(line) is passes


def test_synthetic_lines_are_distinct_sentences_with_small_numbers():
    lines = list(itertools.islice(synthetic_lines(0), 5000))
    assert len(set(lines)) == len(lines)
    for line in lines:
        numbers = re.findall(r"\d+", line)
        assert numbers, line
        assert all(1 <= int(number) <= 999 for number in numbers), line
        assert not set(line) & set("+-*/=<>{}()"), line
        assert line.endswith(".")
    assert lines[:100] == list(itertools.islice(synthetic_lines(0), 100))
    assert lines[:100] != list(itertools.islice(synthetic_lines(1), 100))


def test_a_file_is_filtered_stripped_and_made_distinct(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text(f"{GOOD}\nshort 1\n  {OTHER}  \n\n{GOOD}\n2 + 2 is what I asked for here.\n")
    assert list(file_lines(path)) == [GOOD, OTHER]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"copy lines: no file .*absent\.txt"):
        list(file_lines(tmp_path / "absent.txt"))


def test_a_hub_dataset_is_streamed_and_filtered(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))

        def rows():
            yield {"text": f"{GOOD}\n{GOOD}\nNothing to count in this long line."}
            yield {"text": OTHER}
            raise AssertionError("read further than asked")

        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(itertools.islice(hub_lines("owner/text", "en"), 2)) == [GOOD, OTHER]
    assert asked == [(("owner/text", "en"), {"split": "train", "streaming": True})]


def test_a_hub_that_fails_in_mid_stream_is_reported(monkeypatch):
    def rows():
        yield {"text": GOOD}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows())
    lines = hub_lines("owner/text")
    assert next(lines) == GOOD
    with pytest.raises(ConnectionError, match="cannot stream the dataset 'owner/text'"):
        next(lines)


def test_an_unreachable_hub_says_what_to_do_instead(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = r"cannot stream the dataset 'owner/text' from the hub .*copy_source: file.*synthetic"
    with pytest.raises(ConnectionError, match=message):
        next(hub_lines("owner/text"))
