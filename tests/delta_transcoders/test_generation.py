import torch
from torch.nn.functional import one_hot

from delta_transcoders import generation

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


def test_same_texts_as_hugging_face(model, tokenizer):
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    ids = model.generate(**batch, do_sample=False, max_new_tokens=12)
    want = tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    assert generation.greedy_texts(model, tokenizer, PROMPTS, 12) == want


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
    texts = generation.greedy_texts(scripted, tokenizer, ["a"] * 4, 24, rows_kept=scripted.keep)
    assert texts[:2] == ["5</tool_call>", "12"]
    assert texts[2].startswith("1>0, <b>2</b>9") and texts[3] == "9" * 24
    assert scripted.rows.tolist() == [2, 3]


def test_nothing_is_computed_once_every_row_has_ended(model, tokenizer):
    scripted = Scripted(model.config, [[tokenizer.eos_token_id]] * 2)
    assert generation.greedy_texts(scripted, tokenizer, ["a", "b"], 24) == ["", ""]
    assert scripted.step == 0


def test_rows_do_not_depend_on_each_other(model, tokenizer):
    alone = [generation.greedy_texts(model, tokenizer, [prompt], 12)[0] for prompt in PROMPTS]
    assert generation.greedy_texts(model, tokenizer, PROMPTS, 12) == alone


def test_the_vocabulary_is_projected_on_in_one_product(model, tokenizer):
    """torch copies frozen weights for every row of an input that is not laid out as one matrix."""
    inputs = []
    model.lm_head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    generation.greedy_texts(model, tokenizer, PROMPTS, 2)
    assert [tuple(x.shape) for x in inputs] == [(3, 1, 32)] * 2
    assert all(x.is_contiguous() for x in inputs)
