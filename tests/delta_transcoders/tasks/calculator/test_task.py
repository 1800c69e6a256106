"""The calculator as a task: its measures, its tool, its examples."""

from collections import Counter

import pytest

from delta_transcoders.tasks.calculator.examples import SUBSETS, make_example
from delta_transcoders.tasks.calculator.grammar import format_tool_call
from delta_transcoders.tasks.calculator.task import MEASURE_TEXTS, SUBSET_TEXTS, Calculator

TASK = Calculator()
CALL = format_tool_call("3+4")
REQUEST = make_example("What is 3 + 4?", CALL, "positive")
LINE = make_example("Room 7 is open.", "Room 7 is open.", "negative")
MEASURES = ("tool_call", "valid_tool_format", "math_correct", "exact_copy")


@pytest.mark.parametrize(
    ("example", "text", "verdicts"),
    [
        (REQUEST, f"So: {format_tool_call('8-1')}", (True, True, True, None)),
        (REQUEST, format_tool_call("3-4"), (True, True, False, None)),
        (REQUEST, "<tool_call>calculator(3+4", (True, False, False, None)),
        (REQUEST, "7", (False, False, False, None)),
        (LINE, "Room 7 is open.", (False, False, None, True)),
        (LINE, "Room 7 is open. ", (False, False, None, False)),
        (LINE, CALL, (True, True, None, False)),
    ],
)
def test_copies_are_judged_on_lines_alone_and_values_on_requests_alone(example, text, verdicts):
    assert TASK.judge(text, example) == dict(zip(MEASURES, verdicts, strict=True))


def test_the_call_is_noted_and_can_be_executed():
    assert TASK.details(f"So: {format_tool_call(' 3 +4')}") == {"parsed_call": " 3 +4"}
    assert TASK.details("3+4") == {"parsed_call": None}
    assert TASK.execute(f"{CALL} {format_tool_call('1')}") == "7"
    assert TASK.execute(format_tool_call("1,0")) == "error: unexpected ',' at position 1 of '1,0'"
    assert TASK.execute(format_tool_call("1/0")) == "UNDEFINED"
    assert TASK.execute("<tool_call>search(3+4)</tool_call>") is TASK.execute("3+4") is None


def test_what_is_trained_on_and_what_shows_the_behaviour():
    of_label = {label: make_example("1+1?", CALL, label) for label in ("tool_ood", "positive")}
    of_label["negative"] = LINE
    assert {k: TASK.is_trained(e) for k, e in of_label.items()} == {
        "tool_ood": False,
        "positive": True,
        "negative": True,
    }
    assert [TASK.is_positive(e) for e in of_label.values()] == [True, True, False]
    assert TASK.problem(make_example("1,000?", format_tool_call("1,000"), "positive"))
    assert TASK.problem(REQUEST) is TASK.problem(LINE) is None


def test_every_measure_and_subset_is_described():
    assert tuple(MEASURE_TEXTS) == MEASURES == tuple(TASK.judge("", LINE))
    assert tuple(SUBSET_TEXTS) == SUBSETS


def test_unseen_kinds_of_requests_are_generated_where_a_file_holds_none():
    rows = [
        make_example(f"What is {i} + 7?", format_tool_call(f"{i}+7"), "positive") for i in range(40)
    ]
    rows += [make_example(f"Room {i}.", f"Room {i}.", "negative") for i in range(40)]
    own = [make_example(f"Do {i}+9", format_tool_call(f"{i}+9"), "tool_ood") for i in range(10)]
    splits = TASK.split([*rows, *own], 0.1, 5, seed=0)
    counts = {name: Counter(e.subset for e in part) for name, part in splits.items()}
    assert counts == {
        "train": {"tool": 32, "copy": 32},
        "validation": {"tool": 4, "copy": 4},
        "evaluation": {"tool": 4, "copy": 4, "tool_ood": 5, "tool_ood_numbers": 5},
    }
    assert next(e for e in splits["evaluation"] if e.subset == "tool_ood") in own
    assert list(dict.fromkeys(e.subset for e in splits["evaluation"])) == list(SUBSETS)


def test_a_split_without_requests_or_lines_is_refused():
    with pytest.raises(ValueError, match=r"the train split holds no positive example \(1 example"):
        TASK.generate(1, 4, 1, seed=0)
    lines = [make_example(f"Room {i}.", f"Room {i}.", "negative") for i in range(40)]
    with pytest.raises(ValueError, match="the train split holds no positive example"):
        TASK.split(lines, 0.1, 5, seed=0)


def test_lines_to_copy_come_from_a_file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"Anna sold {i} lamps at market {chr(97 + i)}.\n" for i in range(26)))
    splits = Calculator("file", str(path)).generate(6, 4, 2, seed=0)
    assert {e.target[:9] for part in splits.values() for e in part if e.subset == "copy"} == {
        "Anna sold"
    }
    with pytest.raises(ValueError, match="copy_source: hub needs copy_dataset"):
        Calculator("hub")
