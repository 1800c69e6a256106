"""Answers are those of the evaluations and of a fresh model; what cannot be answered is told in words."""

import json
import shutil
import sys

import pytest
import torch

from delta_transcoders.inspector.parts import find_parts
from delta_transcoders.inspector.request import Request, request_of
from delta_transcoders.inspector.session import Session
from delta_transcoders.interventions.intervention import from_spec
from delta_transcoders.language_models import load_model, tokenize
from delta_transcoders.tasks.task import Example

PROMPT = "What is 12 * 34?"


def asked(session: Session, **request) -> dict:
    """Answers by name, and the tokens."""
    found = {}
    for event in session.answer(Request(**({"prompt": PROMPT} | request))):
        found |= event
    return found | {answer["name"]: answer for answer in found["answers"]}


@pytest.fixture
def copied(inspectable_study, tmp_path):
    return shutil.copytree(inspectable_study, tmp_path / "study")


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_answers_are_those_of_the_evaluations(inspector, copied, arguments):
    import evaluate

    few = {"data.n_per_subset": 2, "data.subsets": "[tool, copy]", "data.batch_size": 4}
    few["model.max_new_tokens"] = 16
    layers = {"model.layers": "[0, 0+2]", "model.conditions": "[no_delta, full, alpha_0.5]"}
    evaluate.main(arguments("tiny/exp2a.yaml", copied, few | layers))
    evaluate.main(arguments("tiny/behaviour.yaml", copied, few))
    records = [
        json.loads(line)
        for stage in ("exp2a", "behaviour")
        for line in (copied / stage / "generations.jsonl").read_text().splitlines()
    ]
    texts = set()
    for prompt in {record["prompt"] for record in records}:
        for layers in ((0,), (0, 2)):
            found = asked(inspector, prompt=prompt.removesuffix("\n"), layers=layers, alphas=(0.5,))
            assert found["prompt"] == prompt
            for record in records:
                label = record["layer"]
                if record["prompt"] == prompt and label in ("", "+".join(map(str, layers))):
                    answer = found[record["condition"]]
                    assert answer["text"] == record["text"]
                    texts.add(answer["text"])
                    if "call_logprob" in record and record["subset"] == "copy":
                        logprob = torch.tensor(answer["opening"]).log().item()
                        assert logprob == pytest.approx(record["call_logprob"], abs=1e-3)
    assert len(texts) > 8


def test_features_are_left_out_of_alpha_deltas_alone(inspector):
    drop = ((0, 1), (2, 3))
    found = asked(inspector, drop=drop, alphas=(1.0, -0.5))
    names = ["base_model", "raw", "no_delta", "full", "alpha_1.00", "alpha_-0.50"]
    assert [answer["name"] for answer in found["answers"]] == names
    assert found["alpha_1.00"]["label"] == "base dictionary + delta without L0F1, L2F3"
    assert found["alpha_-0.50"]["label"] == "base dictionary − 0.5 · delta without L0F1, L2F3"
    example = Example(f"{PROMPT}\n", None, "")
    (row,) = tokenize(inspector.tokenizer, inspector.task, [example])
    terms = [{"source": "delta", "coefficient": -0.5, "drop_features": [k]} for k in (1, 3)]
    at = {0: terms[0], 2: terms[1]}
    writes = {
        layer: from_spec({"condition": "x", "terms": [{"source": "base"}, term]}, [layer]).writes[
            layer
        ]
        for layer, term in at.items()
    }
    intervention = type(from_spec("raw", ()))("x", writes)
    n_new = inspector.parts.max_new_tokens
    (text,) = inspector.engine.generate([row.prompt_ids], [intervention], n_new, inspector.reader)
    assert found["alpha_-0.50"]["text"] == text
    assert found["full"] == asked(inspector)["full"]
    assert asked(inspector, drop=drop)["answers"][-1] == found["alpha_1.00"]


def test_features_are_those_of_a_fresh_pass(inspector, inspectable_study):
    tokens = asked(inspector, layers=(2,), max_new_tokens=5)["tokens"]
    model = load_model(str(inspectable_study / "finetune" / "merged"))
    ids = inspector.tokenizer(f"{PROMPT}\n").input_ids
    written = model.generate(
        torch.tensor([ids]), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    texts = [inspector.tokenizer.decode(i) for i in written[0]]
    assert [token["text"] for token in tokens] == texts[: len(tokens)]
    assert [token["is_answer"] for token in tokens] == [i >= len(ids) for i in range(len(tokens))]
    inputs = []
    layer = model.model.layers[2]
    hook = layer.pre_feedforward_layernorm.register_forward_pre_hook(
        lambda m, a: inputs.append(a[0][0])
    )
    with torch.inference_mode():
        model(written[:, : len(tokens)])
        x_TD = (
            inputs[0]
            / (inputs[0].square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
        )
        a_TF = inspector.delta[2].transcoder.encode(x_TD)
    hook.remove()
    assert tokens[0]["features"] is None  # BOS
    for token, a_F in zip(tokens[1:], a_TF[1:], strict=True):
        values, numbers = a_F.topk(3)
        strongest = [
            (2, f, a) for f, a in zip(numbers.tolist(), values.tolist(), strict=True) if a > 0
        ]
        assert [tuple(found[:2]) for found in token["features"]] == [s[:2] for s in strongest]
        assert [a for *_, a in token["features"]] == pytest.approx(
            [a for *_, a in strongest], rel=1e-4
        )
        rows = inspector.delta[2].transcoder.W_dec.norm(dim=1)
        assert token["activity"] == pytest.approx((a_F * rows).sum().item(), rel=1e-4)


def test_parts_of_a_character_are_shown_as_their_bytes(inspector):
    tokens = asked(inspector, prompt="a\n🙂  b", conditions=("raw",), max_new_tokens=1)["tokens"]
    shown = [token["text"] for token in tokens if not token["is_answer"]]
    assert "".join(shown) == "<bos>a\n" + r"\xf0\x9f\x99\x82" + "  b\n"
    assert {r"\xf0", r"\x82"} < set(shown)


def test_texts_grow_to_the_answers(inspector):
    events = list(inspector.answer(Request(PROMPT)))
    kinds = [event["event"] for event in events]
    assert kinds == ["asked", *["texts"] * (len(events) - 3), "answers", "tokens"]
    last = events[-3]["texts"]
    assert [answer["text"] for answer in events[-2]["answers"]] == last
    assert events[1]["texts"] != last


def test_an_answer_that_is_not_read_to_its_end_leaves_nothing(inspector):
    before = asked(inspector)
    answer = inspector.answer(Request(PROMPT))
    for _ in range(4):
        next(answer)
    answer.close()
    points = inspector.engine.bridge.hook_dict.values()
    assert not any(point.fwd_hooks for point in points)
    assert asked(inspector) == before


def test_the_tool_is_called(inspector, monkeypatch):
    text = "<tool_call>calculator(12*34)</tool_call>"
    monkeypatch.setattr(inspector.reader, "text", lambda ids: text)
    assert asked(inspector)["raw"]["tool"] == "408"


def test_an_answer_that_is_cut_says_so(inspector):
    cut = asked(inspector, max_new_tokens=2)["raw"]
    assert cut["is_cut"]
    assert asked(inspector)["raw"]["text"].startswith(cut["text"])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "the request is [], expected a JSON object"),
        ({}, "the request has no prompt"),
        ({"prompt": 3}, "the prompt is 3, expected a text"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "a\ud800"}, "half of a character"),
        ({"prompt": "a" * 20_001}, "the prompt has 20001 letters, at most 20000"),
        ({"prompt": "is " * 300}, "the model's context holds 128 with the answer: shorten it"),
        ({"prompt": "a", "path": "/etc"}, "unknown key 'path'; known are prompt, conditions"),
        (
            {"prompt": "a", "alphas": [float("nan")]},
            "alpha is nan, expected a number from -10 to 10",
        ),
        ({"prompt": "a", "alphas": [1e9]}, "alpha is 1000000000.0, expected a number from -10"),
        ({"prompt": "a", "alphas": ["1"]}, "alpha is '1', expected a number"),
        ({"prompt": "a", "alphas": [True]}, "alpha is True, expected a number"),
        ({"prompt": "a", "alphas": [0.123]}, "alpha is 0.123, expected two decimals at most"),
        ({"prompt": "a", "alphas": [0] * 17}, "17 values of alpha, at most 16 at once"),
        ({"prompt": "a", "alphas": 1}, "alphas is 1, expected a list"),
        (
            {"prompt": "a", "conditions": ["../x"]},
            "there is no condition '../x'; there is base_model",
        ),
        ({"prompt": "a", "conditions": []}, "nothing is asked for"),
        ({"prompt": "a", "layers": []}, "no layer is chosen"),
        ({"prompt": "a", "layers": [7]}, "there is no layer 7: the model has 3, 0 to 2"),
        ({"prompt": "a", "layers": [1]}, "layer 1 has no delta; there is one at 0, 2"),
        ({"prompt": "a", "layers": [-1]}, "a layer is -1, expected a whole number from 0"),
        ({"prompt": "a", "layers": ["0"]}, "a layer is '0', expected a whole number"),
        (
            {"prompt": "a", "drop": [[0, 6]]},
            "there is no feature L0F6: layer 0 has 6, L0F0 to L0F5",
        ),
        ({"prompt": "a", "drop": [[1, 0]]}, "there is no feature L1F0: deltas are at layers 0, 2"),
        ({"prompt": "a", "drop": [[9, 0]]}, "there is no feature L9F0: deltas are at layers 0, 2"),
        ({"prompt": "a", "drop": [[0]]}, "drop holds (0,), expected [layer, feature]"),
        ({"prompt": "a", "drop": ["0:1"]}, "drop holds '0:1', expected [layer, feature]"),
        (
            {"prompt": "a", "drop": [[2, 0]], "layers": [0]},
            "L2F0 cannot be dropped: layer 2 is not",
        ),
        (
            {"prompt": "a", "max_new_tokens": 0},
            "max_new_tokens is 0, expected a whole number from 1",
        ),
        (
            {"prompt": "a", "max_new_tokens": 1025},
            "max_new_tokens is 1025, at most 1024 are written",
        ),
        ({"prompt": "a", "max_new_tokens": 2.5}, "max_new_tokens is 2.5, expected a whole number"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict | list) else "",
)
def test_a_request_that_cannot_be_answered(inspector, request_, message):
    with pytest.raises(ValueError) as error:
        inspector.answer(request_of(request_))
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def without_stage(*names):
    def change(folder):
        edit(folder / "study.json", lambda r: [r["stages"].pop(name) for name in names])

    return change


def with_nan(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "delta" / "layer_2" / "delta.safetensors"
    tensors = load_file(path)
    tensors["W_dec"][3, 4] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "no study folder"),
        (lambda f: (f / "study.json").unlink(), FileNotFoundError, "holds no study.json"),
        (
            without_stage("exp2a"),
            FileNotFoundError,
            "is not as far as its stage exp2a (finished: base",
        ),
        (without_stage("exp2a", "delta"), FileNotFoundError, "is not as far as its stage delta"),
        (
            lambda f: shutil.rmtree(f / "delta"),
            FileNotFoundError,
            "has no delta, which its stage 'delta' writes: python study.py --config",
        ),
        (
            lambda f: shutil.rmtree(f / "finetune" / "merged"),
            FileNotFoundError,
            "has no finetune/merged, which its stage 'finetune' writes",
        ),
        (
            lambda f: edit(
                f / "study.json", lambda r: r.update(format="delta_transcoders study 2")
            ),
            ValueError,
            "is of the format 'delta_transcoders study 2', expected 'delta_transcoders study 1'",
        ),
        (
            lambda f: edit(f / "delta/layer_0/config.json", lambda c: c.update(format_version=2)),
            ValueError,
            "layer_0/config.json: format_version is 2, this code reads 1; train it anew",
        ),
        (
            with_nan,
            ValueError,
            "layer_2/delta.safetensors: W_dec (expected shape [n_features, d_out]) holds NaN",
        ),
        (
            lambda f: edit(f / "study.json", lambda r: r.update(stages=[])),
            ValueError,
            "study.json is damaged",
        ),
    ],
)
def test_a_study_that_cannot_be_opened(copied, damage, error, message):
    damage(copied)
    with pytest.raises(error) as found:
        Session(str(copied))
    assert message in str(found.value)


def test_a_study_without_its_base_model_says_so(copied):
    shutil.rmtree(copied / "base_model")
    session = Session(str(copied))
    assert list(session.absent) == ["base_model"]
    assert "no model folder" in session.absent["base_model"]
    assert "base_model" not in session.info()["labels"]
    names = [answer["name"] for answer in asked(session)["answers"]]
    assert names == ["raw", "no_delta", "full"]


def test_a_study_without_dictionaries_replaces_the_base_models_mlps(copied):
    from dataclasses import replace

    from delta_transcoders.dictionaries.delta import load_delta, save_delta
    from delta_transcoders.weights import StoredWeights

    base = str(copied / "base_model")
    for layer in (0, 2):
        path = copied / "delta" / f"layer_{layer}"
        delta, config = load_delta(path)
        base_hash = StoredWeights(base, "float32").fingerprint()
        changes = {"target": "mlp_difference", "base_id": base, "base_hash": base_hash}
        save_delta(path, delta, replace(config, **changes, percentile=None, average_l0_base=None))

    def forget(record):
        del record["stages"]["exp2a"]["done"]["config"]["model.base_transcoders"]

    edit(copied / "study.json", forget)
    session = Session(str(copied))
    labels = session.info()["labels"]
    assert labels["no_delta"] == "base model's MLPs alone"
    assert labels["full"] == "base model's MLPs + delta"
    base_mlp = load_model(base).model.layers[2].mlp
    for name, weight in session.deltas.sources["base"][2].mlp.named_parameters():
        if "proj" in name:
            assert any(torch.equal(weight, theirs) for theirs in base_mlp.parameters())
    openings = [answer["opening"] for answer in asked(session)["answers"]]
    assert len(set(openings)) == len(openings) == 4
    shutil.rmtree(copied / "base_model")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        Session(str(copied))


def test_a_chat_study_sends_messages(copied):
    lines = [
        {"messages": [["system", "Be brief."], ["user", f"Say {n}."]], "target": str(n)}
        for n in range(3)
    ]
    for line in lines:
        line["messages"] = [{"role": r, "content": c} for r, c in line["messages"]]
    path = copied / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def chats(record):
        config = record["stages"]["exp2a"]["done"]["config"]
        config |= {"data.jsonl": "${study}/chats.jsonl", "data.task.judge": "exact"}
        config |= {"data.task.class_path": "delta_transcoders.tasks.examples.Examples"}
        config |= {"data.task.jsonl": "${study}/chats.jsonl"}

    edit(copied / "study.json", chats)
    session = Session(str(copied))
    assert session.info()["form"] == (
        "It is sent as a user's message after the study's system message, in the tokenizer's chat template."
    )
    assert session.info()["example"] == "Say 0."
    found = asked(session, prompt="Say 1.")
    assert [message["role"] for message in found["prompt"]] == ["system", "user"]
    messages = lines[1]["messages"]
    text = session.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ids = session.tokenizer(text, add_special_tokens=False).input_ids
    prompt = [token["text"] for token in found["tokens"] if not token["is_answer"]]
    assert prompt == [session.tokenizer.decode([i]) for i in ids]
    assert found["raw"]["opening"] is None and session.info()["opening"] is None


@pytest.mark.parametrize(
    ("class_path", "is_beside"),
    [
        ("delta_transcoders.tasks.calculator.task.Calculator", False),
        ("a_task_of_mine.Mine", True),
        ("a_folder_of_mine.task.Mine", True),
        ("Mine", True),
    ],
)
def test_the_study_files_folder_is_searched_for_a_task_of_the_users_own(
    copied, tmp_path, monkeypatch, class_path, is_beside
):
    def change(record):
        record["file"] = str(tmp_path / "mine" / "study.yaml")
        record["stages"]["exp2a"]["done"]["config"]["data.task"] = class_path

    edit(copied / "study.json", change)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = [*sys.path]
    assert find_parts(str(copied)).task["class_path"] == class_path
    assert sys.path == before + [str(tmp_path / "mine")] * is_beside


def test_parts_are_those_of_the_evaluation(inspectable_study):
    parts = find_parts(str(inspectable_study))
    assert parts.stage == "exp2a"
    assert parts.model == f"{inspectable_study}/finetune/merged"
    assert parts.task == {
        "class_path": "delta_transcoders.tasks.calculator.task.Calculator",
        "init_args": {},
    }
    assert parts.max_new_tokens == 16 and parts.dtype == "float32" and parts.on_cpu
