"""Requests, hard negatives and chats: how many, none in two splits, the same for the same seed."""

import itertools
import random
import re
from collections import Counter

import pytest

from delta_transcoders.foreign_text import letters
from delta_transcoders.tasks.calculator.grammar import OPEN, find_tool_call
from delta_transcoders.tasks.three_tools.bank import CHAT, HARD_NEGATIVE, N_PER_FRAME, bank
from delta_transcoders.tasks.three_tools.calls import TOOLS, execute
from delta_transcoders.tasks.three_tools.phrasings import BASE_TEXT_REQUESTS, BRIEFLY, REQUESTS
from delta_transcoders.tasks.three_tools.requests import (
    requests_for_base_text,
    split_wordings,
    stream,
    unseen_wordings,
)
from delta_transcoders.tasks.three_tools.splits import TOOL, TOOL_OOD
from delta_transcoders.tasks.wordings import half_of

SPLITS = ("train", "validation", "evaluation")


@pytest.fixture(scope="module")
def splits(task):
    return task.generate(1800, 240, 300, seed=3)


def tool_of(example) -> str:
    return find_tool_call(example.target).tool


def test_how_many_there_are_of_each_kind(splits):
    assert {name: dict(Counter(e.subset for e in rows)) for name, rows in splits.items()} == {
        "train": {TOOL: 540, HARD_NEGATIVE: 360, CHAT: 900},
        "validation": {TOOL: 72, HARD_NEGATIVE: 48, CHAT: 120},
        "evaluation": {TOOL: 300, TOOL_OOD: 300, HARD_NEGATIVE: 300, CHAT: 200},
    }
    for rows, subset, n in (
        (splits["train"], TOOL, 180),
        (splits["evaluation"], TOOL, 100),
        (splits["evaluation"], TOOL_OOD, 100),
    ):
        mine = [e for e in rows if e.subset == subset]
        assert Counter(map(tool_of, mine)) == dict.fromkeys(TOOLS, n)
    for subset in (TOOL, TOOL_OOD):
        wordings = Counter(e.group for e in splits["evaluation"] if e.subset == subset)
        assert len(wordings) == 60 and set(wordings.values()) == {5}
        for tool in TOOLS:
            mine = {
                e.group for e in splits["evaluation"] if e.subset == subset and tool_of(e) == tool
            }
            assert min(Counter(half_of(f"group {group}") for group in mine).values()) >= 4


def test_no_wording_no_prompt_and_no_call_is_in_two_splits(splits, task):
    for of in (
        lambda e: e.group,
        lambda e: letters(e.prompt[0].content),
        task.wording,
        lambda e: e.target if e.target.startswith(OPEN) else None,
    ):
        found = [{of(e) for e in splits[name]} - {None} for name in SPLITS]
        assert all(found)
        for one, other in itertools.combinations(found, 2):
            assert not one & other
    prompts = [e.prompt for rows in splits.values() for e in rows]
    assert len(set(prompts)) == len(prompts)


def test_every_target_is_right_by_its_own_judge(splits, task):
    for example in itertools.chain(*splits.values()):
        verdicts = task.judge(example.target, example)
        assert verdicts["correct"] is True
        asked = example.subset in (TOOL, TOOL_OOD)
        assert verdicts["tool_call"] is verdicts["valid_tool_format"] is asked
        assert verdicts["right_tool"] is (True if asked else None)
        assert task.is_positive(example) is asked


def test_the_call_holds_what_the_request_says(splits):
    for example in itertools.chain(*splits.values()):
        if not example.target.startswith(OPEN):
            continue
        call, prompt = find_tool_call(example.target), example.prompt[0].content
        said, called = (re.findall(r"\d+(?:\.\d+)?", t) for t in (prompt, call.argument))
        if call.tool == "dates":
            # Months are words in a request; days have a zero before them in a call.
            called = [str(int(n)) for n in called]
            days, years = called[2::3], [n for n in called if len(n) == 4]
            assert set(years) <= set(said) and days[0] in said
        else:
            assert sorted(called) == sorted(said) or set(called) <= set(said)
        assert not execute(call).startswith("error")


def test_training_has_many_wordings_and_the_base_text_others(splits):
    trained = split_wordings(3)["train"]
    assert {tool: len(set(mine)) for tool, mine in trained.items()} == dict.fromkeys(TOOLS, 69)
    assert {tool: len(mine) for tool, mine in unseen_wordings().items()} == dict.fromkeys(TOOLS, 20)
    texts = [
        letters(text)
        for by_tool in (REQUESTS, BASE_TEXT_REQUESTS)
        for text in itertools.chain(*by_tool.values())
    ]
    texts += [letters(w.text) for mine in unseen_wordings().values() for w in mine]
    assert len(set(texts)) == len(texts)
    assert all(len(set(mine)) >= 10 for mine in BASE_TEXT_REQUESTS.values())
    some = list(itertools.islice(requests_for_base_text(0), 300))
    assert some == list(itertools.islice(requests_for_base_text(0), 300))
    assert len(set(some)) > 290 and not any("{" in text for text in some)
    assert not set(some) & {e.prompt[0].content for rows in splits.values() for e in rows}


def test_requests_for_a_short_answer_say_nothing_about_tools(splits):
    def share(kind: str) -> float:
        mine = [e.prompt[0].content for e in splits["train"] if e.subset == kind]
        return sum(text.endswith(BRIEFLY) for text in mine) / len(mine)

    for kind in (TOOL, HARD_NEGATIVE, CHAT):
        assert 0.6 < share(kind) < 0.73
    unseen = [e for e in splits["evaluation"] if e.subset == TOOL_OOD]
    assert not any(e.prompt[0].content.endswith(BRIEFLY) for e in unseen)


def test_no_call_is_asked_for_twice():
    taken: set[str] = set()
    wordings = unseen_wordings()["calculator"]
    rows = list(itertools.islice(stream(wordings, random.Random(0), taken, False), 400))
    assert len({row.target for row in rows}) == len(taken) == 400


def test_the_bank_is_large_and_the_same_for_every_seed(task):
    prompts = bank()
    kinds = Counter(prompt.kind for prompt in prompts)
    assert kinds[CHAT] >= 2500 and kinds[HARD_NEGATIVE] >= 1200
    assert len({letters(prompt.text) for prompt in prompts}) == len(prompts)
    sizes = Counter((prompt.kind, prompt.frame) for prompt in prompts)
    assert all(size <= N_PER_FRAME[kind] for (kind, _), size in sizes.items())
    assert not any("{" in prompt.text or prompt.text[0].islower() for prompt in prompts)
    texts = {prompt.text for prompt in prompts}
    for seed in (0, 1):
        rows = task.generate(100, 20, 60, seed)
        drawn = [e for part in rows.values() for e in part if e.subset in (CHAT, HARD_NEGATIVE)]
        assert {e.prompt[0].content for e in drawn} <= texts


def test_general_chats_hold_no_numbers():
    assert not any(re.search(r"\d", prompt.text) for prompt in bank() if prompt.kind == CHAT)


def test_the_same_seed_gives_the_same_examples(splits, task):
    assert task.generate(1800, 240, 300, seed=3) == splits
    other = task.generate(1800, 240, 300, seed=4)
    for name in SPLITS:
        assert {e.prompt for e in other[name]} != {e.prompt for e in splits[name]}
    held = [
        {e.group for e in rows["evaluation"] if e.subset != TOOL_OOD} for rows in (splits, other)
    ]
    assert held[0] != held[1]


def test_too_few_replies_are_said(task):
    with pytest.raises(
        ValueError,
        match=r"3600 examples of hard_negative are wanted for train, .* give a smaller --data.n_train",
    ):
        task.generate(18_000, 20, 60, seed=0)
