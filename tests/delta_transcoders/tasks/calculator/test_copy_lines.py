import itertools
import re

import datasets
import pytest

from delta_transcoders.tasks.calculator.copy_lines import (
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


def test_two_spellings_of_a_line_are_one(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text(
        f"{GOOD}\n{GOOD.replace(' ', '  ', 1)}\n{GOOD.replace(' ', chr(0xA0))}\n{OTHER}\n"
    )
    assert list(file_lines(path)) == [GOOD, OTHER]


@pytest.mark.parametrize(
    "raw",
    [
        f"\ufeff{GOOD}\r\n{OTHER}\r\n".encode(),
        f"{GOOD}\r{OTHER}".encode(),
        f"\n\n{GOOD}\n\ufeff{OTHER}".encode(),
    ],
    ids=["windows", "old mac", "joined"],
)
def test_files_of_any_system_are_read(tmp_path, raw):
    (tmp_path / "lines.txt").write_bytes(raw)
    assert list(file_lines(tmp_path / "lines.txt")) == [GOOD, OTHER]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_of_another_encoding_is_named_with_its_line(tmp_path, encoding):
    text = "The café sold 12 cakes on Sunday morning.\n"
    (tmp_path / "lines.txt").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"lines\.txt, line 1: .*save the file as UTF-8"):
        list(file_lines(tmp_path / "lines.txt"))


def test_rows_without_text_are_left_out(monkeypatch):
    rows = [{"text": None}, {"text": f"\ufeff{GOOD}"}, {"text": ""}, {"text": OTHER}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    assert list(hub_lines("owner/text")) == [GOOD, OTHER]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"content": GOOD, "id": 1}, "no column 'text'; it has 'content', 'id'"),
        ({}, "no column 'text'"),
        ({"text": 7}, "'text' holds 7"),
        ({"text": [GOOD]}, r"'text' holds \['The council"),
    ],
)
def test_a_dataset_of_something_else_is_refused_by_column(monkeypatch, row, why):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: [row])
    with pytest.raises(ValueError, match=f"dataset 'owner/text' cannot be read: .*{why}"):
        list(hub_lines("owner/text"))


def test_damaged_files_of_a_dataset_are_named(tmp_path):
    (tmp_path / "train.txt").write_bytes("The café sold 12 cakes.".encode("cp1252"))
    with pytest.raises(ValueError, match=f"dataset '{tmp_path}' cannot be read: .*utf-8"):
        list(hub_lines(str(tmp_path)))


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
