"""Examples split by wording."""

from collections import Counter

import pytest

from delta_transcoders.language_models import load_tokenizer
from delta_transcoders.own_study.split import write_split
from delta_transcoders.own_study.wordings import identities, split_by_wording
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.tasks.task import Example, Message
from delta_transcoders.tasks.wordings import wording


def rows_of(n_wordings: int, n_each: int, subset: str) -> list[Example]:
    return [
        Example(f"{subset} {'x' * w}: what is {n} * {w + n}.5?", "t", subset)
        for w in range(n_wordings)
        for n in range(n_each)
    ]


@pytest.fixture
def task() -> Examples:
    return Examples("prompts.jsonl", "exact", held_out=0.2)


def test_numbers_and_spaces_are_no_wording():
    plain, other = (Example(p, "t", "s") for p in ("What is 1,200.5 +  7?", "What is 3 + 80?"))
    assert wording(plain) == wording(other) != wording(Example("What was 3 + 80?", "t", "s"))
    chat = [Example((Message("user", f"Is it {n} or {n}{n}?"),), "t", "s") for n in ("4", "17")]
    assert wording(chat[0]) == wording(chat[1])
    assert wording(Example("What is 3?", "t", "s", group="a")) == "group a"


def test_no_two_splits_share_a_wording_and_every_example_is_kept(task):
    examples = rows_of(20, 5, "sums") + rows_of(10, 3, "others")
    splits = split_by_wording(task, examples, n_evaluation=1000, seed=0)
    kept = [e for part in splits.values() for e in part]
    assert sorted(map(repr, kept)) == sorted(map(repr, examples))
    parts = [{i for e in part for i in identities(e)} for part in splits.values()]
    assert all(a.isdisjoint(b) for a in parts for b in parts if a is not b)
    counts = [Counter(wording(e).split("x")[0] for e in part) for part in splits.values()]
    assert [len({wording(e) for e in part}) for part in splits.values()] == [18, 6, 6]
    assert [sum(count.values()) for count in counts] == [78, 26, 26]
    assert split_by_wording(task, examples, 1000, seed=0) == splits
    assert split_by_wording(task, examples, 1000, seed=1) != splits


def test_a_limit_takes_from_every_wording_in_turn(task):
    splits = split_by_wording(task, rows_of(20, 9, "sums"), n_evaluation=8, seed=0)
    assert Counter(Counter(map(wording, splits["evaluation"])).values()) == {2: 4}


def test_groups_decide_even_where_prompts_differ_in_numbers_alone(task):
    examples = [Example(f"What is {n}?", "t", "s", group=f"g{n % 10}") for n in range(40)]
    splits = split_by_wording(task, examples, 1000, seed=0)
    groups = [{e.group for e in part} for part in splits.values()]
    assert [len(part) for part in groups] == [6, 2, 2]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_one_wording_cannot_be_split(task):
    with pytest.raises(ValueError, match=r"of the 50 examples is left for .* they have 1 wordings"):
        split_by_wording(task, rows_of(1, 50, "sums"), 1000, seed=0)


def test_what_is_written(own_content):
    task = Examples(own_content["examples"], "exact")
    model = own_content["base_model"]
    rows = write_split("mine/examples", task, task.jsonl, model, seed=3)
    parts = {
        n: list(task.read(f"mine/examples/{n}.jsonl").values())
        for n in ("train", "validation", "evaluation")
    }
    assert parts == split_by_wording(task, list(task.read(task.jsonl).values()), 200, seed=3)
    tokenizer = load_tokenizer(model)
    table = read_metrics("mine/examples/splits.csv")
    assert [{k: str(v) for k, v in row.items()} for row in rows] == table
    for row in table:
        mine = [e for e in parts[row["split"]] if e.subset == row["subset"]]
        assert int(row["n_examples"]) == len(mine)
        assert int(row["n_wordings"]) == len(set(map(wording, mine)))
        ids = [tokenizer(e.prompt).input_ids + tokenizer(e.target).input_ids for e in mine]
        assert int(row["n_tokens"]) == sum(map(len, ids))  # BOS twice here, BOS and EOS there


class SplitsOnItsOwn(Examples):
    def split(self, examples, share, n_evaluation, seed):
        return {}


def test_a_split_that_cannot_keep_wordings_apart_is_refused():
    task = SplitsOnItsOwn("prompts.jsonl", "exact")
    with pytest.raises(ValueError, match=r"SplitsOnItsOwn\.split has no parameter `identities`"):
        split_by_wording(task, rows_of(20, 1, "sums"), 200, seed=0)
