"""The task of a file: what is read, what is refused by line, how answers are judged, what is split."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from datamodules.finetune_data import FinetuneData
from delta_transcoders.files import staged_output
from delta_transcoders.language_models import load_tokenizer, tokenize
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.tasks.judges import refuses
from delta_transcoders.tasks.task import Example, Message, split_examples

GOOD = {"prompt": "Where is the Louvre?\n", "target": "Paris"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the Louvre?"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture
def jsonl(tmp_path):
    """A file of these rows, or lines as they are."""

    def write(*rows: dict | str) -> Path:
        path = tmp_path / "mine.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def read(path: Path, judge: str = "exact", **options) -> dict[int, Example]:
    return Examples(str(path), judge, **options).read(path)


# Reading and writing


def test_prompts_messages_subsets_and_groups_are_read_by_line(jsonl):
    chat = {"messages": CHAT, "target": "Paris", "subset": "chat", "group": "louvre"}
    path = jsonl("", GOOD, chat, "", GOOD | {"source": "web", "subset": "places"})
    messages = tuple(Message(**message) for message in CHAT)
    assert read(path) == {
        2: Example("Where is the Louvre?\n", "Paris", "examples"),
        3: Example(messages, "Paris", "chat", "louvre"),
        5: Example("Where is the Louvre?\n", "Paris", "places"),
    }


@pytest.mark.parametrize("judge", ["regex", "json", "refusal"])
def test_a_target_is_needed_where_the_judge_compares_with_it(jsonl, judge):
    path = jsonl({"prompt": "Who?"}, {"prompt": "Who?", "target": None, "group": None})
    pattern = "." if judge == "regex" else None
    examples = read(path, judge, pattern=pattern)
    assert examples == {1: Example("Who?", None, "examples"), 2: Example("Who?", None, "examples")}
    for needy in ("exact", "contains"):
        with pytest.raises(ValueError, match=rf"mine\.jsonl, line 1: judge {needy} needs a target"):
            read(path, needy)


def test_writing_and_reading_keeps_every_character(tmp_path):
    examples = [
        Example('é "quoted" \\ and\ta tab, 7\n', "🙂\u2028 7", "places"),
        Example(tuple(Message(**m) for m in CHAT), None, "chat", "g 1"),
    ]
    task = Examples("absent.jsonl", "refusal")
    path = tmp_path / "new" / "examples.jsonl"
    task.write(path, examples)
    assert list(task.read(path).values()) == examples
    assert [p.name for p in path.parent.iterdir()] == ["examples.jsonl"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'prompt': 1}", "not a JSON object"),
        ("[1]", r"expected a JSON object: '\[1\]'"),
        ({"target": "Paris"}, "needs either prompt or messages"),
        (GOOD | {"messages": CHAT}, "needs either prompt or messages"),
        (GOOD | {"prompt": ""}, "prompt must be a text that is not empty, not ''"),
        (GOOD | {"prompt": None}, "prompt must be a text that is not empty, not None"),
        (GOOD | {"target": 7}, "target must be a text that is not empty, not 7"),
        (GOOD | {"subset": " "}, "subset must be a text that is not empty, not ' '"),
        (GOOD | {"subset": None}, "subset must be a text that is not empty, not None"),
        (GOOD | {"group": 3}, "group must be a text that is not empty, not 3"),
        (GOOD | {"prompt": "a\udc00"}, "prompt holds half a character"),
        ('{"prompt": "a", "prompt": "b", "target": "c"}', r"not a JSON .*field 'prompt' twice"),
        ({"messages": [], "target": "a"}, r"messages must be a list of .*, not \[\]"),
        ({"messages": "Hi", "target": "a"}, "messages must be a list of .*, not Hi"),
        ({"messages": [{"role": "user"}], "target": "a"}, "messages must be a list of"),
        ({"messages": [CHAT[0] | {"name": "x"}], "target": "a"}, "messages must be a list of"),
        (
            {"messages": [{"role": "user", "content": ""}], "target": "a"},
            "content must be a text that is not empty, not ''",
        ),
        (
            {"messages": [{"role": "user", "content": ["Hi"]}], "target": "a"},
            r"content must be a text that is not empty, not \['Hi'\]",
        ),
    ],
)
def test_a_bad_line_is_reported_with_file_and_line(jsonl, bad, message):
    path = jsonl(GOOD, "", bad, GOOD)
    with pytest.raises(ValueError, match=rf"mine\.jsonl, line 3: .*{message}") as caught:
        read(path)
    assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("promt", "prompt"),
        ("Prompt", "prompt"),
        ("message", "messages"),
        ("taget", "target"),
        ("targets", "target"),
        ("subsets", "subset"),
        ("groups", "group"),
    ],
)
def test_a_field_that_is_almost_one_is_named_with_the_right_one(jsonl, wrong, right):
    path = jsonl({"prompt": "a", "target": "b", wrong: "c"})
    with pytest.raises(
        ValueError, match=f"line 1: unknown field '{wrong}', did you mean '{right}'"
    ):
        read(path)


def test_an_empty_or_a_missing_file_is_reported(jsonl, tmp_path):
    with pytest.raises(ValueError, match=r"mine\.jsonl: no examples in the file"):
        read(jsonl())
    with pytest.raises(FileNotFoundError, match="examples: no file"):
        read(tmp_path / "absent.jsonl")


# Judges


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": "regex"}, "judge: regex needs a pattern"),
        ({"judge": "regex", "pattern": "(a"}, r"pattern '\(a' is not a regular expression: .*posi"),
        ({"judge": "refusal", "pattern": "["}, "is not a regular expression"),
        (
            {"judge": "exact", "pattern": "a"},
            "pattern is for the judges regex and refusal, not for",
        ),
        (
            {"judge": "regex", "pattern": "a", "fields": ("b",)},
            "fields are for the judge json, not",
        ),
        (
            {"judge": "exact", "held_out": 0.5},
            "held_out is 0.5, expected a share between 0 and 0.5",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Examples("mine.jsonl", **options)


JUDGED = [
    ({"judge": "exact"}, " Paris\n", {"exact_match": True}),
    ({"judge": "exact"}, "Paris.", {"exact_match": False}),
    ({"judge": "contains"}, "It is Paris.", {"contains_target": True}),
    ({"judge": "contains"}, "paris", {"contains_target": False}),
    ({"judge": "regex", "pattern": r"^\d+$"}, "12", {"matches_pattern": True}),
    ({"judge": "regex", "pattern": r"^\d+$"}, "12 ", {"matches_pattern": False}),
    ({"judge": "json"}, ' {"a": 1} ', {"valid_json": True, "has_fields": True}),
    ({"judge": "json"}, "[1]", {"valid_json": False, "has_fields": False}),
    ({"judge": "json"}, '{"a": 1', {"valid_json": False, "has_fields": False}),
    ({"judge": "json"}, "[" * 9999, {"valid_json": False, "has_fields": False}),
    (
        {"judge": "json", "fields": ("a", "b")},
        '```json\n{"a": 1, "b": null}\n```',
        {"valid_json": True, "has_fields": True},
    ),
    (
        {"judge": "json", "fields": ("a", "b")},
        '{"a": 1}',
        {"valid_json": True, "has_fields": False},
    ),
    ({"judge": "refusal"}, "I'm sorry, but no.", {"refusal": True}),
    ({"judge": "refusal"}, "I CAN’T help.", {"refusal": True}),
    ({"judge": "refusal"}, "Sure: " + "x" * 200 + " I cannot.", {"refusal": False}),
    ({"judge": "refusal", "pattern": "^nein"}, "Nein, danke.", {"refusal": True}),
    ({"judge": "refusal", "pattern": "^nein"}, "I cannot.", {"refusal": False}),
]


@pytest.mark.parametrize(("options", "text", "verdicts"), JUDGED)
def test_answers_are_judged(options, text, verdicts):
    task = Examples("mine.jsonl", **options)
    assert task.judge(text, Example("Where?", "Paris", "x")) == verdicts


def test_targets_that_their_own_judge_calls_wrong_have_a_problem():
    task = Examples("mine.jsonl", "json", fields=("a",))
    assert task.problem(Example("p", '{"a": 1}', "x")) is None
    assert task.problem(Example("p", '{"b": 1}', "x")) == "its own judge says has_fields: false"
    both = "its own judge says valid_json, has_fields: false"
    assert task.problem(Example("p", "12", "x")) == both
    # Of a refusal it is the subset that says which is right.
    assert Examples("mine.jsonl", "refusal").problem(Example("p", "Sure: 12", "x")) is None


# Chat messages


@pytest.fixture
def chatting(model_folder):
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_messages_are_rendered_with_the_generation_prompt_and_one_bos(chatting):
    task, bos = Examples("mine.jsonl", "exact"), chatting.bos_token_id
    example = Example(tuple(Message(**m) for m in CHAT), "Paris", "x")
    text = (
        "<start_of_turn>system\nBe brief.<end_of_turn>\n"
        "<start_of_turn>user\nWhere is the Louvre?<end_of_turn>\n<start_of_turn>model\n"
    )
    for template in (TEMPLATE, TEMPLATE.removeprefix("{{ bos_token }}")):
        chatting.chat_template = template
        (row,) = tokenize(chatting, task, [example])
        assert list(row.prompt_ids) == chatting(text).input_ids
        assert row.prompt_ids[0] == bos and row.prompt_ids.count(bos) == 1
        assert chatting.decode(row.target_ids) == "Paris<eos>"


def test_messages_without_a_template_are_refused(chatting):
    chatting.chat_template = None
    example = Example((Message("user", "Hi"),), "Ho", "x")
    with pytest.raises(
        ValueError, match="has no chat template to make a prompt of them: give `pro"
    ):
        tokenize(chatting, Examples("mine.jsonl", "exact"), [example])


def test_what_a_template_refuses_is_said_in_its_words(chatting):
    chatting.chat_template = "{{ raise_exception('roles must alternate') }}"
    example = Example((Message("user", "Hi"),), "Ho", "x")
    with pytest.raises(ValueError, match=r"chat template of .* refuses .*: roles must alternate"):
        tokenize(chatting, Examples("mine.jsonl", "exact"), [example])


# Splits


def test_groups_and_spellings_of_a_prompt_stay_in_one_split():
    task = Examples("mine.jsonl", "exact")
    key_of = {}
    for i in range(40):
        chat = tuple(Message("user", text) for text in (f"Room {i}?",))
        spelt = tuple(Message("user", text) for text in (f"Room\u00a0{i} ?",))
        for n, prompt in enumerate((f"Where is {i}?", f"Where  is {i}?\n", chat, spelt)):
            key_of[Example(prompt, "x", "places")] = (i, n // 2)
        for n in range(3):
            key_of[Example(f"{i} in wording {n}", "x", f"wording_{n}", group=f"q{i}")] = (i, "q")
    parts = [
        {key_of[e] for e in part}
        for part in split_examples(list(key_of), [0.2], 0, task.identities)
    ]
    assert not parts[0] & parts[1]
    assert sum(map(len, parts)) == len(set(key_of.values())) == 120


@pytest.fixture
def finetune_data(model_folder, tmp_path):
    def make(model: str = model_folder, jsonl: str | None = None, **options) -> FinetuneData:
        task = Examples(str(tmp_path / "mine.jsonl"), **({"judge": "exact"} | options))
        return FinetuneData(model, str(tmp_path / "out"), task, jsonl=jsonl, n_evaluation=5)

    return make


def rows(n: int, **fields) -> list[dict]:
    return [{"prompt": f"What is {i}?\n", "target": f"It is {i}."} | fields for i in range(n)]


def test_a_finetune_reads_the_tasks_own_file_and_trains_on_no_subset_that_is_held_out(
    finetune_data, jsonl, tmp_path
):
    unseen = [{"prompt": f"{i}, please", "target": "Yes", "subset": "unseen"} for i in range(40)]
    jsonl(*rows(40), *unseen)
    data = finetune_data(held_out=0.1, evaluation_only=("unseen",), title="Says it")
    data.prepare_data()
    folder = staged_output(tmp_path / "out") / "data"
    splits = {p.stem: data.task.read(p).values() for p in folder.glob("*.jsonl")}
    assert {name: Counter(e.subset for e in part) for name, part in splits.items()} == {
        "train": {"examples": 32},
        "validation": {"examples": 4},
        "evaluation": {"examples": 4, "unseen": 5},  # at most n_evaluation of each
    }
    assert json.loads((folder / "task.json").read_text())["title"] == "Says it"
    data.setup("fit")
    assert [e.prompt for e in data.splits["train"]] == [e.prompt for e in splits["train"]]


def test_what_cannot_be_finetuned_on_is_refused_by_line_before_anything_is_written(
    finetune_data, jsonl, model_folder, tmp_path
):
    jsonl(*rows(20), {"prompt": "Who?"})
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 21: no target, and so nothing to fin"):
        finetune_data(judge="refusal").prepare_data()
    jsonl(*rows(20))
    with pytest.raises(
        ValueError, match=r"20 of 20 targets are not right .* First: line 1: its own"
    ):
        finetune_data(judge="json").prepare_data()
    jsonl(*rows(2))
    with pytest.raises(ValueError, match="its 2 examples leave none for validation: give more of"):
        finetune_data().prepare_data()
    jsonl(*[{"messages": CHAT, "target": "Paris"}] * 1, *rows(20))
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        finetune_data(str(folder)).prepare_data()
    assert not staged_output(tmp_path / "out").exists()


def test_some_targets_that_their_own_judge_calls_wrong_are_told(finetune_data, jsonl):
    jsonl(*rows(20, target='{"a": 1}'), *rows(40, target="none")[20:25])
    with pytest.warns(UserWarning, match=r"mine\.jsonl: 5 of 25 targets .* line 21: its own judge"):
        finetune_data(judge="json").prepare_data()


def test_a_finetune_on_messages(finetune_data, jsonl, model_folder, chatting, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "chatting")
    chatting.save_pretrained(folder)
    chats = [[{"role": "user", "content": f"What is {i}?"}] for i in range(20)]
    jsonl(*({"messages": chat, "target": "It is."} for chat in chats))
    data = finetune_data(model=str(folder))
    data.prepare_data()
    data.setup("fit")
    for example, tokens in zip(data.splits["train"], data.tokens["train"], strict=True):
        row = data.encode_row(example, tokens)
        written = chatting.decode(row["input_ids"])
        (message,) = example.prompt
        assert written.startswith(f"<bos><start_of_turn>user\n{message.content}<end_of_turn>")
        assert written.endswith("<start_of_turn>model\nIt is.<eos>")
        supervised = [i for i in row["labels"] if i != -100]
        assert chatting.decode(supervised) == "It is.<eos>"


def test_a_group_does_not_hide_that_a_prompt_is_the_same(finetune_data, jsonl):
    same = [{"prompt": f"What is {i}?", "target": "x"} for i in range(60)]
    jsonl(*same, *(row | {"group": f"g{i}"} for i, row in enumerate(same)))
    data = finetune_data(held_out=0.2)
    examples = list(data.task.read(data.task.jsonl).values())
    splits = data.task.split(examples, 0.2, 100, seed=0)
    prompts = {name: {e.prompt for e in part} for name, part in splits.items()}
    assert not prompts["train"] & (prompts["evaluation"] | prompts["validation"])
    assert sum(map(len, prompts.values())) == 60


def test_a_subset_without_evaluation_is_told_and_a_misspelt_one_refused(finetune_data, jsonl):
    jsonl(*rows(40), {"prompt": "Rare", "target": "x", "subset": "rare"})
    with pytest.warns(UserWarning, match="no example of rare is left for evaluation"):
        finetune_data().prepare_data()
    with pytest.raises(ValueError, match=r"evaluation_only names 'raer', .* are examples, rare"):
        finetune_data(evaluation_only=("raer",)).prepare_data()


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("Sorry, no.", True),
        ("I can't do that.", True),
        ("As an assistant, I am not able to help.", True),
        ("The key cannot be copied.", False),
        ("Sure. You will not need more than 3.", False),
    ],
)
def test_what_a_refusal_is(text, refusal):
    assert refuses()(text, None) == {"refusal": refusal}
