"""Splits of any task's examples, and what a task without code of its own does."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from delta_transcoders.tasks.task import Example, Message, Task, split_examples, subsets_of


class Plain(Task):
    """The defaults, with a judge of two measures: one applies to examples with a target only."""

    def judge(self, text, example):
        exact = None if example.target is None else text == example.target
        return {"said": bool(text), "exact": exact}

    def read(self, path):
        raise NotImplementedError

    def write(self, path, examples):
        raise NotImplementedError

    def describe(self):
        return {}


class TwoIdentities(Plain):
    """Prompt and target: no two parts may share either."""

    def identities(self, example):
        return ("prompt", example.prompt), ("target", example.target)


def example(prompt, target="t", subset="a", group=None) -> Example:
    return Example(prompt, target, subset, group)


def test_a_split_keeps_every_row_once_and_each_subset_in_its_proportions():
    rows = [example(f"{subset} {i}", subset=subset) for i in range(100) for subset in "ab"]
    random.Random(0).shuffle(rows)
    parts = split_examples(rows, [0.2, 0.1], 1, Plain().identities)
    assert sorted(map(repr, rows)) == sorted(repr(e) for part in parts for e in part)
    assert [Counter(e.subset for e in part) for part in parts] == [
        {"a": 20, "b": 20},
        {"a": 10, "b": 10},
        {"a": 70, "b": 70},
    ]


def test_a_split_depends_on_the_seed_and_not_on_other_subsets():
    rows = [example(f"{subset} {i}", subset=subset) for i in range(30) for subset in "ab"]
    first, *_ = split_examples(rows, [0.5], 0, Plain().identities)
    assert split_examples(rows, [0.5], 0, Plain().identities)[0] == first
    assert split_examples(rows, [0.5], 1, Plain().identities)[0] != first
    alone, _ = split_examples([e for e in rows if e.subset == "b"], [0.5], 0, Plain().identities)
    assert alone == [e for e in first if e.subset == "b"]


def test_a_group_stays_together_whatever_its_prompts_and_subsets_are():
    rows = [example(f"{i} {n}", subset="ab"[n], group=f"g{i}") for i in range(40) for n in (0, 1)]
    for seed in range(3):
        parts = split_examples(rows, [0.25, 0.25], seed, Plain().identities)
        groups = [Counter(e.group for e in part) for part in parts]
        assert [len(part) for part in groups] == [10, 10, 20]
        assert all(n == 2 for part in groups for n in part.values())


def test_the_same_prompt_stays_together():
    rows = [example(f"{i % 20}", str(i)) for i in range(100)]
    first, rest = split_examples(rows, [0.5], 0, Plain().identities)
    assert len(first) == len(rest) == 50
    assert {e.prompt for e in first}.isdisjoint(e.prompt for e in rest)


def test_examples_that_share_an_identity_through_others_stay_together():
    chain = [example(*pair) for pair in ("p1", "q2", "p2", "r3", "q3")]
    for seed in range(20):
        parts = split_examples(chain, [0.5], seed, TwoIdentities().identities)
        assert sorted(map(len, parts)) == [0, 5]


@pytest.mark.parametrize("fractions", [[0.5, 0.5], [-0.1], [1.0]])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="sum to less than 1"):
        split_examples([example("p")], fractions, 0, Plain().identities)


def test_a_task_splits_into_training_validation_and_at_most_n_of_each_subset():
    class Held(Plain):
        def is_trained(self, example):
            return example.subset != "b"

    rows = [example(f"{subset} {i}", subset=subset) for i in range(100) for subset in "ab"]
    splits = Held().split(rows, 0.1, 4, seed=0)
    assert list(splits) == ["train", "validation", "evaluation"]
    counts = {name: Counter(e.subset for e in part) for name, part in splits.items()}
    assert counts == {"train": {"a": 80}, "validation": {"a": 10}, "evaluation": {"a": 4, "b": 4}}
    taken = [e for part in splits.values() for e in part]
    assert len(set(taken)) == len(taken)


def test_subsets_stand_in_the_order_of_their_first_example():
    assert subsets_of([example("p", subset=s) for s in "bacab"]) == ("b", "a", "c")


def test_a_prompt_as_json_has_it():
    assert example("a\n").prompt_record == "a\n"
    messages = (Message("user", "Hi"), Message("assistant", "Ho"))
    assert example(messages).prompt_record == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]


def test_a_behaviour_shows_where_the_target_starts_as_it_begins():
    task = Plain()
    assert task.is_positive(example("p", None))
    task.opening = "Sure"
    assert [task.is_positive(example("p", t)) for t in ("Sure, 7", "7", None)] == [
        True,
        False,
        False,
    ]


class Judged(Plain):
    """Judges as it is told."""

    def __init__(self, *returned):
        self.returned = iter(returned)

    def judge(self, text, example):
        found = next(self.returned)
        if isinstance(found, Exception):
            raise found
        return found


def test_a_target_is_wrong_where_nothing_of_it_is_right():
    assert Plain().problem(example("p", None)) is None
    assert Judged({"right": True, "loud": False}).problem(example("p", "t")) is None
    assert Judged({"right": None, "loud": None}).problem(example("p", "t")) is None
    problem = Judged({"right": False, "loud": False}).problem(example("p", "t"))
    assert problem == "its own judge says right, loud: false"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([KeyError("x")], "Judged.judge failed on 'said': KeyError: 'x'"),
        ([None], "returns None, expected {measure: true, false or None}"),
        ([{"score": 0.5}], "score is 0.5, expected true, false, or None"),
        ([{"words": 2}], "words is 2, expected"),
        ([{"nll": True}], "no measure can be called 'nll'"),
        ([{"a_logprob": True}], "no measure can be called 'a_logprob'"),
        ([{"a": True}, {"b": True}], "returns b for 'said', and a before"),
        ([{"a": True}, {}], "returns nothing for 'said', and a before"),
    ],
)
def test_what_is_no_verdict_is_refused(returned, message):
    task = Judged(*returned)
    with pytest.raises(ValueError, match=re.escape(message)):
        for _ in returned:
            task.verdicts("said", example("p"))


def test_verdicts_of_numpy_are_verdicts():
    assert Judged({"a": np.bool_(True), "b": None}).verdicts("x", example("p")) == {
        "a": True,
        "b": None,
    }


def test_what_a_task_does_not_have_is_said():
    with pytest.raises(ValueError, match=r"Plain generates no examples: give a file \(--data\.js"):
        Plain().generate(1, 1, 1, 0)
    with pytest.raises(ValueError, match="Plain has no text for a base model"):
        Plain().documents(0)
    assert Plain().execute("anything") is None
    assert Plain().details("anything") == {}
    assert Plain().markup([example("p", "<b>"), example("p", None)]) == "<b>"
