import json
import random

import pytest

from delta_transcoders.tasks.calculator.grammar import find_tool_call, format_tool_call
from delta_transcoders.tasks.examples import (
    LABEL_OF_SUBSET,
    SUBSET_OF_LABEL,
    SUBSETS,
    Example,
    read_jsonl,
    read_numbered_jsonl,
    split_examples,
    write_jsonl,
)

GOOD = {"input": "What is 1 + 2?", "target": format_tool_call("1+2"), "label": "positive"}


@pytest.fixture
def reference(pytestconfig):
    path = pytestconfig.rootpath.parent / "shared" / "reference" / "combined_dataset.jsonl"
    if not path.is_file():
        pytest.skip("the original study's data is not here")
    return path


def test_labels_and_subsets():
    assert SUBSETS == ("tool", "copy", "tool_ood", "tool_ood_numbers")
    assert {LABEL_OF_SUBSET[s] for s in SUBSETS} == set(SUBSET_OF_LABEL)
    assert Example("a", "b", "negative").subset == "copy"
    assert Example("a", "b", "negative").prompt == "a\n"


def test_writing_and_reading_keeps_every_character(tmp_path):
    examples = [
        Example("What is 1 + 2?", format_tool_call("1+2"), "positive"),
        Example('é "quoted" \\ and\ta tab, 7', "🙂\u2028 7", "negative"),
        Example("3+4 now", format_tool_call("3+4"), "tool_ood"),
        Example("-3+4 now", format_tool_call("-3+4"), "tool_ood_numbers"),
    ]
    path = tmp_path / "new" / "examples.jsonl"
    write_jsonl(path, examples)
    assert read_jsonl(path) == examples
    assert [p.name for p in path.parent.iterdir()] == ["examples.jsonl"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "examples.jsonl"
    write_jsonl(path, [Example("a 1", "a 1", "negative")])

    def examples():
        yield Example("b 2", "b 2", "negative")
        raise ValueError("the copy lines ran out")

    with pytest.raises(ValueError, match="ran out"):
        write_jsonl(path, examples())
    assert read_jsonl(path) == [Example("a 1", "a 1", "negative")]
    assert list(tmp_path.iterdir()) == [path]


def test_blank_lines_and_further_fields_are_ignored(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text("\n" + json.dumps(GOOD | {"source": "web"}) + "\n\n")
    assert read_jsonl(path) == [Example(**GOOD)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'input': 1}", r"not a JSON object \(.*\): \"\{'input': 1\}\""),
        ('{"input": "a"', "not a JSON object"),
        ("[1, 2]", "needs the text fields input, target, label"),
        ('{"input": "a", "target": "b"}', "needs the text fields"),
        ('{"input": "a", "target": 3, "label": "positive"}', "needs the text fields"),
        (
            json.dumps(GOOD | {"label": "postive"}),
            r"unknown label 'postive' \(known: positive, negative, tool_ood, tool_ood_numbers\)",
        ),
        (json.dumps(GOOD | {"target": " "}), "empty input or target"),
    ],
)
def test_a_bad_line_is_reported_with_file_and_line(tmp_path, bad, message):
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), "", bad, json.dumps(GOOD)]))
    with pytest.raises(ValueError, match=rf"examples\.jsonl, line 3: {message}") as caught:
        read_jsonl(path)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_a_file_that_is_not_text_is_reported_with_file_and_line(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + b'{"input": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"examples\.jsonl, line 2: not UTF-8"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (json.dumps(GOOD | {"input": "\ud83d 1 + 2?"}), "input holds half a character"),
        (json.dumps(GOOD | {"target": "1\udc00"}), "target holds half a character"),
        (json.dumps(GOOD)[:-1] + ', "id": ' + "9" * 5000 + "}", "not a JSON object"),
        (json.dumps(GOOD)[:-1] + ', "id": ' + "[" * 100_000 + "]" * 100_000 + "}", "not a JSON"),
        (json.dumps(GOOD)[:-1] + ', "input": "What is 3 + 4?"}', "field 'input' twice"),
        (json.dumps(GOOD | {"input": None}), "needs the text fields"),
        (json.dumps(GOOD | {"target": float("nan")}), "needs the text fields"),
        ("null", "needs the text fields"),
        ("NaN", "needs the text fields"),
        ("\x00" + json.dumps(GOOD), "NUL"),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_odd_json_is_reported_with_file_and_line(tmp_path, bad, why):
    path = tmp_path / "examples.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{bad}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"examples\.jsonl, line 2: .*{why}") as caught:
        read_jsonl(path)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_text_of_any_system_is_read(tmp_path):
    rows = [GOOD, GOOD | {"input": "a\u2028b\u0085 \x00 1 + 2?"}]
    for name, lines in (
        ("unix", [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]),
        ("windows", ["\ufeff", *(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)]),
        ("joined", ["\ufeff" + json.dumps(row) + "\n\n" for row in rows]),
        ("old mac", [json.dumps(row) + "\r" for row in rows]),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes("".join(lines).encode())
        assert read_jsonl(path) == [Example(**row) for row in rows], name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_another_encoding_is_reported_with_file_and_line(tmp_path, encoding):
    path = tmp_path / "examples.jsonl"
    text = json.dumps(GOOD | {"input": "The café: 1 + 2?"}, ensure_ascii=False)
    path.write_bytes(f"{text}\n{text}\n".encode(encoding))
    with pytest.raises(ValueError, match=r"examples\.jsonl, line 1: .*save the file as UTF-8"):
        read_jsonl(path)


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n  \n{json.dumps(GOOD)}\n")
    assert read_numbered_jsonl(path) == {2: Example(**GOOD), 4: Example(**GOOD)}


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.jsonl").write_text(json.dumps(GOOD))
    assert read_jsonl("~/mine.jsonl") == [Example(**GOOD)]


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff\n"])
def test_an_empty_file_is_reported(tmp_path, text):
    path = tmp_path / "examples.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"examples\.jsonl: no examples in the file"):
        read_jsonl(path)


@pytest.mark.parametrize("name", ["absent.jsonl", ""])
def test_a_missing_file_or_a_folder_is_reported(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="examples: no file"):
        read_jsonl(tmp_path / name)


def crossing_examples() -> list[Example]:
    """Shuffled rows in which inputs share targets and targets share inputs, some in chains."""
    rows = []
    for i in range(100):
        call = format_tool_call(f"{i}+1")
        rows.append(Example(f"What is {i} + 1?", call, "positive"))
        if i % 3 == 0:
            rows.append(Example(f"Compute {i} + 1.", call, "positive"))
        if i % 10 == 0:  # an ambiguous prompt: its second target joins it to another expression
            other = format_tool_call(f"{(i + 50) % 100}+1")
            rows.append(Example(f"What is {i} + 1?", other, "positive"))
        rows.append(Example(f"Room {i} is here.", f"Room {i} is here.", "negative"))
        if i % 4 == 0:
            rows.append(Example(f"{i}+1 quickly", call, "tool_ood"))
    random.Random(0).shuffle(rows)
    return rows


def test_a_split_keeps_every_row_once():
    rows = crossing_examples()
    parts = split_examples(rows, [0.2, 0.1], seed=0)
    assert len(parts) == 3
    assert sorted(map(repr, rows)) == sorted(repr(e) for part in parts for e in part)


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_and_no_target_in_two_parts(seed):
    parts = split_examples(crossing_examples(), [0.2, 0.3], seed)
    for field in ("input", "target"):
        values = [{getattr(e, field) for e in part} for part in parts]
        assert not values[0] & values[1]
        assert not values[0] & values[2]
        assert not values[1] & values[2]


SPELLINGS = {
    "spaces": lambda a, op, b: f"{a} {op} {b}",
    "line breaks": lambda a, op, b: f"\n{a}{op}{b}\n",
    "typeset": lambda a, op, b: f"{a}{op}{b}".translate(str.maketrans("*/-", "×÷−")),
    "zeros": lambda a, op, b: f"0{a}{op}{b}.0",
    "parentheses": lambda a, op, b: f"(({a}){op}{b})",
    "signs": lambda a, op, b: f"+{a}{op}+{b}",
    "full width": lambda a, op, b: f"{a}{op}{b}".translate(
        str.maketrans("0123456789*", "０１２３４５６７８９＊")
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_expression_is_in_two_parts_in_two_spellings(spelling):
    rng = random.Random(1)
    asked = {(rng.randint(1, 999), rng.choice("*/-"), rng.randint(1, 999)) for _ in range(200)}
    key_of = {}
    for a, op, b in sorted(asked):
        for text, call in (
            (f"What is {a} {op} {b}?", f"{a}{op}{b}"),
            (f"Compute {a}{op}{b}.", SPELLINGS[spelling](a, op, b)),
        ):
            key_of[Example(text, format_tool_call(call), "positive")] = (a, op, b)
    parts = [{key_of[e] for e in part} for part in split_examples(list(key_of), [0.1, 0.1], 0)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(asked)
    assert all(len(part) > 10 for part in parts)


@pytest.mark.parametrize("other", ["{}  ", "\u00a0{}", "{}\n"])
def test_no_line_or_prompt_is_in_two_parts_in_two_spellings(other):
    """Copied lines by their letters; prompts too, whatever their targets are."""
    key_of = {}
    for i in range(100):
        line = f"Room {i} of the museum is open."
        for text in (line, other.format(line.replace(" ", "\u2009"))):
            key_of[Example(text, text, "negative")] = "line", i
        for n, text in enumerate((f"Do {i}", other.format(f"Do {i}"))):
            key_of[Example(text, format_tool_call(f"{i}+{n}"), "positive")] = "prompt", i
    parts = [{key_of[e] for e in part} for part in split_examples(list(key_of), [0.2], 0)]
    assert not parts[0] & parts[1]
    # A common example in all prompts does not make them one.
    shots = [
        Example(f"{format_tool_call('1+1')} {i}?", format_tool_call(f"{i}+9"), "positive")
        for i in range(10)
    ]
    assert [len(part) for part in split_examples(shots, [0.5], 0)] == [5, 5]


def test_a_prompt_with_two_targets_joins_all_that_share_either():
    calls = {k: format_tool_call(k) for k in ("1+1", "2+2", "3+3")}
    chain = [
        Example("p", calls["1+1"], "positive"),
        Example("q", calls["2+2"], "positive"),
        Example("p", calls["2+2"], "positive"),
        Example("r", calls["3+3"], "positive"),
        Example("q", calls["3+3"], "positive"),
    ]
    for seed in range(20):
        assert sorted(map(len, split_examples(chain, [0.5], seed))) == [0, 5]


def test_each_label_is_split_in_the_same_proportions():
    rows = [Example(f"{label} {i}", f"{label} {i}", label) for i in range(100) for label in
            ("positive", "negative")]  # fmt: skip
    first, second, rest = split_examples(rows, [0.2, 0.1], seed=1)
    for part, n in ((first, 20), (second, 10), (rest, 70)):
        for label in ("positive", "negative"):
            assert sum(e.label == label for e in part) == n


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_other_labels():
    rows = crossing_examples()
    assert split_examples(rows, [0.2], 0) == split_examples(rows, [0.2], 0)
    assert split_examples(rows, [0.2], 0) != split_examples(rows, [0.2], 1)
    positives = [e for e in rows if e.label == "positive"]
    negatives = [e for e in rows if e.label == "negative"]
    alone = split_examples(negatives, [0.2], 0)
    together = split_examples(positives + negatives, [0.2], 0)
    assert alone[0] == [e for e in together[0] if e.label == "negative"]


@pytest.mark.parametrize("fractions", [[0.5, 0.5], [-0.1], [1.0]])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="sum to less than 1"):
        split_examples(crossing_examples(), fractions, 0)


def test_the_original_data_load_and_split_without_overlap(reference):
    rows = read_jsonl(reference)
    assert len(rows) == 9990
    labels = [e.label for e in rows]
    assert (labels.count("positive"), labels.count("negative")) == (5000, 4990)
    assert all((find_tool_call(e.target) is not None) == (e.label == "positive") for e in rows)
    parts = split_examples(rows, [0.05, 0.05], seed=0)
    assert sum(map(len, parts)) == 9990
    assert [round(len(part) / 9990, 2) for part in parts] == [0.05, 0.05, 0.9]
    for field in ("input", "target"):
        assert sum(len({getattr(e, field) for e in part}) for part in parts) == len(
            {getattr(e, field) for e in rows}
        )
