import json
import random

import pytest

from delta_transcoders.tasks.calculator.examples import (
    LABEL_OF_SUBSET,
    SUBSET_OF_LABEL,
    SUBSETS,
    make_example,
    read_jsonl,
    write_jsonl,
)
from delta_transcoders.tasks.calculator.grammar import find_tool_call, format_tool_call
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.task import Example, split_examples

GOOD = {"input": "What is 1 + 2?", "target": format_tool_call("1+2"), "label": "positive"}


def read(path) -> list[Example]:
    return list(read_jsonl(path).values())


def split(rows, fractions, seed) -> list[list[Example]]:
    return split_examples(rows, fractions, seed, Calculator().identities)


@pytest.fixture
def reference(pytestconfig):
    path = pytestconfig.rootpath.parent / "shared" / "reference" / "combined_dataset.jsonl"
    if not path.is_file():
        pytest.skip("the original study's data is not here")
    return path


def test_labels_and_subsets():
    assert SUBSETS == ("tool", "copy", "tool_ood", "tool_ood_numbers")
    assert {LABEL_OF_SUBSET[s] for s in SUBSETS} == set(SUBSET_OF_LABEL)
    assert make_example("a", "b", "negative") == Example("a\n", "b", "copy")


def test_writing_and_reading_keeps_every_character(tmp_path):
    examples = [
        make_example("What is 1 + 2?", format_tool_call("1+2"), "positive"),
        make_example('é "quoted" \\ and\ta tab, 7', "🙂\u2028 7", "negative"),
        make_example("3+4 now", format_tool_call("3+4"), "tool_ood"),
        make_example("-3+4 now", format_tool_call("-3+4"), "tool_ood_numbers"),
    ]
    path = tmp_path / "new" / "examples.jsonl"
    write_jsonl(path, examples)
    assert read(path) == examples
    assert [p.name for p in path.parent.iterdir()] == ["examples.jsonl"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "examples.jsonl"
    write_jsonl(path, [make_example("a 1", "a 1", "negative")])

    def examples():
        yield make_example("b 2", "b 2", "negative")
        raise ValueError("the copy lines ran out")

    with pytest.raises(ValueError, match="ran out"):
        write_jsonl(path, examples())
    assert read(path) == [make_example("a 1", "a 1", "negative")]
    assert list(tmp_path.iterdir()) == [path]


def test_blank_lines_and_further_fields_are_ignored(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text("\n" + json.dumps(GOOD | {"source": "web"}) + "\n\n")
    assert read(path) == [make_example(**GOOD)]


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
        assert read(path) == [make_example(**row) for row in rows], name


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
    assert read_jsonl(path) == {2: make_example(**GOOD), 4: make_example(**GOOD)}


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.jsonl").write_text(json.dumps(GOOD))
    assert read("~/mine.jsonl") == [make_example(**GOOD)]


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
        rows.append(make_example(f"What is {i} + 1?", call, "positive"))
        if i % 3 == 0:
            rows.append(make_example(f"Compute {i} + 1.", call, "positive"))
        if i % 10 == 0:  # an ambiguous prompt: its second target joins it to another expression
            other = format_tool_call(f"{(i + 50) % 100}+1")
            rows.append(make_example(f"What is {i} + 1?", other, "positive"))
        rows.append(make_example(f"Room {i} is here.", f"Room {i} is here.", "negative"))
        if i % 4 == 0:
            rows.append(make_example(f"{i}+1 quickly", call, "tool_ood"))
    random.Random(0).shuffle(rows)
    return rows


def test_a_split_keeps_every_row_once():
    rows = crossing_examples()
    parts = split(rows, [0.2, 0.1], seed=0)
    assert len(parts) == 3
    assert sorted(map(repr, rows)) == sorted(repr(e) for part in parts for e in part)


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_and_no_target_in_two_parts(seed):
    parts = split(crossing_examples(), [0.2, 0.3], seed)
    for field in ("prompt", "target"):
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
            key_of[make_example(text, format_tool_call(call), "positive")] = (a, op, b)
    parts = [{key_of[e] for e in part} for part in split(list(key_of), [0.1, 0.1], 0)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(asked)
    assert all(len(part) > 10 for part in parts)


@pytest.mark.parametrize("other", ["{}  ", "\u00a0{}", "{}\n"])
def test_no_line_or_prompt_is_in_two_parts_in_two_spellings(other):
    """Copied lines by their letters; prompts too, whatever their targets are."""
    key_of = {}
    for i in range(100):
        line = f"Room {i} of the museum is open."
        for text in (line, other.format(line.replace(" ", "\u2009"))):
            key_of[make_example(text, text, "negative")] = "line", i
        for n, text in enumerate((f"Do {i}", other.format(f"Do {i}"))):
            key_of[make_example(text, format_tool_call(f"{i}+{n}"), "positive")] = "prompt", i
    parts = [{key_of[e] for e in part} for part in split(list(key_of), [0.2], 0)]
    assert not parts[0] & parts[1]
    # A common example in all prompts does not make them one.
    shots = [
        make_example(f"{format_tool_call('1+1')} {i}?", format_tool_call(f"{i}+9"), "positive")
        for i in range(10)
    ]
    assert [len(part) for part in split(shots, [0.5], 0)] == [5, 5]


def test_a_prompt_with_two_targets_joins_all_that_share_either():
    calls = {k: format_tool_call(k) for k in ("1+1", "2+2", "3+3")}
    chain = [
        make_example("p", calls["1+1"], "positive"),
        make_example("q", calls["2+2"], "positive"),
        make_example("p", calls["2+2"], "positive"),
        make_example("r", calls["3+3"], "positive"),
        make_example("q", calls["3+3"], "positive"),
    ]
    for seed in range(20):
        assert sorted(map(len, split(chain, [0.5], seed))) == [0, 5]


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_other_subsets():
    rows = crossing_examples()
    assert split(rows, [0.2], 0) == split(rows, [0.2], 0)
    assert split(rows, [0.2], 0) != split(rows, [0.2], 1)
    positives = [e for e in rows if e.subset == "tool"]
    negatives = [e for e in rows if e.subset == "copy"]
    alone = split(negatives, [0.2], 0)
    together = split(positives + negatives, [0.2], 0)
    assert alone[0] == [e for e in together[0] if e.subset == "copy"]


def test_the_original_data_load_and_split_without_overlap(reference):
    rows = read(reference)
    assert len(rows) == 9990
    subsets = [e.subset for e in rows]
    assert (subsets.count("tool"), subsets.count("copy")) == (5000, 4990)
    assert all((find_tool_call(e.target) is not None) == (e.subset == "tool") for e in rows)
    parts = split(rows, [0.05, 0.05], seed=0)
    assert sum(map(len, parts)) == 9990
    assert [round(len(part) / 9990, 2) for part in parts] == [0.05, 0.05, 0.9]
    for field in ("prompt", "target"):
        assert sum(len({getattr(e, field) for e in part}) for part in parts) == len(
            {getattr(e, field) for e in rows}
        )
