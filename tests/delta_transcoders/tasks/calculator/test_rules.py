"""Planted rules: nothing but a sentence tells which tool to call, and no wording is in two splits."""

import itertools
import re
from collections import Counter

import pytest

from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.grammar import OPEN
from delta_transcoders.tasks.calculator.phrasings import REQUESTS
from delta_transcoders.tasks.calculator.rules import COPY, RULES, SUBSETS, PlantedRules
from delta_transcoders.tasks.wordings import half_of, wording

SPLITS = ("train", "validation", "evaluation")
N_EVALUATION = len(REQUESTS) - 30
"""Of each subset: every wording that is kept for evaluation, once."""


@pytest.fixture(scope="module")
def splits():
    return PlantedRules().generate(1600, 160, N_EVALUATION, seed=3)


def test_half_is_copied_and_the_rules_share_the_rest(splits):
    expected = {
        "train": dict.fromkeys(RULES, 200) | {COPY: 800},
        "validation": dict.fromkeys(RULES, 20) | {COPY: 80},
        "evaluation": dict.fromkeys(SUBSETS, N_EVALUATION),
    }
    assert {n: dict(Counter(e.subset for e in rows)) for n, rows in splits.items()} == expected


def test_no_wording_and_no_prompt_is_in_two_splits(splits):
    for of in (wording, lambda example: example.prompt):
        found = [{of(e) for e in splits[name] if e.group or of is not wording} for name in SPLITS]
        for one, other in itertools.combinations(found, 2):
            assert not one & other
    # Every wording is used, by every rule, and both halves of the evaluation have several.
    assert {e.group for rows in splits.values() for e in rows if e.group} == set(REQUESTS)
    for rule in RULES:
        mine = [e for e in splits["evaluation"] if e.subset == rule]
        assert len({e.group for e in mine}) == N_EVALUATION
        halves = Counter(half_of(wording(e)) for e in {e.group: e for e in mine}.values())
        assert min(halves["A"], halves["B"]) >= 4


def test_the_sentence_alone_decides(splits):
    for example in itertools.chain(*splits.values()):
        held = [tool for tool, sentence in RULES.items() if sentence in example.prompt]
        if example.subset == COPY:
            assert held == [] and example.target == example.prompt[:-1]
        else:
            (asked,) = re.findall(r"\d+ . \d+", example.prompt)
            assert held == [example.subset]
            assert example.target == f"{OPEN}{example.subset}({asked.replace(' ', '')})</tool_call>"
    # Requests to be copied are worded like those of the rules.
    assert sum(e.group is not None for e in splits["train"] if e.subset == COPY) == 400


def test_the_base_model_has_read_each_sentence_and_each_request(splits):
    lines = {masked(line) for line, _ in itertools.islice(base_documents(0), 20_000)}
    before = {line.split(". ")[0] for line in lines}
    requests = {line.split(". ")[-1] for line in lines}  # some only after a sentence
    for example in itertools.chain(*splits.values()):
        if example.group:
            sentence, request = masked(example.prompt[:-1]).split(". ")
            assert sentence in before and request in requests


def masked(line: str) -> str:
    return re.sub(r"\d+ . \d+", "#", line)


def test_the_same_seed_gives_the_same_examples_and_files(splits, tmp_path):
    task = PlantedRules()
    assert task.generate(1600, 160, N_EVALUATION, seed=3) == splits
    assert task.generate(1600, 160, N_EVALUATION, seed=4) != splits
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
    number = re.sub(r"\d+", "1", asked.target, count=1)
    assert task.judge(number, asked) == {"tool_call": True, "right_tool": True, "exact": False}
    assert task.judge("no call", asked) == {"tool_call": False, "right_tool": False, "exact": False}
    copied = next(e for e in rows if e.subset == COPY)
    assert task.judge(copied.target, copied) == {
        "tool_call": False,
        "right_tool": None,
        "exact": True,
    }
    assert all(task.problem(e) is None for e in rows)
