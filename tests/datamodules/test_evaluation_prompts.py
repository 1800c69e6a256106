"""Before anything is asked: which answers could never count as right."""

import json
import shutil
import warnings

import pytest

from datamodules.evaluation_prompts import EvaluationPrompts
from delta_transcoders.tasks.calculator.examples import make_example, write_jsonl
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN, format_tool_call
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.examples import Examples

LINE = "Anna sold 5 lamps at the market."


@pytest.fixture
def said(model_folder, tmp_path):
    """The warnings about these (target, label) examples, each on a line of its own after a blank one."""

    def check(*rows: tuple[str, str], max_new_tokens: int = 64, model=model_folder) -> list[str]:
        path = tmp_path / "examples.jsonl"
        write_jsonl(path, [make_example(f"Do {i}", *row) for i, row in enumerate(rows)])
        path.write_text("\n" + path.read_text())
        data = EvaluationPrompts(str(path), model, Calculator())
        data.setup("test")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data.warn_of_impossible_answers(max_new_tokens)
        return [str(warning.message) for warning in caught]

    return check


def call(expression: str) -> tuple[str, str]:
    return format_tool_call(expression), "positive"


def test_nothing_is_said_where_a_target_is_a_right_answer(said):
    hermes = f"{OPEN}\ncalculator(1 + 2)\n{CLOSE}"
    spoken = f"Sure. {format_tool_call('1+2')} Wait."
    rows = [(hermes, "positive"), (spoken, "positive"), call("1/0"), (LINE, "negative")]
    assert said(call("12+34"), *rows, ("Room 7\tis\nopen. ", "negative")) == []


def test_calls_that_the_calculator_cannot_read_are_counted(said):
    (warning,) = said(call("1+2"), call("1,000+2"), call("3+4"), call("2% of 50"), call("5+6"))
    assert "examples.jsonl: 2 of 5 targets of 'tool'" in warning
    assert "right by their own judge; only the other 3 can be answered rightly" in warning
    assert "(first: line 3, unexpected ',' at position 1" in warning


def test_targets_of_another_tool_or_form_are_counted(said):
    for target in (f"{OPEN}search(1){CLOSE}", f'{OPEN}{{"name": "calculator"}}{CLOSE}', "12"):
        (warning,) = said((target, "positive"))
        assert "1 of 1 targets of 'tool'" in warning
        assert "only the other 0 can be" in warning


def test_targets_longer_than_an_answer_may_be_are_counted(said, tokenizer):
    lengths = [
        len(tokenizer(t, add_special_tokens=False).input_ids)
        for t, _ in (call("1+2"), call("123+456"))
    ]
    rows = [call("1+2"), call("123+456"), (LINE, "negative")]
    assert said(*rows, max_new_tokens=max(lengths[1], len(LINE))) == []
    (warning,) = said(*rows[:2], max_new_tokens=lengths[0])
    assert f"1 of 2 targets of 'tool' are longer than max_new_tokens, {lengths[0]}" in warning
    assert f"({lengths[1]} would do) (first: line 3, {lengths[1]} tokens)" in warning
    assert [w.count("longer than") for w in said(*rows, max_new_tokens=3)] == [1, 1]


def test_targets_that_come_back_as_another_text_are_counted(said, model_folder, tmp_path):
    """Marks of a template at the end of a line, and a line that goes on after a call's end."""
    rows = [(f"{LINE}<end_of_turn>", "negative"), (f"{CLOSE} is on page 12.", "negative")]
    (warning,) = said((LINE, "negative"), *rows)
    assert "2 of 3 targets of 'copy' are read as another text" in warning
    assert f"line 3, '{LINE}<end_of_turn>' is read as '{LINE}'" in warning
    folder = shutil.copytree(model_folder, tmp_path / "lossy")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalizer":null', '"normalizer":{"type":"Lowercase"}')
                    .replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))  # fmt: skip
    (warning,) = said((LINE, "negative"), call("1+2"), model=str(folder))
    assert f"'{LINE}' is read as '{LINE.lower()}'" in warning


def test_other_tasks_are_told_by_their_own_judge(model_folder, tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "a", "target": '{"name": 1}'},
        {"prompt": "b", "target": "none"},
        {"prompt": "c"},
        {"prompt": "d", "target": '{"other": 1}', "subset": "unseen"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = Examples(str(path), "json", fields=("name",))
    data = EvaluationPrompts(str(path), model_folder, task)
    data.setup("test")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.warn_of_impossible_answers(64)
    first, second = (str(warning.message) for warning in caught)
    assert (
        "1 of 3 targets of 'examples' are not right by their own judge; only the other 2" in first
    )
    assert "(first: line 2, its own judge says valid_json, has_fields: false)" in first
    assert "1 of 1 targets of 'unseen'" in second
    assert "(first: line 4, its own judge says has_fields: false)" in second


def test_messages_without_a_template_are_refused_before_any_model_is_loaded(model_folder, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}], "target": "Ho"}))
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    data = EvaluationPrompts(str(path), str(folder), Examples(str(path), "exact"))
    with pytest.raises(ValueError, match="has no chat template"):
        data.setup("test")
