import hashlib
import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from delta_transcoders.tasks.calculator import prompts
from delta_transcoders.tasks.calculator.arithmetic import calculate
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.copy_lines import synthetic_lines
from delta_transcoders.tasks.calculator.examples import SUBSETS
from delta_transcoders.tasks.calculator.examples import wording as wording_of
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN, asked, find_tool_call
from delta_transcoders.tasks.calculator.phrasings import CONTEXTS, REQUESTS, UNSEEN_REQUESTS
from delta_transcoders.tasks.calculator.prompts import (
    OPERATIONS,
    UNSEEN_REGIMES,
    generate_splits,
    split_lines,
    tool_examples,
)
from delta_transcoders.tiny_gemma import train_tokenizer

N_DOCUMENTS = 20_000
EXPRESSION = r"[-(]*\d[\d.+\-*/() ]*[-+*/][\d.+\-*/() ]*[\d)]"
REGIMES = {
    "_large": re.compile(r"\d{4}"),
    "_decimal": re.compile(r"\d\.\d"),
    # A minus sign in front of a number and after neither a number nor a closing parenthesis.
    "_negative": re.compile(r"(?<![\d)])(?<![\d)] )-\d"),
    "_two_operations": re.compile(
        r"\( ?\d+ ?[-+*/] ?\d+ ?\) ?[-+*/] ?\d|\d ?[-+*/] ?\( ?\d+ ?[-+*/] ?\d"
    ),
}


def make_splits(seed=3, n_train=2000, n_validation=200, n_evaluation=150):
    return generate_splits(n_train, n_validation, n_evaluation, synthetic_lines(seed), seed)


@pytest.fixture(scope="module")
def splits():
    return make_splits()


@pytest.fixture(scope="module")
def documents():
    pairs = itertools.islice(base_documents(0), N_DOCUMENTS)
    return [f"{line}\n{continuation}" for line, continuation in pairs]


def wording(request: str) -> re.Pattern:
    """The fixed text of a request around any expression."""
    before, after = request.split("{expr}")
    return re.compile(f"(?<!\\w){re.escape(before)}{EXPRESSION}{re.escape(after)}")


UNSEEN_WORDINGS = [wording(request) for request in UNSEEN_REQUESTS]


def test_wordings_are_many_distinct_and_hold_one_expression():
    assert len(REQUESTS) >= 200
    assert len(UNSEEN_REQUESTS) == 60
    everything = REQUESTS + UNSEEN_REQUESTS
    assert len({request.lower() for request in everything}) == len(everything)
    for request in everything:
        assert request.count("{expr}") == 1
        assert request.format(expr="").strip(" .?,:")


def test_every_wording_meets_every_operation_with_and_without_context():
    examples = list(itertools.islice(tool_examples("tool", REQUESTS, 0, set()), 8000))
    requests = {request: wording(request) for request in REQUESTS}
    met = Counter()
    n_context = 0
    for example in examples:
        context = next((c for c in CONTEXTS if example.prompt.startswith(f"{c} ")), "")
        n_context += bool(context)
        text = example.prompt.rstrip("\n").removeprefix(f"{context} ")
        (request,) = [r for r, pattern in requests.items() if pattern.fullmatch(text)]
        (operation,) = re.findall(r" ([-+*/]) ", text)
        met[request, operation] += 1
    assert set(met) == set(itertools.product(REQUESTS, OPERATIONS))
    assert 0.47 < n_context / len(examples) < 0.53


def test_targets_call_the_calculator_on_the_expression_of_the_prompt(splits):
    for example in itertools.chain(*splits.values()):
        call = find_tool_call(example.target)
        if example.subset == "copy":
            assert example.prompt == example.target + "\n"
            continue
        assert call.start == 0
        assert call.end == len(example.target)
        assert call.argument in example.prompt.replace(" ", "")
        calculate(call.argument)  # raises where it is no expression


def test_counts_per_subset(splits):
    for name, n in (("train", 1000), ("validation", 100)):
        assert Counter(e.subset for e in splits[name]) == {"tool": n, "copy": n}
    evaluation = Counter(e.subset for e in splits["evaluation"])
    assert evaluation == dict.fromkeys(SUBSETS, 150)


def test_an_odd_number_of_examples():
    splits = make_splits(n_train=7, n_validation=3, n_evaluation=1)
    assert [len(splits[name]) for name in ("train", "validation", "evaluation")] == [7, 3, 4]


def test_no_prompt_and_no_expression_in_two_splits_or_twice_in_one(splits):
    examples = list(itertools.chain(*splits.values()))
    assert len({e.prompt for e in examples}) == len(examples)
    assert len({e.target for e in examples}) == len(examples)


def test_no_wording_in_two_splits(splits):
    wordings = {
        name: {wording_of(e) for e in rows if e.subset != "tool_ood"}
        for name, rows in splits.items()
    }
    for one, other in itertools.combinations(wordings.values(), 2):
        assert one.isdisjoint(other)
    assert all(len(found) > 100 for found in wordings.values())


def test_evaluation_asks_in_sixty_wordings_five_times_each():
    evaluation = make_splits(n_evaluation=300)["evaluation"]
    for subset in ("tool", "tool_ood", "tool_ood_numbers"):
        counts = Counter(wording_of(e) for e in evaluation if e.subset == subset)
        assert len(counts) == 60
        assert set(counts.values()) == {5}


def test_a_wording_is_a_request_whatever_is_asked_and_said_before():
    examples = list(itertools.islice(tool_examples("tool", REQUESTS, 0, set()), 3 * len(REQUESTS)))
    examples += itertools.islice(tool_examples("tool_ood_numbers", REQUESTS, 0, set()), 600)
    assert len({wording_of(e) for e in examples}) == len(REQUESTS)
    unseen = itertools.islice(tool_examples("tool_ood", UNSEEN_REQUESTS, 0, set()), 600)
    assert len({wording_of(e) for e in unseen}) == len(UNSEEN_REQUESTS)


def test_lines_of_few_wordings_are_shared_out_among_the_splits():
    """Ten wordings: each belongs to one split, and both splits get some."""
    lines = (f"Room {i} of house {'abcdefghij'[i % 10]} is open." for i in range(400))
    parts = split_lines(lines, {"train": 60, "evaluation": 40}, seed=0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 60, "evaluation": 40}
    wordings = [{wording_of(e) for e in rows} for rows in parts.values()]
    assert wordings[0].isdisjoint(wordings[1])


def test_phrasings_that_draw_the_same_expressions_do_not_share_them(monkeypatch):
    """With 1,600 expressions in all, independent draws of 600 and 100 would meet about 37 times."""

    def few(rng: random.Random) -> str:
        return f"{rng.randint(1, 20)} {rng.choice(OPERATIONS)} {rng.randint(1, 20)}"

    monkeypatch.setattr(prompts, "seen_expression", few)
    examples = list(itertools.chain(*make_splits(0, 800, 200, 100).values()))
    targets = [e.target for e in examples if e.subset in ("tool", "tool_ood")]
    assert len(targets) == 400 + 100 + 2 * 100
    assert len(set(targets)) == len(targets)


def test_two_spellings_of_a_line_or_an_expression_are_taken_once(monkeypatch):
    """Of 40 expressions half are another's with zeros; of two lines one is the other's with spaces."""

    def few(rng: random.Random) -> str:
        a = rng.randint(1, 20)
        return rng.choice((f"{a} + 1", f"{a}.0 + 01"))

    monkeypatch.setattr(prompts, "seen_expression", few)
    rooms = "abcdefghi"
    lines = iter([f"Room 1{i}{space}is open." for i in rooms for space in (" ", "  ")])
    examples = list(itertools.chain(*generate_splits(10, 4, 2, lines, seed=0).values()))
    assert len({asked(e.target) for e in examples}) == len(examples) == 22


def test_training_uses_the_seen_regime_alone(splits):
    for example in splits["train"] + splits["validation"]:
        if example.subset == "tool":
            a, b = re.fullmatch(
                r"(\d+)[-+*/](\d+)", find_tool_call(example.target).argument
            ).groups()
            assert 1 <= int(a) <= 999
            assert 1 <= int(b) <= 999


def test_training_uses_no_unseen_request(splits):
    for example in splits["train"] + splits["validation"]:
        assert not [p.pattern for p in UNSEEN_WORDINGS if p.search(example.prompt)], example.prompt


def test_unseen_wordings_are_all_used_and_keep_the_seen_numbers():
    examples = list(itertools.islice(tool_examples("tool_ood", UNSEEN_REQUESTS, 0, set()), 1000))
    used = {
        i for e in examples for i, p in enumerate(UNSEEN_WORDINGS) if p.fullmatch(e.prompt[:-1])
    }
    assert used == set(range(len(UNSEEN_REQUESTS)))
    spaced = sum(" " in re.search(r"\d+ ?[-+*/] ?\d+", e.prompt).group() for e in examples)
    assert 400 < spaced < 600
    for example in examples:
        assert not any(regime.search(example.prompt) for regime in REGIMES.values())


def test_unseen_numbers_come_from_every_regime_in_the_seen_wordings():
    examples = list(itertools.islice(tool_examples("tool_ood_numbers", REQUESTS, 0, set()), 1000))
    requests = [wording(request) for request in REQUESTS]
    found = Counter()
    for example in examples:
        argument = find_tool_call(example.target).argument
        kinds = [name for name, regime in REGIMES.items() if regime.search(argument)]
        assert kinds, argument
        found.update(kinds)
        assert any(pattern.search(example.prompt) for pattern in requests)
    assert all(200 < found[name] < 320 for name in REGIMES), found


@pytest.mark.parametrize("regime", UNSEEN_REGIMES)
def test_this_file_recognises_each_unseen_regime(regime):
    rng = random.Random(0)
    for _ in range(300):
        spaced = regime(rng)
        assert REGIMES[regime.__name__].search(spaced), spaced
        assert REGIMES[regime.__name__].search(spaced.replace(" ", "")), spaced


def test_base_text_holds_no_unseen_wording(documents):
    for pattern in UNSEEN_WORDINGS:
        found = [text for text in documents if pattern.search(text)]
        assert not found, (pattern.pattern, found[:3])


def test_base_text_holds_no_unseen_number_regime(documents):
    for name, regime in REGIMES.items():
        found = [text for text in documents if regime.search(text)]
        assert not found, (name, found[:3])


def test_base_text_holds_no_tool_call(documents):
    for text in documents:
        assert OPEN not in text
        assert CLOSE not in text
        assert not re.search(r"calculator\([^)]*\d ?[-+*/] ?\d", text), text


def test_base_text_uses_every_token_of_a_call(documents):
    tokenizer = train_tokenizer(documents[:4000], vocab_size=768)
    counts = Counter(
        token
        for ids in tokenizer(documents[:8000], add_special_tokens=False).input_ids
        for token in set(ids)
    )
    for text in (f"{OPEN}calculator(", f"{OPEN}calculator(12+34){CLOSE}", "1-2*3/4"):
        for token in tokenizer(text, add_special_tokens=False).input_ids:
            assert counts[token] >= 40, (tokenizer.decode(token), counts[token])


def test_base_text_is_the_same_for_the_same_seed(documents):
    again = itertools.islice(base_documents(0), 500)
    assert [f"{a}\n{b}" for a, b in again] == documents[:500]
    other = itertools.islice(base_documents(1), 500)
    assert [f"{a}\n{b}" for a, b in other] != documents[:500]


DIGEST = """
import hashlib, itertools
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.copy_lines import synthetic_lines
from delta_transcoders.tasks.calculator.prompts import generate_splits
splits = generate_splits(200, 40, 20, synthetic_lines(3), 3)
documents = list(itertools.islice(base_documents(3), 200))
print(hashlib.sha256(repr((splits, documents)).encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_text_in_every_process(pytestconfig):
    made = (
        make_splits(3, 200, 40, 20),
        list(itertools.islice(base_documents(3), 200)),
    )
    here = hashlib.sha256(repr(made).encode()).hexdigest()
    for hash_seed in ("0", "12345"):
        there = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            cwd=pytestconfig.rootpath,
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here


def test_another_seed_gives_other_examples(splits):
    other = make_splits(seed=4)
    shared = {e.prompt for e in splits["train"]} & {e.prompt for e in other["train"]}
    assert len(shared) < 0.1 * len(splits["train"])
    assert [e.prompt for e in splits["train"]] != sorted(e.prompt for e in splits["train"])


def test_copy_lines_that_run_out_are_an_error():
    lines = iter(["Room 12 is on the left.", "Room 13 is on the right."])
    with pytest.raises(ValueError, match="copy lines ran out: 3 wanted, 2"):
        generate_splits(6, 0, 0, lines, seed=0)
