"""Three tools as a task: its measures, its tools, its files."""

import json

import pytest

from delta_transcoders.language_models import load_tokenizer, tokenize
from delta_transcoders.tasks.calculator.grammar import OPEN
from delta_transcoders.tasks.task import Example, Message
from delta_transcoders.tasks.three_tools.splits import SUBSETS
from delta_transcoders.tasks.three_tools.task import MEASURE_TEXTS, SUBSET_TEXTS, ThreeTools

TASK = ThreeTools("no replies")
MEASURES = ("tool_call", "valid_tool_format", "right_tool", "correct")


def example(prompt: str, target: str, subset: str) -> Example:
    return Example((Message("user", prompt),), target, subset, group=f"{subset} wording")


SUM = example("What is 3 + 4?", "<tool_call>calculator(3+4)</tool_call>", "tool")
MILES = example("5 km in mi?", "<tool_call>convert(5, km, mi)</tool_call>", "tool")
DAYS = example(
    "How many days is it from 1 February 2024 to 1 March 2024?",
    "<tool_call>dates(2024-03-01 - 2024-02-01)</tool_call>",
    "tool_ood",
)
NEGATIVE = example("I ran 5 km.", "Well done!", "hard_negative")
CHAT = example("Hello!", "Hello! How can I help you?", "chat")


@pytest.mark.parametrize(
    ("asked", "text", "verdicts"),
    [
        (SUM, "So: <tool_call>calculator(8 - 1)</tool_call>", (True, True, True, True)),
        (SUM, "<tool_call>calculator(3-4)</tool_call>", (True, True, True, False)),
        (SUM, "<tool_call>convert(3, km, mi)</tool_call>", (True, True, False, False)),
        (SUM, "<tool_call>calculator(3+4", (True, False, False, False)),
        (SUM, "7", (False, False, False, False)),
        (MILES, "<tool_call>convert(5.0,km,mi)</tool_call>", (True, True, True, True)),
        (MILES, "<tool_call>convert(5, mi, km)</tool_call>", (True, True, True, False)),
        (MILES, "<tool_call>convert(5, km, kg)</tool_call>", (True, True, True, False)),
        (MILES, "<tool_call>calculator(5*0.62)</tool_call>", (True, True, False, False)),
        (DAYS, "<tool_call>dates(2020-03-01 - 2020-02-01)</tool_call>", (True, True, True, True)),
        (DAYS, "<tool_call>dates(2023-03-01 - 2023-02-01)</tool_call>", (True, True, True, False)),
        (DAYS, "<tool_call>dates(2024-02-30 - 2024-02-01)</tool_call>", (True, True, True, False)),
        (NEGATIVE, "Bravo!", (False, False, None, True)),
        (NEGATIVE, "<tool_call>convert(5, km, mi)</tool_call>", (True, True, None, False)),
        (CHAT, "<tool_call>hm", (True, False, None, False)),
        (CHAT, "Hi.", (False, False, None, True)),
    ],
)
def test_verdicts(asked, text, verdicts):
    assert TASK.judge(text, asked) == dict(zip(MEASURES, verdicts, strict=True))
    assert TASK.problem(asked) is None


def test_every_measure_and_subset_is_described():
    assert tuple(MEASURE_TEXTS) == MEASURES and tuple(SUBSET_TEXTS) == SUBSETS
    assert TASK.describe()["measures"] == MEASURE_TEXTS


def test_the_call_is_noted_and_can_be_executed():
    text = "Well: <tool_call>dates(2024-03-14 + 45 days)</tool_call>"
    assert TASK.details(text) == {"parsed_call": "dates(2024-03-14 + 45 days)"}
    assert TASK.execute(text) == "2024-04-28"
    assert TASK.details("no") == {"parsed_call": None}
    assert TASK.execute("<tool_call>search(x)</tool_call>") is TASK.execute("no") is None
    failed = TASK.execute("<tool_call>convert(5, km, kg)</tool_call>")
    assert failed == "error: 'km' is a length, 'kg' a mass"


def test_each_tool_has_its_own_opening():
    assert TASK.opening_of(MILES) == "<tool_call>convert("
    assert TASK.opening_of(DAYS) == "<tool_call>dates("
    assert TASK.opening_of(NEGATIVE) == TASK.opening_of(CHAT) == OPEN
    assert [TASK.is_trained(e) for e in (SUM, DAYS, NEGATIVE, CHAT)] == [True, False, True, True]


def test_prompts_are_tokenized_by_the_chat_template(model_folder):
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}[model]"
    )
    one, other = tokenize(tokenizer, TASK, [MILES, CHAT])
    assert tokenizer.decode(one.prompt_ids) == "<bos>[user]\n5 km in mi?\n[model]"
    assert tokenizer.decode(one.opening_ids) == "<tool_call>convert("
    assert tokenizer.decode(other.opening_ids) == OPEN
    assert tokenizer.decode(other.target_ids) == f"{CHAT.target}<eos>"


def test_files_are_read_as_they_were_written(task, replies, tmp_path):
    rows = task.generate(60, 20, 30, seed=0)
    path = tmp_path / "rows.jsonl"
    for part in rows.values():
        task.write(path, part)
        assert list(task.read(path).values()) == part
    line = json.loads(path.read_text().splitlines()[0])
    assert line.keys() == {"messages", "target", "subset", "group"}
    assert line["messages"][0].keys() == {"role", "content"}
    by_tool = ThreeTools(replies, by_tool=True)
    read = list(by_tool.read(path).values())
    for one, other in zip(read, rows["evaluation"], strict=True):
        assert (one.prompt, one.target, one.group) == (other.prompt, other.target, other.group)
        tool = one.target.removeprefix(OPEN).partition("(")[0]
        assert one.subset == (tool if other.subset == "tool" else other.subset)
    by_tool.write(tmp_path / "again.jsonl", read)
    assert (tmp_path / "again.jsonl").read_text() == path.read_text()


USER = '[{"role": "user", "content": "What is 3 + 4?"}]'
CALL = "<tool_call>calculator(3+4)</tool_call>"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [], "target": "a", "subset": "chat"}', "needs the fields messages, target"),
        (
            '{"messages": [], "target": "a", "subset": "chat", "group": "g"}',
            "line 1: messages must be one of the user",
        ),
        (
            f'{{"messages": {USER.replace("user", "tool")}, "target": "a", "subset": "chat", "group": "g"}}',
            "messages must be one of the user",
        ),
        (
            f'{{"messages": {USER}, "target": " ", "subset": "chat", "group": "g"}}',
            "line 1: target must be a text that is not empty, not ' '",
        ),
        (
            f'{{"messages": {USER}, "target": "a", "subset": "chat", "group": null}}',
            "group must be a text that is not empty, not None",
        ),
        (
            f'{{"messages": {USER}, "target": "a", "subset": "copy", "group": "g"}}',
            r"unknown subset 'copy' \(known: tool, tool_ood, hard_negative, chat\)",
        ),
        (
            f'{{"messages": {USER}, "target": "7", "subset": "tool", "group": "g"}}',
            "the target of a request is no call: '7'",
        ),
        (
            f'{{"messages": {USER}, "target": "{CALL.replace("+", ",")}", "subset": "tool", "group": "g"}}',
            "line 1: the target is no call of a tool: unexpected ','",
        ),
        (
            f'{{"messages": {USER}, "target": "{CALL}", "subset": "hard_negative", "group": "g"}}',
            "the target of a hard_negative calls a tool",
        ),
    ],
)
def test_other_files_are_refused_by_line(tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        TASK.read(tmp_path / "rows.jsonl")
