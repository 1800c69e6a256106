"""What a user gets wrong is one short line, and nothing is written."""

from pathlib import Path

import pytest
import torch
import yaml

import evaluate
import train
from delta_transcoders.command import run
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.tasks.calculator.examples import make_example, read_jsonl, write_jsonl
from delta_transcoders.tasks.calculator.grammar import format_tool_call
from interop.published_sets import circuit_tracer, sparsify

ROOT = Path(__file__).parent.parent


def call(script, args, capsys) -> str:
    """Run a script that must end with exit status 2; its one line of error."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.delenv("DELTA_TRACEBACK", raising=False)
        run(lambda: script.main(args))
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.splitlines()[-2:] == [line, "(DELTA_TRACEBACK=1 shows where)"]
    assert len(line) < 400
    return line.removeprefix("error: ")


SIZES = {"data.n_train": 64, "data.n_validation": 15, "data.n_evaluation": 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model.lora_dropuot": 0.1},
            "Finetune has no option 'lora_dropuot'; did you mean 'lora_dropout'?",
        ),
        (
            {"trainer.max_stpes": 3},
            "there is no option 'trainer.max_stpes'; did you mean 'max_steps'?",
        ),
        (
            {"trainer.logger.naem": "x"},
            "TensorBoardLogger has no option 'naem'; did you mean 'name'?",
        ),
        ({"model.lora_r": "many"}, "--model.lora_r is many, expected int"),
        ({"model.method": "half"}, "--model.method is half, expected 'lora', 'full'"),
        ({"model.model": "absent/folder/here"}, "no model folder 'absent/folder/here'"),
        (
            {"model.model": "owner/gemma", "data.model": "owner/gemma"},
            "hf download owner/gemma --local-dir models/gemma",
        ),
        ({"model.target_modules": "[q_porj]"}, "Target modules {'q_porj'} not found"),
        ({"model.target_modules": "[up_proj, lm_head]"}, "lm_head shares its weights with another"),
        ({"model.target_modules": "all-linear"}, "target_modules"),
        (
            {"trainer.max_steps": -1, "trainer.max_time": "00:00:01:00"},
            "give --trainer.max_steps or --trainer.max_epochs",
        ),
        ({"data.jsonl": "absent.jsonl"}, "examples: no file absent.jsonl"),
        ({"data.n_validation": 0}, "the validation split holds no positive example"),
        ({"data.n_train": 1}, "the train split holds no positive example"),
        ({"task.copy_source": "file"}, "copy_source: file needs copy_file"),
        (
            {"task.copy_source": "file", "task.copy_file": "absent.txt"},
            "no file absent.txt",
        ),
        ({"ckpt_path": "absent.ckpt"}, "Checkpoint file not found: absent.ckpt"),
        ({"data.batch_size": 0}, "batch_size is 0, expected >0"),
        (
            {"data.output": "elsewhere"},
            "and --data.output 'elsewhere', expected the same: give both",
        ),
        ({"model.output": "", "data.output": ""}, "the output folder is empty, expected a path"),
        (
            {"model.output": "README.md/x", "data.output": "README.md/x"},
            "README.md is not a folder",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_option_is_one_short_line_and_changes_nothing(
    files_in, copied_study, arguments, capsys, options, message
):
    before = files_in(copied_study)
    args = arguments("tiny/lora.yaml", copied_study, SIZES | options)
    assert message in call(train, args, capsys)
    assert files_in(copied_study) == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda text: text.replace("lora_dropout:", "lora_dropuot:"),
            "Finetune has no option 'lora_dropuot'; did you mean 'lora_dropout'?",
        ),
        (
            lambda text: text.replace("max_steps:", "max_stpes:"),
            "there is no option 'max_stpes'; did you mean 'max_steps'?",
        ),
        (lambda text: text + "stduy: a\n", "there is no option 'stduy'; did you mean 'study'?"),
        (lambda text: text.replace(".Finetune\n", ".Fintune\n"), "no attribute 'Fintune'"),
        (lambda text: text.replace("init_args:", "init_args", 1), "bad.yaml, line 6: not YAML"),
        (lambda text: "- a\n- b\n", "bad.yaml must hold `key: value` pairs"),
        (lambda text: "", "bad.yaml must hold `key: value` pairs"),
    ],
    ids=["option", "trainer", "key", "class", "syntax", "list", "empty"],
)
def test_a_bad_configuration_file_is_one_short_line(
    study, arguments, tmp_path, capsys, edit, message
):
    text = (ROOT / "configs/tiny/lora.yaml").read_text()
    assert edit(text) != text
    (tmp_path / "bad.yaml").write_text(edit(text))
    (tmp_path / "defaults.yaml").write_text((ROOT / "configs/tiny/defaults.yaml").read_text())
    args = arguments("tiny/lora.yaml", study, {"config": tmp_path / "bad.yaml"})
    assert message in call(train, args, capsys)


def test_no_configuration_at_all(capsys):
    for name, script in (("train", train), ("evaluate", evaluate)):
        assert f"python {name}.py --config FILE" in call(script, [], capsys)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{'input'"], "examples.jsonl, line 3: not a JSON object"),
        (['{"input": "a", "target": "b", "label": "good"}'], "line 3: unknown label 'good'"),
        ([], "the validation split holds no positive example"),
    ],
    ids=["syntax", "label", "too few"],
)
def test_bad_examples_are_one_short_line_and_change_nothing(
    files_in, copied_study, arguments, capsys, lines, message
):
    path = copied_study / "examples.jsonl"
    write_jsonl(
        path,
        [
            make_example("What is 1 + 2?", format_tool_call("1+2"), "positive"),
            make_example("Room 7 is open.", "Room 7 is open.", "negative"),
        ],
    )
    with path.open("a") as handle:
        handle.writelines(f"{line}\n" for line in lines)
    before = files_in(copied_study)
    args = arguments("tiny/lora.yaml", copied_study, {"data.jsonl": path})
    assert message in call(train, args, capsys)
    assert files_in(copied_study) == before


def test_a_training_example_longer_than_the_context(copied_study, arguments, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    examples = read_jsonl(copied_study / "finetune" / "data" / "train.jsonl").values()
    long = make_example("What is" + " 1 +" * 400 + " 1?", format_tool_call("1"), "positive")
    write_jsonl(path, [*examples, long])
    args = arguments("tiny/lora.yaml", copied_study, {"data.jsonl": path})
    message = call(train, args, capsys)
    assert message.startswith("an example takes ")
    assert "the model's context holds" in message


def test_a_checkpoint_of_another_stage_or_damaged(
    files_in, copied_study, arguments, tmp_path, capsys
):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    last = next((copied_study / "logs").glob("base_model/**/last.ckpt"))
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(last.read_bytes()[:-1000])
    pickled = tmp_path / "pickled.ckpt"
    torch.save({"hyper_parameters": Payload()}, pickled)
    before = files_in(copied_study)
    for path, message in (
        (last, f"{last} is of lightning_modules.base_model.BaseModelTraining, this configuration"),
        (cut, f"the checkpoint {cut} cannot be read: damaged"),
        (pickled, f"the checkpoint {pickled} cannot be read: damaged"),
    ):
        args = arguments("tiny/lora.yaml", copied_study, SIZES | {"ckpt_path": path})
        assert message in call(train, args, capsys)
    assert files_in(copied_study) == before
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("behaviour", {"data.n_per_subset": -1}, "n_per_subset is -1, expected >0"),
        ("behaviour", {"data.batch_size": 0}, "batch_size is 0, expected >0"),
        ("behaviour", {"data.subsets": "[]"}, "subsets are [], expected different ones"),
        ("behaviour", {"data.subsets": "[tool, tool]"}, "subsets are ['tool', 'tool'], expected"),
        ("behaviour", {"model.models": "{}"}, "models is empty, expected at least one"),
        (
            "behaviour",
            {"model.max_new_tokens": 0},
            "max_new_tokens is 0, expected >0",
        ),
        ("behaviour", {"ckpt_path": "a.ckpt"}, "--ckpt_path a.ckpt: only training resumes"),
        ("behaviour", {"trainer.precision": "bf16-mixed"}, "--trainer.precision is 'bf16-mixed'"),
        ("activations", {"trainer.precision": "bf16-true"}, "--trainer.precision is 'bf16-true'"),
        (
            "exp2a",
            {"model.max_new_tokens": 0},
            "max_new_tokens is 0, expected >0",
        ),
        (
            "exp2a",
            {"model.rows_per_pass": 0},
            "rows_per_pass is 0, expected >0",
        ),
        ("exp2a", {"data.model": "a/b"}, "and --data.model 'a/b', expected the same: give both"),
        ("activations", {"model.layers": "[]"}, "layers are [], expected different ones"),
        ("activations", {"model.layers": "[0, 0]"}, "layers are [0, 0], expected different ones"),
        (
            "activations",
            {"data.batch_size": 0},
            "batch_size is 0, expected >0",
        ),
        (
            "activations",
            {"trainer.callbacks.init_args.shard_rows": 0},
            "--trainer.callbacks.shard_rows is 0, expected >0",
        ),
    ],
)
def test_a_bad_option_of_an_evaluation_is_one_short_line(
    files_in, copied_study, arguments, capsys, config, options, message
):
    before = files_in(copied_study)
    args = arguments(f"tiny/{config}.yaml", copied_study, options)
    assert message in call(evaluate, args, capsys)
    assert files_in(copied_study) == before


@pytest.mark.parametrize(
    ("config", "option", "value", "expected"),
    [
        ("delta", "model.sparsity.threshold_momentum", 1.0, ">=0 and <1"),
        ("delta", "model.sparsity.bandwidth", 0, ">0"),
        ("delta", "model.sparsity.l1_weight", -0.5, ">=0"),
        ("delta", "model.sparsity.mode", "topk", "'batch_topk', 'jumprelu', 'l1'"),
        ("delta", "data.n_check_examples", 0, ">0"),
        ("delta", "data.width", 0, ">0"),
        ("delta", "data.batch_tokens", "many", "PositiveInt"),
        ("mlp_difference", "data.buffer_tokens", -1, ">0"),
        ("corrections", "model.penalty", -1, ">=0"),
        ("base_model", "data.n_documents", 0, ">0"),
        ("base_model", "model.n_layers", 0, ">0"),
    ],
)
def test_a_value_out_of_range_is_named_wherever_it_is_given(
    arguments, tmp_path, capsys, config, option, value, expected
):
    message = f"--{option} is {value}, expected {expected}"
    args = arguments(f"tiny/{config}.yaml", tmp_path / "study", {option: value})
    assert call(train, args, capsys) == message
    part, *names = option.split(".")
    for name in reversed(names):
        value = {name: value}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({part: {"init_args": value}}))
    args = [*arguments(f"tiny/{config}.yaml", tmp_path / "study"), f"--config={tmp_path}/more.yaml"]
    assert call(train, args, capsys) == message
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("config", ["base_transcoder", "delta", "mlp_difference", "corrections"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_dictionaries_are_trained_in_float32_only(
    files_in, copied_study, arguments, capsys, config, precision
):
    before = files_in(copied_study)
    args = arguments(f"tiny/{config}.yaml", copied_study, {"trainer.precision": precision})
    assert f"--trainer.precision is '{precision}', expected 32-true" in call(train, args, capsys)
    assert files_in(copied_study) == before


def test_a_model_folder_without_a_tokenizer(files_in, copied_study, arguments, capsys):
    for path in (copied_study / "base_model").glob("tokenizer*"):
        path.unlink()
    before = files_in(copied_study)
    args = arguments("tiny/lora.yaml", copied_study)
    assert "base_model' has no tokenizer (tokenizer.json)" in call(train, args, capsys)
    assert files_in(copied_study) == before


@pytest.mark.parametrize(
    ("script", "config", "option"),
    [
        (evaluate, "exp2a", "model.base_model"),
        (train, "delta", "data.base_model"),
        (train, "mlp_difference", "data.base_model"),
    ],
)
def test_a_base_model_of_another_tokenizer(
    files_in, dictionaries, arguments, tmp_path, capsys, script, config, option
):
    tokenizer = load_tokenizer(str(dictionaries / "base_model"))
    tokenizer.add_tokens(["</b>"])
    model = load_model(str(dictionaries / "base_model"))
    model.resize_token_embeddings(401)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    before = files_in(dictionaries)
    options = {option: tmp_path / "other"}
    if config == "exp2a":
        options |= {"model.conditions": "[base_mlp]", "model.layers": "[all]"}
    message = call(script, arguments(f"tiny/{config}.yaml", dictionaries, options), capsys)
    assert "has another tokenizer than" in message
    assert f"'{tmp_path / 'other'}'" in message
    assert files_in(dictionaries) == before


BAD_SETS = {
    "another model's": (circuit_tracer, "W_enc has d_model 8, the model expects 32"),
    "no k": (lambda f: circuit_tracer(f, activation="topk"), "activation is topk and k is missing"),
    "unknown hook": (
        lambda f: circuit_tracer(f, feature_input_hook="hook_z"),
        "config.yaml: reads at 'hook_z', expected one of",
    ),
    "layer missing": (
        lambda f: circuit_tracer(f, transcoders=["layer_0.safetensors"]),
        "holds no base dictionary of layer 1; its layers: [0]",
    ),
    "pointer": (
        lambda f: (
            circuit_tracer(f),
            (f / "layer_0.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        ),
        "layer_0.safetensors is not the file but a Git LFS pointer",
    ),
    "two layouts": (lambda f: (circuit_tracer(f), sparsify(f)), "dictionaries of several layouts:"),
    "pickle": (lambda f: (f / "L0.pt").write_bytes(b""), "L0.pt is a pickle, which can run code"),
    "empty": (lambda f: None, "holds no dictionaries: expected layer_L/width_W"),
}


@pytest.mark.parametrize("what", BAD_SETS)
def test_a_set_of_dictionaries_that_will_not_do(
    files_in, dictionaries, arguments, tmp_path, capsys, what
):
    write, message = BAD_SETS[what]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")
    before = files_in(dictionaries)
    options = {"data.base_transcoders": tmp_path / "set", "data.percentiles": "[0.5]"}
    assert message in call(train, arguments("tiny/delta.yaml", dictionaries, options), capsys)
    options = {"model.base_transcoders": tmp_path / "set", "model.layers": "[all]"}
    args = arguments("tiny/base_floor.yaml", dictionaries, options)
    assert message in call(evaluate, args, capsys)
    assert files_in(dictionaries) == before


def test_a_configuration_of_the_other_script(copied_study, arguments, capsys):
    args = arguments("tiny/behaviour.yaml", copied_study)
    assert "No `training_step()` method" in call(train, args, capsys)
    args = arguments("tiny/lora.yaml", copied_study, SIZES)
    assert "No `test_step()` method" in call(evaluate, args, capsys)


def test_an_error_in_the_program_itself_is_not_hidden():
    def main():
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        run(main)


def test_the_traceback_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("DELTA_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        run(lambda: train.main(["--config", "absent.yaml"]))
