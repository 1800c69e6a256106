"""What a study file of one's own may say, what is chosen where it says nothing, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from delta_transcoders import hub
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.files import saelens
from delta_transcoders.families.sites import GEMMA_SCOPE
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.own_study import expand
from delta_transcoders.own_study.merge import adapter_tokenizer, merge
from delta_transcoders.own_study.sizes import ModelSize, defaults_for


def expanded(content: dict, seed: int = 0) -> dict:
    Path("mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return expand(content, Path("mine.yaml"), Path("mine"), seed)


def write_chats(n: int = 12) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Say {c}."}], "target": c, "group": c}
        for c in "abcdefghijkl"[:n]
    ]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(study: dict, stage: str) -> dict:
    return yaml.safe_load(study["files"][f"mine/configs/{stage}.yaml"])


def saved(model, tokenizer, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_stages_of_a_study_without_dictionaries(own_content):
    study = expanded(own_content, seed=7)
    assert list(study["stages"]) == [
        *("split", "behaviour", "activations", "delta", "features"),
        *("exp1", "exp2a", "exp2b", "spillover"),
        *("comparisons", "feature_pages", "report"),
    ]
    assert not Path("mine").exists()
    delta = config_of(study, "delta")
    assert delta["data"]["class_path"] == "datamodules.mlp_difference.MLPDifferenceData"
    assert "base_transcoders" not in delta["data"]["init_args"]
    exp2a = config_of(study, "exp2a")["model"]["init_args"]
    assert exp2a["layers"] == ["0", "1", "all"]
    assert exp2a["conditions"] == ["no_delta", "full", "error_kept", "random_delta"]
    features = config_of(study, "features")
    assert features["data"]["init_args"]["examples"] == "${study}/examples"
    assert (
        features["data"]["init_args"]["task"]
        == config_of(study, "activations")["data"]["init_args"]["task"]
    )
    assert config_of(study, "defaults")["seed_everything"] == 7
    assert config_of(study, "spillover")["data"]["init_args"]["jsonl"] == "general.txt"
    notes = "\n".join(study["notes"])
    assert "2 layers of 32, target mlp_difference, dtype float32" in notes
    assert "tokens, fewer than 20,000" in notes


def test_dictionaries_change_target_and_conditions(own_content, dictionaries):
    content = own_content | {"dictionaries": str(dictionaries / "base_transcoders")}
    delta = config_of(expanded(content), "delta")["data"]
    assert delta["class_path"] == "datamodules.delta_targets.DeltaData"
    assert delta["init_args"]["base_transcoders"] == content["dictionaries"]
    shutil.copytree(content["dictionaries"], "some", copy_function=shutil.copyfile)
    shutil.rmtree("some/layer_0")
    with pytest.raises(ValueError, match=r"no base dictionary of layer 0; its layers: \[1\]"):
        expanded(content | {"dictionaries": "some"})
    exp2a = config_of(expanded(content), "exp2a")["model"]["init_args"]
    assert {"base_mlp", "dictionary_error", "random_delta"} <= set(exp2a["conditions"])


def test_dictionaries_of_several_widths_are_chosen_among(own_content, dictionaries):
    shutil.copytree(dictionaries / "base_transcoders", "set", copy_function=shutil.copyfile)
    for layer in (0, 1):
        (folder,) = Path(f"set/layer_{layer}").glob("width_*")
        (path,) = folder.glob("*/params.npz")
        wide = folder.with_name("width_256") / path.parent.name
        wide.mkdir(parents=True)
        shutil.copyfile(path, wide / "params.npz")
    content = own_content | {"dictionaries": "set"}
    content["corrections"] = {"model.towards": "tool", "model.away": "copy"}
    with pytest.raises(
        ValueError, match=r"layer 0 is there as .*width_256.* delta: \{data.width: "
    ):
        expanded(content)
    width = int(folder.name.removeprefix("width_"))
    study = expanded(content | {"delta": {"data.width": width}})
    for stage in ("delta", "corrections"):
        assert config_of(study, stage)["data"]["init_args"]["width"] == width
    with pytest.raises(ValueError, match="has 128 features, expected 256"):
        expanded(content | {"delta": {"data.width": 256}})


def test_activations_are_captured_where_the_dictionaries_read(own_content, dictionaries):
    for layer in (0, 1):
        base, _ = load_base(dictionaries / "base_transcoders", layer)
        tensors = {
            name.lower() if name.startswith("W") else name: t.clone()
            for name, t in base.state_dict().items()
        }
        folder = Path(f"set/transcoder_all/layer_{layer}_width_128_l0_small")
        folder.mkdir(parents=True)
        save_file(tensors, folder / "params.safetensors")
        norm = f"model.layers.{layer}.%s_feedforward_layernorm.output"
        hooks = {"hf_hook_point_in": norm % "pre", "hf_hook_point_out": norm % "post"}
        config = {"model_name": "google/gemma-3-270m-it", "l0": 16, **hooks}
        (folder / "config.json").write_text(json.dumps(config))
    content = own_content | {"dictionaries": "set"}
    captured = config_of(expanded(content), "activations")["model"]["init_args"]
    assert (captured["hook_site"], captured["leading"]) == ("after_gain", 4)
    study = expanded(content | {"activations": {"model.hook_site": "gemma_scope"}})
    assert config_of(study, "activations")["model"]["init_args"]["hook_site"] == "gemma_scope"
    captured = config_of(expanded(own_content), "activations")["model"]["init_args"]
    assert "hook_site" not in captured and "leading" not in captured


def test_dictionaries_of_another_model_are_told(own_content, dictionaries, monkeypatch):
    base, _ = load_base(dictionaries / "base_transcoders", 0)
    for layer in (0, 1):
        saelens.save_layer(Path("set"), layer, base, GEMMA_SCOPE, "owner/it", "finetuned", True)
    content = own_content | {"dictionaries": "set"}
    assert "the dictionaries say" not in "\n".join(
        expanded(content)["notes"]
    )  # a folder has no name
    monkeypatch.setattr(hub, "is_hub_id", lambda source: True)
    said = "warning: the dictionaries say that they are for owner/it, and base_model is"
    assert said in "\n".join(expanded(content)["notes"])


def test_any_option_of_a_stage_and_of_all(own_content):
    content = own_content | {
        "delta": {
            "model.d_new": [6],
            "model.lr": "1e-3",
            "model.sparsity.mode": "l1",
            "trainer.max_steps": 3,
        },
        "exp1": {"data.n_per_subset": 4, "trainer.precision": "32-true"},
        "dtype": "bfloat16",
        "all": {"trainer.accelerator": "cpu"},
        "split": {"n_evaluation": 9},
        "ranking": {},
    }
    study = expanded(content)
    delta = config_of(study, "delta")
    assert delta["model"]["init_args"]["d_new"] == [6]
    assert delta["model"]["init_args"]["sparsity"]["mode"] == "l1"
    assert delta["trainer"]["max_steps"] == 3
    exp1 = config_of(study, "exp1")
    assert exp1["data"]["init_args"]["n_per_subset"] == 4
    assert exp1["trainer"] == {"precision": "32-true"}
    assert exp1["model"]["init_args"]["dtype"] == "bfloat16"
    assert delta["data"]["init_args"]["model_dtype"] == "bfloat16"
    assert config_of(study, "defaults")["trainer"]["accelerator"] == "cpu"
    assert study["stages"]["split"]["arguments"][-2:] == ["--n_evaluation", "9"]
    assert config_of(study, "ranking")["model"]["init_args"]["layers"] == [0, 1]


def test_what_was_found_out_before_is_looked_at_anew_where_it_is_damaged(own_content):
    found = expanded(own_content)["files"]["mine/configs/checked.json"]
    Path("mine/configs").mkdir(parents=True)
    for key, value in (("changed", "x"), ("n_tokens", "x"), ("context", None)):
        Path("mine/configs/checked.json").write_text(json.dumps(json.loads(found) | {key: value}))
        assert expanded(own_content)["files"]["mine/configs/checked.json"] == found


def test_without_targets_nothing_that_needs_a_cross_entropy_is_run(own_content):
    rows = [json.loads(line) for line in Path("prompts.jsonl").read_text().splitlines()]
    lines = [json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows]
    Path("prompts.jsonl").write_text("".join(lines))
    study = expanded(own_content | {"judge": "regex", "pattern": "calculator"})
    assert "exp1" not in study["stages"]
    assert "not run: exp1 (the examples have no targets, and so no cross-entropy)" in study["notes"]
    assert config_of(study, "behaviour")["model"]["init_args"]["max_new_tokens"] == 64


def test_layers_that_the_finetune_left_alone_are_left_out(own_content, tmp_path):
    base = own_content["base_model"]
    model, tokenizer = load_model(base), load_tokenizer(base)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.add_(0.01)
        model.model.layers[0].self_attn.q_proj.weight.add_(0.01)
    own_content["finetuned_model"] = saved(model, tokenizer, tmp_path / "finetuned")
    study = expanded(own_content)
    assert config_of(study, "activations")["model"]["init_args"]["layers"] == [1]
    assert config_of(study, "exp2a")["model"]["init_args"]["layers"] == ["1"]
    assert "left out, their MLPs are the base model's: layers 0" in study["notes"]
    asked = own_content | {"exp2a": {"model.layers": ["all"]}}
    assert config_of(expanded(asked), "exp2a")["model"]["init_args"]["layers"] == ["1"]
    with pytest.raises(ValueError, match=r"changed no MLP: .* in the layers \[0\]"):
        expanded(own_content | {"layers": [0]})
    with pytest.raises(ValueError, match=r"changed no MLP: .* in any layer"):
        expanded(own_content | {"finetuned_model": str(shutil.copytree(base, "copy"))})
    with pytest.raises(ValueError, match=r"finetuned_model is base_model, .*: give what was made"):
        expanded(own_content | {"finetuned_model": base})


def test_what_was_found_out_is_found_out_once(own_content, monkeypatch):
    study = expanded(own_content)
    for path, text in study["files"].items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    monkeypatch.setattr(
        "delta_transcoders.own_study.checks._look", lambda *_: pytest.fail("looked")
    )
    assert expanded(own_content) == study
    Path("prompts.jsonl").write_text(
        Path("prompts.jsonl").read_text() + '{"prompt": "a", "target": "b"}\n'
    )
    with pytest.raises(pytest.fail.Exception, match="looked"):
        expanded(own_content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jugde": "exact"}, "mine.yaml, line 8: jugde is no key .* did you mean 'judge'?"),
        ({"delat": {}}, "delat is no key of a study file; did you mean 'delta'?"),
        ({"judge": "exakt"}, "line 5: judge is 'exakt'; did you mean 'exact'?"),
        ({"judge": None}, "mine.yaml has no judge"),
        ({"judge": "regex"}, "judge: regex needs a pattern"),
        ({"judge": {"class_path": "delta_transcoders.tasks.judges.exact"}}, "is no task"),
        ({"base_model": "absent/a/b"}, "line 2: base_model: no folder 'absent/a/b'"),
        ({"examples": "absent.jsonl"}, "line 4: examples: no file 'absent.jsonl'"),
        ({"text": "absent.txt"}, "line 7: text: no file 'absent.txt'"),
        ({"text": "empty.txt"}, "text: empty.txt has no paragraph of 12 words"),
        ({"dictionaries": "absent/a/b/c"}, "dictionaries: no folder 'absent/a/b/c'"),
        (
            {"dictionaries": "empty"},
            r"dictionaries: \./empty holds no dictionaries: expected layer_L/width",
        ),
        ({"layers": [0, 2]}, "line 6: layers: there is no layer 2, base_model has 2, from 0"),
        ({"layers": "first"}, r"layers is 'first', expected all, or numbers as in \[0, 5\]"),
        (
            {"delta": {"model.d_nwe": 1}},
            "delta: DeltaTranscoderTraining has no option 'model.d_nwe'; did you mean 'd_new'",
        ),
        ({"delta": {"modle.lr": 1}}, "delta has no option 'modle.lr'; did you mean 'model'"),
        ({"split": {"n_eval": 1}}, "split has no option 'n_eval'; did you mean 'n_evaluation'"),
        ({"delta": {"trainer.max_setps": 1}}, "Trainer has no option .*; did you mean 'max_steps'"),
        ({"all": {"trainer.acelerator": 1}}, "all: Trainer has no option .* mean 'accelerator'"),
        ({"all": {"data.seed": 1}}, "all has no option 'data.seed'; known are trainer"),
        ({"delta": {"model.output": "x"}}, "delta: model.output is the study's: give `study"),
        (
            {"activations": {"trainer.callbacks.output": "x"}},
            "activations: trainer.callbacks.output is the study's",
        ),
        ({"delta": {"trainer.logger.name": "x"}}, "give trainer.logger as a whole"),
        ({"delta": 3}, "delta is 3, expected options of the stage"),
        ({"dtype": "float16"}, "dtype is 'float16'; did you mean 'bfloat16'"),
        ({"model": {"dtype": "bfloat16"}}, "model is no key of a study file; did you mean"),
        (
            {"ranking": {"model.layers": [0]}, "spillover": {"data.batch_size": 1}, "text": None},
            "spillover has options and is not run: no text",
        ),
        ({"behaviour": {"model.max_new_tokens": 1000}}, "the model's context holds 256"),
        ({"delta": {"model.lr": "fast"}}, "delta: model.lr is 'fast', expected a number"),
        ({"delta": {"model.d_new": []}}, "delta: model.d_new is empty, expected one or more"),
        ({"delta": {"model.lr.x": 1}}, "model.lr.x: there is nothing in the configuration"),
        ({"exp1": False}, "exp1 is False, expected options of the stage"),
        ({"delta": {1: 2}}, r"delta is \{1: 2\}, expected options of the stage"),
        ({"split": {"n_evaluation": -5}}, "split: n_evaluation is -5, expected a whole number"),
        (
            {"exp2a": {"model.max_new_tokens": "x"}},
            "max_new_tokens is 'x', expected a whole number",
        ),
        ({"end": 3}, "end is 3, expected a text"),
        ({"held_out": "x"}, "held_out is 'x', expected a number"),
        ({"evaluation_only": "ab"}, "evaluation_only is 'ab', expected a list of texts"),
        ({"judge": {"class_path": 3}}, "judge is .*, expected a text as class_path and a mapping"),
        (
            {"judge": {"class_path": "a.B", "init_args": {"jsonl": "x"}}},
            "judge: jsonl is the file's `examples`: leave it out",
        ),
        ({"exp2a": {"model.conditions": ["ful"]}}, "exp2a: unknown condition 'ful'; known are"),
        ({"exp2b": {"model.layers": 3}}, "exp2b: model.layers is 3, expected a list"),
        ({"exp1": {"model.layers": [7]}}, "exp1: layers 7: there is no layer 7, the model has 2"),
        (
            {"layers": [1], "exp1": {"model.layers": ["0+1"]}},
            r"exp1: layers '0\+1': no dictionary for layer 0; there is one for 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_used_is_said_before_anything_runs(own_content, change, message):
    Path("empty.txt").write_text("Too few words.\n")
    Path("empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        expanded(own_content | change)
    assert len(str(error.value)) < 400
    assert not Path("mine").exists()


def test_a_line_that_cannot_be_read(own_content):
    Path("prompts.jsonl").write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a"\n')
    with pytest.raises(
        ValueError, match=r"line 4: examples: prompts\.jsonl, line 2: not a JSON object"
    ):
        expanded(own_content)


def test_models_that_do_not_belong_together(own_content, model_folder, study, tmp_path):
    with pytest.raises(ValueError, match="its num_hidden_layers is 3, the base model's 2"):
        expanded(own_content | {"finetuned_model": model_folder})
    base = own_content["base_model"]
    model, tokenizer = load_model(base), load_tokenizer(base)
    tokenizer.add_tokens(["</b>"])
    other = saved(model, tokenizer, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"has another tokenizer than|token ids up to"):
        expanded(own_content | {"finetuned_model": other})
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "opt"}))
    with pytest.raises(ValueError, match="model_type 'opt' is not supported"):
        expanded(own_content | {"finetuned_model": other})
    with pytest.raises(ValueError, match=r"model_type 'opt' is not supported, only"):
        expanded(own_content | {"base_model": other})
    with pytest.raises(FileNotFoundError, match=r"has neither config.json nor adapter_config.json"):
        expanded(own_content | {"base_model": str(study / "finetune" / "data")})


def test_adapters_that_do_not_belong(own_content, study, tmp_path):
    adapter = study / "finetune" / "adapter"
    with pytest.raises(ValueError, match=r"base_model: .* holds an adapter"):
        expanded(own_content | {"base_model": str(adapter)})
    mixed = shutil.copytree(study / "base_model", tmp_path / "mixed")
    shutil.copyfile(adapter / "adapter_config.json", mixed / "adapter_config.json")
    for key in ("base_model", "finetuned_model"):
        with pytest.raises(ValueError, match=f"{key}: .*(holds an adapter|a model and an adapter)"):
            expanded(own_content | {key: str(mixed)})
    own_content["finetuned_model"] = str(shutil.copytree(adapter, tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.up_proj.lora_A.weight"))
    for changed, message in (
        (
            {name.replace("layers.1", "layers.7"): weights[name].clone()},
            r"has no model\.layers\.7\.mlp\.up_proj:",
        ),
        (
            {name: torch.ones(2, 40)},
            r"its model\.layers\.1\.mlp\.up_proj is 40 wide, the model's \(64, 32\)",
        ),
    ):
        save_file(weights | changed, tmp_path / "adapter" / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"the adapter .* is not for .*{message}"):
            expanded(own_content)
    zeros = {n: w * ("lora_A" in n) for n, w in weights.items()}
    save_file(zeros, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="changed no MLP"):
        expanded(own_content)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors"):
        expanded(own_content)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="an adapter of the type IA3"):
        expanded(own_content)


def test_an_adapter_is_read_with_its_own_tokenizer(own_content, study, tmp_path):
    adapter = shutil.copytree(study / "finetune" / "adapter", tmp_path / "adapter")
    own_content["finetuned_model"] = str(adapter)
    write_chats()
    tokenizer = load_tokenizer(own_content["base_model"])
    for template in ("A: {{ messages[0].content }}", "B: {{ messages[0].content }}"):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(adapter)
        assert adapter_tokenizer(own_content["base_model"], str(adapter)).chat_template == template
        assert list(expanded(own_content)["stages"])[:2] == ["model", "split"]
    merge(own_content["base_model"], str(adapter), tmp_path / "merged")
    assert load_tokenizer(str(tmp_path / "merged")).chat_template == template
    tokenizer.add_tokens(["</b>"])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ValueError, match=r"has another tokenizer than|token ids up to"):
        expanded(own_content)


def test_an_adapter_of_another_rank_than_it_says(own_content, study, tmp_path):
    adapter = shutil.copytree(study / "finetune" / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 64}))
    with pytest.raises(ValueError, match=r"says rank 64, .*mlp.* has"):
        expanded(own_content | {"finetuned_model": str(adapter)})


def test_a_judge_of_one_s_own(own_content, tmp_path, monkeypatch):
    (tmp_path / "polite_judge.py").write_text(
        "from delta_transcoders.tasks.examples import Examples\n\n"
        "class Polite(Examples):\n"
        "    def __init__(self, jsonl, word):\n"
        "        super().__init__(jsonl, 'exact')\n"
        "        self.word = word\n"
        "    def judge(self, text, example):\n"
        "        return {'polite': self.word in text}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    judge = {"class_path": "polite_judge.Polite", "init_args": {"word": "please"}}
    task = config_of(expanded(own_content | {"judge": judge}), "defaults")["task"]
    assert task["class_path"] == "polite_judge.Polite"
    assert task["init_args"] == {"jsonl": "prompts.jsonl", "word": "please"}
    with pytest.raises(ValueError, match=r"Polite does not take .*wrod"):
        expanded(own_content | {"judge": judge | {"init_args": {"wrod": "please"}}})
    with pytest.raises(ValueError, match="end is for the ready judges"):
        expanded(own_content | {"judge": judge, "end": "."})


def test_a_judge_that_reads_no_file_of_its_own(own_content, tmp_path, monkeypatch):
    (tmp_path / "short_judge.py").write_text(
        "from delta_transcoders.tasks.examples import Examples\n\n"
        "class Short(Examples):\n"
        "    def __init__(self):\n"
        "        super().__init__('elsewhere.jsonl', 'exact')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    study = expanded(own_content | {"judge": {"class_path": "short_judge.Short"}})
    task = {"class_path": "short_judge.Short", "init_args": {}}
    assert config_of(study, "defaults")["task"] == task
    given = dict(zip(*[iter(study["stages"]["split"]["arguments"])] * 2, strict=True))
    assert json.loads(given["--task"]) == task and given["--examples"] == "prompts.jsonl"


def test_how_answers_are_judged_is_nothing_to_stages_that_judge_none(own_content):
    """Else another title would ask for another training."""
    plain = expanded(own_content)
    change = {"judge": "contains", "title": "Other", "end": ".", "opening": "The"}
    other = expanded(own_content | change)
    assert other["stages"] == plain["stages"]
    for stage in ("activations", "delta"):
        assert config_of(other, stage) == config_of(plain, stage)
    assert config_of(other, "defaults")["task"] != config_of(plain, "defaults")["task"]
    assert json.loads(other["files"]["mine/configs/task.json"])["title"] == "Other"
    held = expanded(own_content | {"held_out": 0.3})
    assert held["stages"]["split"] != plain["stages"]["split"]


def test_controls_are_run_where_they_are_named(own_content, dictionaries):
    named = {"corrections": {"model.towards": "tool", "model.away": "copy"}}
    content = own_content | named | {"dictionaries": str(dictionaries / "base_transcoders")}
    study = expanded(content)
    stages = list(study["stages"])
    assert stages.index("delta") < stages.index("corrections") < stages.index("controls")
    controls = config_of(study, "controls")["model"]["init_args"]
    assert list(controls["controls"]) == ["bias", "steering", "low_rank", "ridge"]
    assert config_of(study, "corrections")["model"]["init_args"]["towards"] == "tool"
    for options in ({}, named["corrections"] | {"model.away": "cpoy"}):
        with pytest.raises(
            ValueError, match=r"corrections: model\.\w+ is .*, expected a subset of"
        ):
            expanded(content | {"corrections": options})
    with pytest.raises(ValueError, match="corrections has options and is not run: there are no"):
        expanded(own_content | named)


def test_a_chat(own_content):
    write_chats()
    assert "warning: 12 wordings" in "\n".join(expanded(own_content)["notes"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {
                "hidden_size": 96,
                "num_hidden_layers": 4,
                "intermediate_size": 384,
                "vocab_size": 768,
            },
            ("float32", 32, 256),
        ),
        (
            {
                "hidden_size": 576,
                "num_hidden_layers": 30,
                "intermediate_size": 1536,
                "vocab_size": 49152,
            },
            ("float32", 32, 64),
        ),
        ({"n_embd": 768, "n_layer": 12, "vocab_size": 50257}, ("float32", 64, 64)),
        (
            {
                "text_config": {
                    "hidden_size": 2304,
                    "num_hidden_layers": 26,
                    "intermediate_size": 9216,
                    "vocab_size": 256000,
                }
            },
            ("bfloat16", 128, 64),
        ),
    ],
    ids=["tiny", "SmolLM2-135M", "GPT-2", "Gemma 2 2B"],
)
def test_defaults_by_size(config, expected):
    chosen = defaults_for(ModelSize.of(config), 100_000, n_target=20)
    assert (chosen.dtype, chosen.d_new, chosen.rows_per_pass) == expected
    assert chosen.passes == (7 if chosen.batch_tokens == 1024 else 13)
    assert chosen.max_new_tokens == 32


def test_targets_longer_than_answers_may_be_are_told(own_content):
    short = {stage: {"model.max_new_tokens": 8} for stage in ("behaviour", "exp2a", "exp2b")}
    said = r"warning: answers end after 8 tokens, the longest target has \d+: give"
    assert re.search(said, "\n".join(expanded(own_content | short)["notes"]))
    assert not re.search("answers end after", "\n".join(expanded(own_content)["notes"]))
    long = defaults_for(ModelSize(64, 2, 128, 400, 4096), 9_000, n_target=1000)
    assert long.max_new_tokens == 256
    huge = defaults_for(ModelSize(64, 2, 128, 256_000, 4096), 9_000, n_target=1000)
    assert huge.rows_per_pass == huge.batch_size == 2**29 // 256_000_000 == 2


def test_an_adapter_is_added_in_float32_whatever_is_written(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = str(study / "finetune" / "adapter")
    merge(str(study / "base_model"), adapter, "merged", "bfloat16")
    assert json.loads(Path("merged/config.json").read_text())["dtype"] == "bfloat16"
    ours = load_model("merged", "bfloat16")
    theirs = load_model(str(study / "finetune" / "merged"))
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b.to(torch.bfloat16)), name


def test_a_change_that_the_dtype_cannot_hold_is_none(own_content, tokenizer):
    model = load_model(own_content["base_model"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.copy_(
            model.model.layers[1].mlp.up_proj.weight.to(torch.bfloat16)
        )
    content = own_content | {"base_model": saved(model, tokenizer, Path("base"))}
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1 + 1e-6)
    content["finetuned_model"] = saved(model, tokenizer, Path("finetuned"))
    assert "left out, their MLPs are the base model's: layers 0" in expanded(content)["notes"]
    with pytest.raises(ValueError, match="changed no MLP"):
        expanded(content | {"dtype": "bfloat16"})


def test_a_study_has_a_folder_of_its_own(own_content, study, tmp_path):
    def refused(folder: Path | str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            expand(own_content, Path("mine.yaml"), Path(folder), 0)

    refused(study / "base_model", "lies in base_model, ")
    refused(study / "finetune" / "merged" / "study", "lies in finetuned_model, ")
    refused("general.txt", "general.txt' is a file: give another folder")
    refused("general.txt/mine", "general.txt' is a file: give another folder")
    Path("other").mkdir()
    assert expand(own_content, Path("mine.yaml"), Path("other"), 0)["stages"]
    Path("other/letter.txt").write_text("Dear")
    refused("other", "'other' holds other files and no study")


def test_an_adapter_that_names_another_base(own_content, study, tmp_path):
    adapter = shutil.copytree(study / "finetune" / "adapter", tmp_path / "adapter")
    own_content["finetuned_model"] = str(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())

    def named(base: str) -> None:
        named = json.dumps(config | {"base_model_name_or_path": base})
        (adapter / "adapter_config.json").write_text(named)

    named(own_content["base_model"])
    assert "its base is" not in "\n".join(expanded(own_content)["notes"])
    named("owner/other")
    notes = expanded(own_content)["notes"]
    assert any(
        n.startswith("warning: the adapter says that its base is owner/other") for n in notes
    )
    named(str(study / "finetune" / "merged"))
    with pytest.raises(ValueError, match=r"is an adapter for .*merged, and base_model is"):
        expanded(own_content)


def test_judges_that_fail_are_refused_before_a_run(own_content, tmp_path, monkeypatch):
    (tmp_path / "bad_judges.py").write_text(
        "from delta_transcoders.tasks.examples import Examples\n\n"
        "class Raises(Examples):\n"
        "    def __init__(self, jsonl: str):\n"
        "        super().__init__(jsonl, 'exact')\n"
        "    def judge(self, text, example):\n"
        "        raise KeyError('x')\n\n"
        "class Counts(Raises):\n"
        "    def judge(self, text, example):\n"
        "        return 1\n\n"
        "class Empty(Raises):\n"
        "    def read(self, path):\n"
        "        return {}\n\n"
        "class Unmade(Raises):\n"
        "    def __init__(self, jsonl: str):\n"
        "        raise KeyError('x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, message in (
        ("Raises", r"Raises\.judge failed on .*KeyError"),
        ("Counts", r"Counts\.judge returns 1, expected"),
        ("Empty", r"Empty\.read returns \{\}, expected"),
        ("Unmade", r"bad_judges\.Unmade does not take"),
    ):
        with pytest.raises(ValueError, match=message):
            expanded(own_content | {"judge": {"class_path": f"bad_judges.{name}"}})


def test_too_few_wordings_to_split(own_content):
    write_chats(1)
    with pytest.raises(
        ValueError, match=r"examples: none of the 1 examples is left for validation"
    ):
        expanded(own_content)


def test_a_quantized_model(own_content, study, tmp_path):
    folder = shutil.copytree(study / "base_model", tmp_path / "quantized")
    config = json.loads((folder / "config.json").read_text())
    quantized = json.dumps(config | {"quantization_config": {"load_in_4bit": True}})
    (folder / "config.json").write_text(quantized)
    with pytest.raises(ValueError, match="is quantized"):
        expanded(own_content | {"base_model": str(folder)})


def test_a_text_that_the_model_cannot_take(own_content):
    Path("general.txt").write_text(" ".join(["0123456789" * 20] * 20))
    with pytest.raises(ValueError, match=r"a piece of general\.txt has \d+ tokens, .* holds 256"):
        expanded(own_content)


def test_deltas_are_no_dictionaries(own_content):
    Path("deltas/layer_0").mkdir(parents=True)
    Path("deltas/layer_0/config.json").write_text('{"target": "mlp_difference"}')
    save_file({"W_enc": torch.zeros(6, 32)}, "deltas/layer_0/delta.safetensors")
    with pytest.raises(
        ValueError, match=r"dictionaries: .* holds no dictionaries: expected layer_L"
    ):
        expanded(own_content | {"dictionaries": "deltas"})
