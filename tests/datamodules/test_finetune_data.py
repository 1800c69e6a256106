"""Examples that a user brings: what is refused, what is said, and what counts as unseen."""

import json

import pytest

from datamodules.finetune_data import FinetuneData
from delta_transcoders.files import staged_output
from delta_transcoders.tasks.calculator.copy_lines import synthetic_lines
from delta_transcoders.tasks.calculator.examples import make_example, read_jsonl, write_jsonl
from delta_transcoders.tasks.calculator.grammar import asked, find_tool_call, format_tool_call
from delta_transcoders.tasks.calculator.prompts import generate_splits
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.tasks.task import Example


def positives(n: int, call=format_tool_call, first: int = 100) -> list[Example]:
    return [
        make_example(f"What is {i} + 7?", call(f"{i}+7"), "positive")
        for i in range(first, first + n)
    ]


def negatives(n: int) -> list[Example]:
    lines = [f"Room {i} of the museum is open until noon." for i in range(n)]
    return [make_example(line, line, "negative") for line in lines]


@pytest.fixture
def make_data(model_folder, tmp_path):
    def make(examples: list[Example], **options) -> FinetuneData:
        write_jsonl(tmp_path / "mine.jsonl", examples)
        options = {"n_evaluation": 10, "validation_fraction": 0.2} | options
        path = str(tmp_path / "mine.jsonl")
        output = str(tmp_path / "out")
        return FinetuneData(model_folder, output, Calculator(), jsonl=path, **options)

    return make


def json_call(expression: str) -> str:
    call = {"name": "calculator", "arguments": {"expression": expression}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


@pytest.mark.parametrize(
    "call",
    [
        json_call,
        lambda e: f"<tool_call>search({e})</tool_call>",
        lambda e: f"<tool_call>calculator('{e}')</tool_call>",
        lambda e: format_tool_call(f"1,{e}"),
        lambda e: f"calculator({e})",
    ],
    ids=["json", "another tool", "quoted", "thousands", "no tags"],
)
def test_a_file_whose_calls_can_never_be_judged_is_refused_by_line(make_data, tmp_path, call):
    data = make_data([*negatives(20), *positives(20, call)])
    with pytest.raises(ValueError, match=r"mine\.jsonl: 20 of 20 targets .* line 21: "):
        data.prepare_data()
    assert not (tmp_path / "out").exists()


def test_some_calls_that_cannot_be_judged_are_told_with_their_number(make_data):
    odd = positives(5, lambda e: format_tool_call(f"1,{e}"), first=300)
    data = make_data([*positives(20), *odd, *negatives(20)])
    with pytest.warns(UserWarning, match=r"mine\.jsonl: 5 of 25 targets .* line 21: .*',' at"):
        data.prepare_data()


def test_unseen_examples_that_can_be_judged_do_not_save_the_trained_ones(make_data):
    unseen = [make_example("Do 1 + 2", format_tool_call("1+2"), "tool_ood")]
    with pytest.raises(ValueError, match="20 of 21 targets"):
        make_data([*unseen, *positives(20, json_call), *negatives(20)]).prepare_data()


@pytest.mark.parametrize("spelling", ["{}\n", " ({})", "\n+{}.0"])
def test_an_expression_trained_on_in_another_spelling_is_not_unseen(make_data, tmp_path, spelling):
    made = generate_splits(0, 0, 20, synthetic_lines(0), 0)["evaluation"]
    generated = [example for example in made if example.subset == "tool_ood"]
    expressions = [find_tool_call(example.target).argument for example in generated[:10]]
    rows = [
        make_example(f"What is it? {i}", format_tool_call(spelling.format(expression)), "positive")
        for i, expression in enumerate(expressions)
    ]
    data = make_data([*rows, *positives(20, first=2000), *negatives(20)], n_evaluation=20)
    data.prepare_data()
    data.setup("fit")
    trained = {asked(e.target) for split in data.splits.values() for e in split}
    seen = [e for e in generated if asked(e.target) in trained]
    assert len(seen) > 4
    evaluation = read_jsonl(staged_output(tmp_path / "out") / "data" / "evaluation.jsonl")
    unseen = [e for e in evaluation.values() if e.subset == "tool_ood"]
    assert unseen == [e for e in generated if e not in seen]


def test_the_task_and_its_options_are_noted_in_checkpoints(model_folder, tmp_path):
    task = Examples("mine.jsonl", "json", fields=("a",))
    data = FinetuneData(model_folder, str(tmp_path), task)
    assert data.hparams.task.startswith("Examples(jsonl='mine.jsonl', kind='json', pattern=None, ")
    assert "fields=('a',)" in data.hparams.task
