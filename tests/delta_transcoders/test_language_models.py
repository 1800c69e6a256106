import copy
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
import transformers

from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import (
    IGNORE,
    check_context,
    check_model_source,
    check_same_architecture,
    end_ids,
    load_model,
    load_tokenizer,
    opening_tokens,
    pad,
    position_ids,
    supervised_logits,
    target_batch,
    token_nll,
    tokenize,
)
from delta_transcoders.tasks.calculator.examples import make_example
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN, format_tool_call
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.tasks.task import Example
from delta_transcoders.weights import StoredWeights

EXAMPLES = [
    make_example("What is 12 + 3?", format_tool_call("12+3"), "positive"),
    make_example("Room 7 is open until noon in the old library.", "Room 7 is open.", "negative"),
    make_example("7 * 8", format_tool_call("7*8"), "tool_ood"),
    make_example("I am at the market. Tell me what 999 / 111 is.", "9", "positive"),
]


@pytest.fixture
def rows(tokenizer):
    return tokenize(tokenizer, Calculator(), EXAMPLES)


@pytest.fixture
def answers(tokenizer):
    """Greedy continuations of texts."""

    def run(model, prompts: list[str], max_new_tokens: int) -> list[str]:
        ids = [tokenizer(prompt).input_ids for prompt in prompts]
        return greedy_texts(
            model,
            ids,
            max_new_tokens,
            AnswerReader(tokenizer, Calculator(), {tokenizer.eos_token_id}),
        )

    return run


def hf_loss_sum(model, input_ids, labels, **kwargs) -> float:
    loss = model(input_ids=input_ids, labels=labels, use_cache=False, **kwargs).loss
    return loss.item() * (labels[:, 1:] != IGNORE).sum().item()


@pytest.mark.parametrize("whole_sequence", [False, True])
def test_token_nll_sums_to_hugging_faces_loss_on_a_padded_batch(
    model, tokenizer, rows, whole_sequence
):
    batch = target_batch(rows, tokenizer.pad_token_id)
    if whole_sequence:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE)
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        nll_N = token_nll(model, *batch.values())
        expected = hf_loss_sum(model, **batch)
    assert len(nll_N) == (batch["labels"][:, 1:] != IGNORE).sum()
    assert nll_N.sum().item() == pytest.approx(expected, rel=1e-5)


def test_token_nll_does_not_depend_on_padding_or_batch(model, tokenizer, rows):
    pad_id = tokenizer.pad_token_id
    with torch.no_grad():
        together = token_nll(model, *target_batch(rows, pad_id).values())
        alone = [token_nll(model, *target_batch([row], pad_id).values()) for row in rows]
        pairs = [(list(row.prompt_ids), list(row.target_ids)) for row in rows]
        left = token_nll(
            model,
            pad([p + t for p, t in pairs], pad_id, "left"),
            pad([[1] * len(p + t) for p, t in pairs], 0, "left"),
            pad([[IGNORE] * len(p) + t for p, t in pairs], IGNORE, "left"),
        )
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, left, atol=1e-5, rtol=1e-5)


def test_supervised_logits_are_the_models_own_in_row_order(model, tokenizer, rows):
    batch = target_batch(rows, tokenizer.pad_token_id)
    with torch.no_grad():
        logits_NV, labels_N = supervised_logits(model, *batch.values())
        full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = [
        (full[row, position - 1], batch["labels"][row, position])
        for row in range(len(EXAMPLES))
        for position in range(1, full.shape[1])
        if batch["labels"][row, position] != IGNORE
    ]
    assert labels_N.tolist() == [int(label) for _, label in expected]
    torch.testing.assert_close(logits_NV, torch.stack([logits for logits, _ in expected]))
    assert model.config.final_logit_softcapping == 30.0
    assert logits_NV.abs().max() < 30.0


def test_logits_are_float32_in_a_bfloat16_model(model_folder, tokenizer, rows):
    model = load_model(model_folder, "bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        batch = target_batch(rows, tokenizer.pad_token_id)
        logits_NV, _ = supervised_logits(model, *batch.values())
    assert logits_NV.dtype == torch.float32


def test_pad_and_positions():
    assert pad([[1, 2], [3]], 0, "left").tolist() == [[1, 2], [0, 3]]
    assert pad([[1, 2], [3]], 0, "right").tolist() == [[1, 2], [3, 0]]
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_tokens_are_bos_prompt_then_target_eos(tokenizer, rows):
    for row, example in zip(rows, EXAMPLES, strict=True):
        prompt, target = row.prompt_ids, row.target_ids
        assert prompt[0] == tokenizer.bos_token_id
        assert prompt.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(prompt, skip_special_tokens=True) == example.prompt
        assert target[-1] == tokenizer.eos_token_id
        assert tokenizer.bos_token_id not in target
        assert tokenizer.decode(target[:-1]) == example.target
        assert len(row) == len(prompt) + len(target)


def test_bare_prompts_have_neither_bos_nor_the_newline_at_their_end(tokenizer, rows):
    bare = tokenize(tokenizer, Calculator(), EXAMPLES, bare=True)
    for row, whole, example in zip(bare, rows, EXAMPLES, strict=True):
        assert tokenizer.decode(row.prompt_ids) == example.prompt.removesuffix("\n")
        assert tokenizer.bos_token_id not in row.prompt_ids
        assert row.target_ids == whole.target_ids


def test_the_opening_is_spelt_as_in_a_target_that_begins_with_it(tokenizer, rows):
    """Else as the task has it; none without a target or without an opening."""
    call = tuple(tokenizer("<tool_call>calculator(", add_special_tokens=False).input_ids)
    assert len(call) > 4
    assert [row.opening_ids for row in rows] == [call] * 4
    assert [row.target_ids[: len(call)] == call for row in rows] == [
        e.target.startswith(OPEN) for e in EXAMPLES
    ]
    task = Examples("absent", "exact", opening="Sure")
    sure = tuple(tokenizer("Sure", add_special_tokens=False).input_ids)
    examples = [Example("a", t, "x") for t in ("Sure: 1", "9", None)]
    tokens = tokenize(tokenizer, task, examples)
    assert [row.opening_ids for row in tokens] == [sure, sure, ()]
    assert tokens[2].target_ids == ()
    tokens = tokenize(tokenizer, Examples("absent", "exact"), examples)
    assert [row.opening_ids for row in tokens] == [()] * 3


def test_an_opening_ends_before_a_token_that_reaches_beyond_it(tokenizer):
    """`calculator(1` may end in a token that holds the digit too: which one follows is no part of calling."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["(1"])
    (row,) = tokenize(
        tokenizer,
        Calculator(),
        [make_example("a", "<tool_call>calculator(1+2)</tool_call>", "positive")],
    )
    assert tokenizer.decode(row.opening_ids) == "<tool_call>calculator"


def test_target_batch_supervises_target_and_eos_alone(tokenizer, rows):
    batch = target_batch(rows, tokenizer.pad_token_id)
    for index, row in enumerate(rows):
        prompt, target = list(row.prompt_ids), list(row.target_ids)
        n = int(batch["attention_mask"][index].sum())
        assert batch["input_ids"][index, :n].tolist() == prompt + target
        assert batch["labels"][index, :n].tolist() == [IGNORE] * len(prompt) + target
        assert (batch["input_ids"][index, n:] == tokenizer.pad_token_id).all()
        assert (batch["labels"][index, n:] == IGNORE).all()


def test_generation_sees_the_prompt_ids_of_teacher_forcing(model, tokenizer, rows):
    seen = {}
    model.register_forward_pre_hook(lambda _, args, kw: seen.update(kw), with_kwargs=True)
    reader = AnswerReader(tokenizer, Calculator(), {tokenizer.eos_token_id})
    greedy_texts(model, [row.prompt_ids for row in rows], 1, reader)
    teacher = target_batch(rows, tokenizer.pad_token_id)
    for index, row in enumerate(rows):
        n = len(row.prompt_ids)
        mask = seen["attention_mask"][index]
        assert mask.tolist() == [0] * (len(mask) - n) + [1] * n
        assert seen["input_ids"][index, -n:].tolist() == teacher["input_ids"][index, :n].tolist()


def uncached_greedy(model, tokenizer, prompt: str, max_new_tokens: int) -> str:
    """One row, the whole sequence anew for every token."""
    ids = tokenizer(prompt).input_ids
    n_prompt = len(ids)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
            if tokenizer.decode(ids[n_prompt:]).endswith(CLOSE):
                break
    return tokenizer.decode(ids[n_prompt:], skip_special_tokens=True)


def test_cached_left_padded_generation_equals_uncached_rows_alone(model, tokenizer, answers):
    prompts = [e.prompt for e in EXAMPLES]
    together = answers(model, prompts, 24)
    assert together == [uncached_greedy(model, tokenizer, p, 24) for p in prompts]
    assert together == [answers(model, [p], 24)[0] for p in prompts]
    assert len(set(together)) == len(EXAMPLES)


@pytest.fixture
def parrot(model, tokenizer):
    """The model, made to write given texts (row by row of a batch) whatever it reads."""

    def make(texts: list[str], then: int):
        scripts = [tokenizer(t, add_special_tokens=False).input_ids + [then] * 40 for t in texts]
        state = {"step": 0}

        def head(module, args, output):
            step = state["step"]
            state["step"] += 1
            forced = torch.full_like(output, -20.0)
            for row, script in enumerate(scripts):
                forced[row, -1, script[step]] = 20.0
            return forced

        model.lm_head.register_forward_hook(head)
        return model

    return make


def test_no_more_than_max_new_tokens(parrot, tokenizer, answers):
    model = parrot(["1234567890"], then=tokenizer.eos_token_id)
    assert answers(model, ["x\n"], 4) == ["1234"]


def test_a_call_in_the_prompt_does_not_stop_the_answer(parrot, tokenizer, answers):
    model = parrot(["12"], then=tokenizer.eos_token_id)
    assert answers(model, [format_tool_call("1+2")], 10) == ["12"]


def test_generation_is_greedy_whatever_the_folder_says(model_folder, model, answers, tmp_path):
    """A `generation_config.json` that asks for sampling must not be followed."""
    folder = tmp_path / "sampling"
    shutil.copytree(model_folder, folder)
    config = transformers.GenerationConfig(do_sample=True, temperature=5.0, top_k=0, eos_token_id=1)
    config.save_pretrained(folder)
    sampling = load_model(str(folder))
    prompts = [e.prompt for e in EXAMPLES]
    assert answers(sampling, prompts, 8) == answers(model, prompts, 8)


def test_examples_beyond_the_context_are_refused(rows):
    example, row = EXAMPLES[:1], rows[:1]
    n_prompt, whole = len(row[0].prompt_ids), len(row[0])
    check_context(example, row, whole)
    check_context(example, row, n_prompt + 64, new_tokens=64)
    with pytest.raises(ValueError, match=rf"takes {whole} tokens.*holds {whole - 1}.*What is 12"):
        check_context([EXAMPLES[2], *example], [rows[2], *row], whole - 1)
    with pytest.raises(ValueError, match=f"takes {n_prompt + 64} tokens"):
        check_context(example, row, n_prompt + 63, new_tokens=64)


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_a_missing_folder_is_named(tmp_path, load):
    for source in (str(tmp_path / "absent"), "runs/absent", "./models/absent", "absent"):
        with pytest.raises(FileNotFoundError, match=f"no model folder '{source}'"):
            load(source)


def test_a_folder_without_a_tokenizer_is_named(model_folder, tmp_path):
    folder = tmp_path / "incomplete"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(FileNotFoundError, match=r"incomplete' has no tokenizer \(tokenizer.json\)"):
        load_tokenizer(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete' has no config\.json"):
        check_model_source(str(folder))


def test_a_folder_without_weights_is_named(model_folder, tmp_path):
    folder = tmp_path / "weightless"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(FileNotFoundError, match="weightless' cannot be loaded") as caught:
        load_model(str(folder))
    assert "hub" not in str(caught.value)


def test_a_pointer_in_place_of_weights_is_named(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for load in (load_model, StoredWeights):
        with pytest.raises(ValueError, match="is not the file but a Git LFS pointer to it"):
            load(str(tmp_path / "model"))


@pytest.mark.parametrize("weight_map", [None, [], "all", {"a": None}, {"a": 3}])
def test_a_damaged_index_is_named(model_folder, tmp_path, weight_map):
    shutil.copytree(model_folder, tmp_path / "model")
    index = tmp_path / "model/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    # Where all weights are in one file the index is not looked at.
    assert StoredWeights(str(tmp_path / "model")).fingerprint()
    (tmp_path / "model/model.safetensors").unlink()
    for load in (load_model, load_tokenizer, StoredWeights):
        with pytest.raises(ValueError, match=r"index.json is damaged: weight_map is") as error:
            load(str(tmp_path / "model"))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_an_unreachable_hub_id_says_what_to_download_and_where_to_put_it(load):
    check_model_source("owner/gemma")
    started = time.perf_counter()
    message = r"hf download owner/gemma --local-dir models/gemma`, then give that folder"
    with pytest.raises(ConnectionError, match=message):
        load("owner/gemma")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"model_type": "phi3"}',
            r"other' is of an unknown family: model_type 'phi3' .*, only gemma2 \(Gemma 2\)",
        ),
        ("{", r"config\.json is damaged"),
    ],
)
def test_another_architecture_is_refused_before_it_is_built(model_folder, tmp_path, text, message):
    folder = shutil.copytree(model_folder, tmp_path / "other")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_model(str(folder))


def test_damaged_weights_are_named(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FileNotFoundError, match="damaged' cannot be loaded"):
        load_model(str(folder))


def test_a_folder_may_be_relative(model_folder, monkeypatch):
    folder, name = model_folder.rsplit("/", 1)
    monkeypatch.chdir(folder)
    check_model_source(f"./{name}")
    assert load_tokenizer(f"./{name}").bos_token_id == 2


# Things that do not belong together


@pytest.fixture
def edited(model_folder, tmp_path):
    """A copy of the model's folder with one of its JSON files changed, or its tokenizer."""

    def make(name: str = "copy", file: str | None = None, tokenizer=None, **changes) -> str:
        folder = shutil.copytree(model_folder, tmp_path / name)
        if file is not None:
            path = folder / file
            held = json.loads(path.read_text()) | changes
            path.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))
        if tokenizer is not None:
            changed = transformers.AutoTokenizer.from_pretrained(folder)
            tokenizer(changed)
            changed.save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("token", "message"),
    [("bos_token", r"does not put BOS \(None\)"), ("eos_token", "has no eos_token")],
)
def test_a_tokenizer_without_a_token_it_needs_is_refused(edited, token, message):
    with pytest.raises(ValueError, match=f"copy' {message}"):
        load_tokenizer(edited(file="tokenizer_config.json", **{token: None}))


def test_a_tokenizer_without_a_pad_token_pads_with_eos(edited):
    tokenizer = load_tokenizer(edited(file="tokenizer_config.json", pad_token=None))
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<eos>", 1)


@pytest.mark.parametrize("generation", [None, 5, [1, 5]])
@pytest.mark.parametrize("config", [None, 1, [6, 1]])
def test_an_answer_ends_at_whatever_a_model_calls_eos(edited, generation, config):
    folder = edited(file="config.json", eos_token_id=config)
    path = Path(folder) / "generation_config.json"
    if generation is None:
        path.unlink()
    else:
        path.write_text(json.dumps({"eos_token_id": generation}))
    if generation == 5:
        damaged = Path(shutil.copytree(folder, f"{folder}_damaged"))
        (damaged / path.name).write_text("{")
        with pytest.raises(
            FileNotFoundError, match=r"_damaged' cannot be loaded: .*generation_config"
        ):
            end_ids(str(damaged), load_tokenizer(folder))
    expected = {1} | ({5} if generation else set()) | ({6} if config == [6, 1] else set())
    assert end_ids(folder, load_tokenizer(folder)) == expected


@pytest.mark.parametrize(
    ("field", "value", "held"),
    [
        ("vocab_size", 448, 400),
        ("num_hidden_layers", 2, 3),
        ("hidden_size", 64, 32),
        ("intermediate_size", 32, 64),
        ("num_key_value_heads", 4, 2),
    ],
)
def test_a_finetune_has_the_sizes_of_its_base(edited, model_folder, field, value, held):
    layers = {"layer_types": ["full_attention"] * 2} if field == "num_hidden_layers" else {}
    other = edited(file="config.json", **{field: value} | layers)
    (Path(other) / "model.safetensors").unlink()  # weights are not looked at
    with pytest.raises(
        ValueError,
        match=rf"'{other}' is no finetune of '{model_folder}': its {field} is {value}, .* {held}$",
    ):
        check_same_architecture(model_folder, other)
    check_same_architecture(model_folder, model_folder)


def test_a_finetune_has_the_type_of_its_base(model_folder, tmp_path):
    transformers.Qwen3Config(vocab_size=400).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="its model_type is 'qwen3', the base model's 'gemma2'"):
        check_same_architecture(model_folder, str(tmp_path))


def test_a_tokenizer_that_adds_no_bos_or_more_is_refused(edited, model_folder):
    template = json.loads((Path(model_folder) / "tokenizer.json").read_text())["post_processor"]
    eos = {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    ids = {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}
    both = template | {
        "single": [*template["single"], eos],
        "special_tokens": template["special_tokens"] | {"<eos>": ids},
    }
    for name, processor in (("none", None), ("both", both)):
        folder = edited(name, file="tokenizer.json")
        path = Path(folder) / "tokenizer.json"
        held = json.loads(path.read_text()) | {"post_processor": processor}
        path.write_text(json.dumps(held))
        with pytest.raises(ValueError, match=rf"{name}' does not put BOS \(<bos>\), and nothing"):
            load_tokenizer(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.add_tokens([OPEN, CLOSE]),
        lambda t: t.add_special_tokens({"pad_token": "[PAD]"}),
    ],
    ids=["tags", "pad"],
)
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(edited, edit):
    with pytest.raises(ValueError, match=r"copy' has token ids up to 40\d, the model embeds 400"):
        load_tokenizer(edited(tokenizer=edit))


def test_a_model_with_more_rows_than_the_tokenizer_is_fine(edited, model):
    folder = edited()
    model.resize_token_embeddings(448)
    model.save_pretrained(folder)
    assert len(load_tokenizer(folder)) == 400
    assert load_model(folder).get_input_embeddings().weight.shape[0] == 448


def test_padding_outside_the_model_is_refused(edited):
    with pytest.raises(ValueError, match="pad_token_id 9999, but vocab_size 400"):
        load_tokenizer(edited(file="config.json", pad_token_id=9999))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vocab_size": 448},
            r"embed_tokens.weight has the shape \[400, 32\], expected \[448, 32\]",
        ),
        ({"intermediate_size": 96}, r"mlp.* has the shape .*64.*, expected .*96"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        (
            {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4},
            r"layers\.3\..* is missing",
        ),
        ({"num_hidden_layers": 5}, "num_hidden_layers.*5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_weights_of_another_configuration_are_refused(edited, change, message):
    with pytest.raises(ValueError, match=f"copy'.*{message}"):
        load_model(edited(file="config.json", **change))


@pytest.mark.parametrize("load", [load_tokenizer, load_model, check_model_source])
def test_an_adapter_in_a_model_folder_is_refused(edited, load):
    folder = edited()
    (Path(folder) / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"copy' holds an adapter \(adapter_config\.json\)"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(edited, file, text):
    folder = edited()
    (Path(folder) / file).write_text(text)
    with pytest.raises(ValueError, match="copy'"):
        load_tokenizer(folder)


def ends_a_turn(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.eos_token = "<pad>"


def test_models_that_are_compared_must_share_a_tokenizer(edited, model_folder, tokenizer):
    same = edited("same", tokenizer=lambda t: t.save_pretrained(t.name_or_path))
    assert load_tokenizer(model_folder, model_folder, same)("a 1") == tokenizer("a 1")
    chat = edited("chat", tokenizer=ends_a_turn)
    assert load_tokenizer(model_folder, chat).eos_token == "<eos>"
    assert load_tokenizer(chat, model_folder).pad_token == "<eos>"
    other = edited("other", tokenizer=lambda t: t.add_tokens(["</b>"]) and None)
    path = Path(other) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 448}))
    with pytest.raises(ValueError, match=f"'{other}' has another tokenizer than '{model_folder}'"):
        load_tokenizer(model_folder, same, other)


def test_the_home_folder_is_understood(model_folder, monkeypatch):
    folder, name = model_folder.rsplit("/", 1)
    monkeypatch.setenv("HOME", folder)
    check_model_source(f"~/{name}")
    assert load_tokenizer(f"~/{name}").bos_token_id == 2
    assert load_model(f"~/{name}").config.vocab_size == 400


def test_the_tokens_that_texts_begin_with(model_folder, tokenizer):
    call = format_tool_call("1+2")
    assert (
        opening_tokens(tokenizer, [call]) == tokenizer(OPEN, add_special_tokens=False).input_ids[:1]
    )
    merged = load_tokenizer(model_folder)
    merged.add_tokens([f"{OPEN}calculator(", f"{OPEN}\n"])
    assert opening_tokens(merged, [call]) == [400]
    targets = [call, f"{OPEN}\ncalculator(1+2)\n{CLOSE}", f"So: {OPEN}"]
    (word,) = merged("So", add_special_tokens=False).input_ids[:1]
    assert opening_tokens(merged, targets) == [word, 400, 401]
