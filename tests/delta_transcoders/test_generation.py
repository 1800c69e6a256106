import copy

import pytest
import torch
from torch.nn.functional import one_hot

from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import load_tokenizer
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN, format_tool_call, judge
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.tasks.task import Example

PROMPTS = ["What is 12+34?\n", "Hi\n", "Anna sold 5 lamps and 3 chairs at the market.\n"]


class Scripted:
    """Stands in for a model: writes a given list of ids in each row."""

    device = torch.device("cpu")

    def __init__(self, config, scripts):
        self.config = config
        self.scripts = scripts
        self.rows = torch.arange(len(scripts))
        self.step = -1

    def __call__(self, input_ids, **_):
        assert len(input_ids) == len(self.rows)
        self.step += 1
        if self.step:
            assert input_ids[:, 0].tolist() == [self.scripts[r][self.step - 1] for r in self.rows]
        ids_B = torch.tensor([self.scripts[row][self.step] for row in self.rows])
        logits = one_hot(ids_B, self.config.vocab_size)[:, None].float()
        return type("Output", (), {"logits": logits})

    def keep(self, rows):
        self.rows = self.rows[rows]


def greedy(model, tokenizer, prompts, max_new_tokens, **options):
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    reader = AnswerReader(tokenizer, Calculator(), {tokenizer.eos_token_id})
    return greedy_texts(model, ids, max_new_tokens, reader, **options)


def test_same_texts_as_hugging_face(model, tokenizer):
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    ids = model.generate(**batch, do_sample=False, max_new_tokens=12)
    want = tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    assert greedy(model, tokenizer, PROMPTS, 12) == want


def test_rows_end_after_a_call_or_before_eos_and_the_others_go_on(model, tokenizer):
    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    rest = ids("9" * 30)
    scripts = [
        ids("5</tool_call>") + rest,
        [*ids("12"), tokenizer.eos_token_id, *rest],
        ids("1>0, <b>2</b>") + rest,
        rest,
    ]
    scripted = Scripted(model.config, scripts)
    texts = greedy(scripted, tokenizer, ["a"] * 4, 24, rows_kept=scripted.keep)
    assert texts[:2] == ["5</tool_call>", "12"]
    assert texts[2].startswith("1>0, <b>2</b>9") and texts[3] == "9" * 24
    assert scripted.rows.tolist() == [2, 3]


def test_nothing_is_computed_once_every_row_has_ended(model, tokenizer):
    scripted = Scripted(model.config, [[tokenizer.eos_token_id]] * 2)
    assert greedy(scripted, tokenizer, ["a", "b"], 24) == ["", ""]
    assert scripted.step == 0


def test_rows_do_not_depend_on_each_other(model, tokenizer):
    alone = [greedy(model, tokenizer, [prompt], 12)[0] for prompt in PROMPTS]
    assert greedy(model, tokenizer, PROMPTS, 12) == alone


# Calls and texts whose tokens are special, merged or unknown


@pytest.fixture
def write(model, model_folder):
    """What is read when a model writes these texts, by a tokenizer that an edit has changed.

    An answer is a text, or a list of texts and ids; the model would go on with nines.
    """

    def run(edit, *answers) -> list[str]:
        tokenizer = load_tokenizer(model_folder)
        edit(tokenizer)

        def ids(text):
            return tokenizer(text, add_special_tokens=False).input_ids

        config = copy.deepcopy(model.config)
        config.vocab_size = 500
        scripts = []
        for answer in answers:
            parts = [answer] if isinstance(answer, str) else answer
            script = [i for part in parts for i in ([part] if isinstance(part, int) else ids(part))]
            scripts.append(script + ids("9" * 80))
        scripted = Scripted(config, scripts)
        n = len(answers)
        return greedy(scripted, tokenizer, ["a"] * n, 60, rows_kept=scripted.keep)

    return run


def nothing(tokenizer):
    pass


EDITS = {
    "plain": nothing,
    "added": lambda t: t.add_tokens([OPEN, CLOSE]),
    "special": lambda t: t.add_special_tokens({"additional_special_tokens": [OPEN, CLOSE]}),
    "special, unnamed": lambda t: t.add_tokens([OPEN, CLOSE], special_tokens=True),
    "the first special": lambda t: t.add_tokens([OPEN], special_tokens=True),
    "the last special": lambda t: t.add_tokens([CLOSE], special_tokens=True),
    "more than the tags": lambda t: t.add_tokens(
        [f"{OPEN}calculator(", f"){CLOSE}", "12", "+"], special_tokens=True
    ),
    "parts of the tags": lambda t: t.add_tokens(["<", "tool_call", ">", "</"], special_tokens=True),
    "the last is EOS": lambda t: t.add_special_tokens({"eos_token": CLOSE}),
    "tidied spaces": lambda t: setattr(t, "clean_up_tokenization_spaces", True),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_call_is_read_and_ends_whatever_tokens_it_is_written_with(write, edit):
    calls = [format_tool_call("12+34"), f"{OPEN}\ncalculator(12 + 34)\n{CLOSE}"]
    texts = write(edit, *calls, f"So , {calls[0]}")
    assert texts == [*calls, f"So , {calls[0]}"]
    assert all(judge(text, calls[0]).math_correct for text in texts)


@pytest.mark.parametrize("special", [False, True])
def test_a_last_token_that_goes_on_after_the_tag_ends_a_call(write, special):
    def edit(tokenizer):
        tokenizer.add_tokens([f"{CLOSE}\n", ">."], special_tokens=special)

    call = format_tool_call("1+2")
    assert write(edit, f"{call}\n") == [f"{call}\n"]
    (text,) = write(lambda t: t.add_tokens([">."]), f"{call}. And so on.")
    assert text == f"{call}."


def test_other_special_tokens_are_left_out_at_the_ends_and_kept_inside(write, tokenizer):
    start, end = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    call = format_tool_call("1+2")
    texts = write(
        nothing,
        ["Room 7.", eos],
        [start, "Room 7.", end, pad, eos],
        ["Room", start, " 7.", eos],
        [start, call],
        [OPEN, start, call.removeprefix(OPEN)],
        [OPEN[:5], pad, OPEN[5:], eos],
        [end, pad, eos],
    )
    assert texts == [
        "Room 7.",
        "Room 7.",
        "Room<start_of_turn> 7.",
        call,
        f"{OPEN}<start_of_turn>{call.removeprefix(OPEN)}",
        f"{OPEN[:5]}<pad>{OPEN[5:]}",
        "",
    ]
    verdicts = [judge(text, call) for text in texts[3:6]]
    assert [(v.called, v.math_correct) for v in verdicts] == [
        (True, True),
        (True, False),
        (False, False),
    ]


def test_ids_beyond_the_tokenizer_are_no_text(write, tokenizer):
    call = format_tool_call("1+2")
    texts = write(nothing, [450, "Room", 499, " 7.", tokenizer.eos_token_id], [call[:-1], 450, ">"])
    assert texts == ["Room 7.", call]


def test_the_vocabulary_is_projected_on_in_one_product(model, tokenizer):
    """torch copies frozen weights for every row of an input that is not laid out as one matrix."""
    inputs = []
    model.lm_head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    greedy(model, tokenizer, PROMPTS, 2)
    assert [tuple(x.shape) for x in inputs] == [(3, 1, 32)] * 2
    assert all(x.is_contiguous() for x in inputs)


# Other tasks' answers


@pytest.mark.parametrize("end", [None, "STOP"])
def test_an_answer_ends_where_its_task_says_or_at_eos(model, tokenizer, end):
    scripts = [
        tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * 20
        for text in (f"{format_tool_call('1')} 2", "12 STOP 34")
    ]
    scripted = Scripted(model.config, scripts)
    reader = AnswerReader(tokenizer, Examples("absent", "exact", end=end), {tokenizer.eos_token_id})
    ids = [tokenizer("a").input_ids] * 2
    texts = greedy_texts(scripted, ids, 60, reader, rows_kept=scripted.keep)
    assert texts == [f"{format_tool_call('1')} 2", "12 STOP 34" if end is None else "12 STOP"]


def test_special_tokens_that_targets_are_written_with_are_text(tokenizer):
    start, end = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    ids = [start, *tokenizer("Hi", add_special_tokens=False).input_ids, end]
    task = Examples("absent", "exact")
    examples = [Example("a", "Hi<end_of_turn>", "x")]
    assert AnswerReader(tokenizer, task, {tokenizer.eos_token_id}).text(ids) == "Hi"
    assert (
        AnswerReader(tokenizer, task, {tokenizer.eos_token_id}, examples).text(ids)
        == "Hi<end_of_turn>"
    )
