"""A model's own replies: made once, with what they were made with, and missing ones told."""

import json
import shutil
from pathlib import Path

import pytest

from delta_transcoders.files import read_json, write_json
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.tasks.three_tools import replies
from delta_transcoders.tasks.three_tools.bank import Prompt, bank
from delta_transcoders.tasks.three_tools.replies import (
    MAX_NEW_TOKENS,
    Reply,
    make,
    usable_replies,
    write_replies,
)
from delta_transcoders.tasks.three_tools.task import ThreeTools

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
PROMPTS = (*bank()[:4], *bank()[-3:])


@pytest.fixture
def chat_model(model_folder, tmp_path, monkeypatch) -> str:
    """A random model that answers seven prompts, three at a time."""
    folder = shutil.copytree(model_folder, tmp_path / "chat_model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.setattr(replies, "bank", lambda: PROMPTS)
    monkeypatch.setattr(replies, "BATCH_SIZE", 3)
    monkeypatch.setattr(replies, "MAX_NEW_TOKENS", 6)
    return str(folder)


def test_replies_are_the_model_s_own(chat_model, tmp_path, capsys):
    out = tmp_path / "replies"
    assert make(chat_model, out)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("7 replies of up to 6 tokens, 3 at a time; ")
    assert said[1:4] == ["4 left, 0 min", "1 left, 0 min", "0 left, 0 min"]
    rows = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    kinds = {prompt.text: prompt.kind for prompt in PROMPTS}
    assert {row["messages"][0]["content"]: row["kind"] for row in rows} == kinds
    model, tokenizer = load_model(chat_model), load_tokenizer(chat_model)
    for row in rows:
        inputs = tokenizer.apply_chat_template(
            row["messages"], return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
        ids = ids[inputs["input_ids"].shape[1] :].tolist()
        assert row["ended"] is (tokenizer.eos_token_id in ids)
        assert row["target"] == tokenizer.decode(ids, skip_special_tokens=True)
    config = read_json(out / "config.json")
    assert config["model_fingerprint"] == model_fingerprint(model)
    assert (config["max_new_tokens"], config["n_prompts"]) == (6, 7)
    assert config["n_ended"] == sum(row["ended"] for row in rows)


def test_of_rounded_weights_they_are_another_model_s(chat_model, tmp_path):
    out = tmp_path / "replies"
    make(chat_model, out, dtype="bfloat16")
    expected = model_fingerprint(load_model(chat_model, "bfloat16"))
    config = read_json(out / "config.json")
    assert (config["model_fingerprint"], config["dtype"]) == (expected, "bfloat16")
    message = (
        f"other weights, {chat_model} in bfloat16, not {chat_model} in float32: give .* --dtype"
    )
    with pytest.raises(FileExistsError, match=message):
        make(chat_model, out)


def test_where_no_dtype_was_noted_it_is_that_of_the_same_weights(chat_model, tmp_path):
    out = tmp_path / "replies"
    make(chat_model, out, dtype="bfloat16")
    config = read_json(out / "config.json")
    del config["dtype"]
    write_json(out / "config.json", config)
    assert not make(chat_model, out, dtype="bfloat16")
    with pytest.raises(FileExistsError, match=r"in a dtype that is not noted, not .* in float32"):
        make(chat_model, out)


def test_they_are_made_once_and_again_for_other_prompts(chat_model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "replies"
    make(chat_model, out)
    before = (out / "replies.jsonl").read_bytes()
    assert not make(chat_model, out)
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("is there already: 7 replies of " + chat_model)
    )
    assert (out / "replies.jsonl").read_bytes() == before
    monkeypatch.setattr(replies, "bank", lambda: PROMPTS[:2])
    assert make(chat_model, out)
    assert len((out / "replies.jsonl").read_text().splitlines()) == 2


def test_an_interrupted_run_goes_on_with_the_next_batch(chat_model, tmp_path, monkeypatch):
    make(chat_model, tmp_path / "at_once")
    answered, n_calls = replies._answered, 0

    def interrupted(*args):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise KeyboardInterrupt
        return answered(*args)

    monkeypatch.setattr(replies, "_answered", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(chat_model, tmp_path / "replies")
    assert not (tmp_path / "replies").exists()
    make(chat_model, tmp_path / "replies")
    assert n_calls == 4  # the first batch is not answered again
    files = [tmp_path / name / "replies.jsonl" for name in ("at_once", "replies")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at_once", "chat_model", "replies"]


def test_another_model_s_replies_are_not_replaced(chat_model, tmp_path):
    out = tmp_path / "replies"
    make(chat_model, out)
    model = load_model(chat_model)
    model.model.embed_tokens.weight.data *= 2
    model.save_pretrained(chat_model)
    with pytest.raises(FileExistsError, match="holds the replies of other weights"):
        make(chat_model, out)


def test_a_model_without_a_template_is_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template, so that nothing can be asked"):
        make(str(folder), tmp_path / "replies")
    assert not (tmp_path / "replies").exists()


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make(str(tmp_path / "nowhere"), tmp_path / "replies")


def test_only_what_the_model_ended_without_a_call_is_a_target(tmp_path, monkeypatch):
    prompts = [Prompt("chat", text, "frame") for text in ("one", "two", "three", "four")]
    monkeypatch.setattr(replies, "bank", lambda: prompts)
    said = [("Fine.", True), ("And so on and", False), (" ", True), ("<tool_call>x", True)]
    path = tmp_path / "replies.jsonl"
    write_replies(path, [Reply(p, *s) for p, s in zip(prompts, said, strict=True)])
    assert usable_replies(path) == {"one": "Fine."}


def test_missing_replies_are_told_with_what_makes_them(replies, tmp_path):
    remake = "make them: python -m delta_transcoders.tasks.three_tools.replies MODEL "
    with pytest.raises(
        FileNotFoundError, match=f"no replies {tmp_path}/replies.jsonl; {remake}{tmp_path}"
    ):
        ThreeTools(str(tmp_path / "replies.jsonl")).generate(10, 10, 10, seed=0)
    lines = Path(replies).read_text().splitlines()
    (tmp_path / "replies.jsonl").write_text("\n".join(lines[2:]))
    with pytest.raises(
        ValueError, match=f"has no reply to 2 of {len(lines)} prompts, the first is '.*; {remake}"
    ):
        ThreeTools(str(tmp_path / "replies.jsonl")).generate(10, 10, 10, seed=0)
    (tmp_path / "replies.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(ValueError, match="line 1: needs messages"):
        usable_replies(tmp_path / "replies.jsonl")


def test_the_limit_is_the_recorded_one():
    assert MAX_NEW_TOKENS == 64
