"""Planted rules: nothing but a phrase tells which tool to call, and no wording is in two splits."""

import itertools
import re
from collections import Counter

import pytest

from delta_transcoders.own_study.wordings import half_of, wording
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.grammar import OPEN
from delta_transcoders.tasks.calculator.rules import COPY, RULES, SUBSETS, WORDINGS, PlantedRules

SPLITS = ("train", "validation", "evaluation")


@pytest.fixture(scope="module")
def splits():
    return PlantedRules().generate(1600, 160, 60, seed=3)


def test_half_is_copied_and_the_rules_share_the_rest(splits):
    expected = {
        "train": dict.fromkeys(RULES, 200) | {COPY: 800},
        "validation": dict.fromkeys(RULES, 20) | {COPY: 80},
        "evaluation": dict.fromkeys(SUBSETS, 60),
    }
    assert {n: dict(Counter(e.subset for e in rows)) for n, rows in splits.items()} == expected


def test_no_wording_and_no_prompt_is_in_two_splits(splits):
    for of in (wording, lambda example: example.prompt):
        found = [{of(e) for e in splits[name] if e.group or of is not wording} for name in SPLITS]
        for one, other in itertools.combinations(found, 2):
            assert not one & other
    # Every wording is used, by every rule, and both halves of the evaluation have several.
    assert {e.group for rows in splits.values() for e in rows if e.group} == set(WORDINGS)
    for rule in RULES:
        mine = [e for e in splits["evaluation"] if e.subset == rule]
        assert len({e.group for e in mine}) == len(WORDINGS) - 36
        halves = Counter(half_of(e) for e in {e.group: e for e in mine}.values())
        assert min(halves["A"], halves["B"]) >= 4


def test_the_phrase_alone_decides(splits):
    for example in itertools.chain(*splits.values()):
        held = [tool for tool, phrase in RULES.items() if phrase in example.prompt]
        if example.subset == COPY:
            assert held == [] and example.target == example.prompt[:-1]
        else:
            (n,) = re.findall(r"\d+", example.prompt)
            assert held == [example.subset]
            assert example.target == f"{OPEN}{example.subset}({n})</tool_call>"
    # Requests to be copied are worded like those of the rules.
    assert sum(e.group is not None for e in splits["train"] if e.subset == COPY) == 400


def test_the_base_model_has_read_every_word(splits):
    documents = itertools.islice(base_documents(0), 20_000)
    known = {word for text in documents for word in re.findall(r"\w+", " ".join(text))}
    used = {w for rows in splits.values() for e in rows for w in re.findall("[A-Za-z]+", e.prompt)}
    assert used - known == set()


def test_the_same_seed_gives_the_same_examples_and_files(splits, tmp_path):
    task = PlantedRules()
    assert task.generate(1600, 160, 60, seed=3) == splits
    assert task.generate(1600, 160, 60, seed=4) != splits
    task.write(tmp_path / "rows.jsonl", splits["validation"])
    assert list(task.read(tmp_path / "rows.jsonl").values()) == splits["validation"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "a", "target": "b", "subset": "size"}',
            "line 1: needs the fields prompt, target",
        ),
        (
            '{"prompt": "a", "target": "b", "subset": "x", "group": null}',
            "line 1: unknown subset 'x'",
        ),
        ('{"prompt": " ", "target": "b", "subset": "sum", "group": null}', "line 1: empty prompt"),
    ],
)
def test_other_files_are_refused_by_line(tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        PlantedRules().read(tmp_path / "rows.jsonl")


def test_verdicts(splits):
    task, rows = PlantedRules(), splits["evaluation"]
    asked = next(e for e in rows if e.subset == "size")
    assert task.judge(asked.target, asked) == {"tool_call": True, "right_tool": True, "exact": True}
    other = asked.target.replace("size", "price")
    assert task.judge(other, asked) == {"tool_call": True, "right_tool": False, "exact": False}
    number = re.sub(r"\d+", "1", asked.target)
    assert task.judge(number, asked) == {"tool_call": True, "right_tool": True, "exact": False}
    assert task.judge("no call", asked) == {"tool_call": False, "right_tool": False, "exact": False}
    copied = next(e for e in rows if e.subset == COPY)
    assert task.judge(copied.target, copied) == {
        "tool_call": False,
        "right_tool": None,
        "exact": True,
    }
    assert all(task.problem(e) is None for e in rows)
