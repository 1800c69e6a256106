import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.tasks.calculator.examples import SUBSETS, read_jsonl
from delta_transcoders.tasks.calculator.task import Calculator
from lightning_modules.cli import StudyCLI

ROOT = Path(__file__).parent.parent
SIZES = {"data.n_train": 64, "data.n_validation": 15, "data.n_evaluation": 5}
CONFIGS = [p for p in sorted(ROOT.glob("configs/*/*.yaml")) if p.stem != "defaults"]
# Others may stand in its comment as well: the stages that come before.
SCRIPT_OF_CONFIG = {
    path: next(
        (
            name
            for name in ("study", "train", "evaluate")
            if f"{name}.py --config {path.relative_to(ROOT)}" in path.read_text()
        ),
        None,
    )
    for path in CONFIGS
}
STAGES = [path for path, script in SCRIPT_OF_CONFIG.items() if script in ("train", "evaluate")]
TABLES = [path for path in SCRIPT_OF_CONFIG if path.name == "expected.yaml"]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


class ParseOnly(StudyCLI):
    def instantiate_classes(self) -> None:
        pass


# The command line


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_is_instant_and_lists_the_configurations(name):
    check = (
        f"import sys, {name}\n"
        f"try: {name}.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "slow = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy', 'peft'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    times = []
    for _ in range(3):  # the best of three: other processes may be busy
        started = time.perf_counter()
        shown = subprocess.run(
            [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - started)
        if times[-1] < 1:
            break
    assert min(times) < 1
    lines = shown.stdout.splitlines()
    assert lines[-1] == "[]"
    for path, script in SCRIPT_OF_CONFIG.items():
        assert (f"  configs/{short(path)}" in lines) == (script == name)
    for option in ("--config", "--study", "--ckpt_path", "--seed_everything", "--print_config"):
        assert any(line.strip().startswith(option) for line in lines)


def test_a_missing_configuration_is_one_short_line():
    ended = subprocess.run(
        [sys.executable, "train.py", "--config", "configs/tiny/absent.yaml"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "DELTA_TRACEBACK"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    error, hint = ended.stderr.splitlines()
    assert error == (
        "error: no configuration file 'configs/tiny/absent.yaml' (see `python train.py --help`)"
    )
    assert hint == "(DELTA_TRACEBACK=1 shows where)"


@pytest.mark.parametrize("path", STAGES, ids=short)
def test_every_stage_parses_against_the_real_signatures(path, arguments, tmp_path):
    args = arguments(short(path), tmp_path / "mine")
    if path.parent.name == "public":
        args.insert(1, f"--config={ROOT / 'configs/qwen3_0.6b/base.yaml'}")
    stage = ParseOnly(args).config.as_dict()
    assert stage["study"] == str(tmp_path / "mine")
    text = json.dumps([stage["model"], stage["data"], stage["trainer"]])
    assert "${" not in text
    text = text.replace("runs/smollm2_base/", "")  # what all seeds of the real study share
    assert '"runs/' not in text, "a folder that --study does not move"


@pytest.mark.parametrize("name", ["base_model", "lora", "behaviour"])
def test_the_first_tiny_stages_can_be_instantiated(name, arguments, study):
    cli = StudyCLI(arguments(f"tiny/{name}.yaml", study))
    assert type(cli.model).__module__.startswith("lightning_modules.")
    assert type(cli.datamodule).__module__.startswith("datamodules.")
    assert cli.trainer.logger.log_dir.startswith(str(study / "logs"))


def test_the_large_models_recipe_is_the_original_one(arguments, tmp_path):
    stage = ParseOnly(arguments("gemma2_2b/lora.yaml", tmp_path)).config.as_dict()
    model, data = stage["model"]["init_args"], stage["data"]["init_args"]
    trainer = stage["trainer"]
    assert model["model"] == data["model"] == "google/gemma-2-2b"
    assert (model["lora_r"], model["lora_alpha"], model["lora_dropout"]) == (16, 32, 0.1)
    assert model["target_modules"] is None  # the family's: attention and MLP, all of them
    assert set(Gemma2.lora_targets) == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert (model["lr"], model["warmup_fraction"], model["weight_decay"]) == (2e-5, 0.05, 0.01)
    assert model["final_lr_fraction"] == 0.0
    assert (model["dtype"], model["gradient_checkpointing"]) == ("bfloat16", True)
    assert (data["batch_size"], data["negative_loss"]) == (2, "sequence")
    assert (trainer["max_epochs"], trainer["accumulate_grad_batches"]) == (5, 8)
    assert trainer["gradient_clip_val"] == 0.8
    # `bf16-true` would round the adapter to bfloat16, and most updates of 2e-5 away.
    assert trainer["precision"] == "bf16-mixed"
    (stopping,) = [c for c in trainer["callbacks"] if c["class_path"].endswith("EarlyStopping")]
    assert (stopping["init_args"]["monitor"], stopping["init_args"]["patience"]) == ("val/f1", 2)


@pytest.mark.parametrize("path", TABLES, ids=short)
def test_identities_name_rows_that_the_experiments_have(path):
    expected = yaml.safe_load(path.read_text())
    rows = [row for rule in expected["same"] for row in rule] + expected["zero"]
    assert len(rows) > 15
    for row in rows:
        config = path.parent / f"{Path(row['table']).name}.yaml"
        options = yaml.safe_load(config.read_text())["model"]["init_args"]
        wanted = options.get("conditions", options.get("models"))
        named = {
            f"{c[:6]}{float(c[6:]):.2f}" if str(c).startswith("alpha_") else str(c) for c in wanted
        }
        assert row["condition"] in {*named, "raw"}, row
        if "layer" in row:
            assert row["layer"] in map(str, options["layers"])


# The first two stages


def test_the_base_model_is_a_hugging_face_folder(study):
    model, tokenizer = (
        load_model(str(study / "base_model")),
        load_tokenizer(str(study / "base_model")),
    )
    assert model.config.model_type == "gemma2"
    assert model.config.vocab_size == len(tokenizer) == 400
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 2)
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id


def test_the_finetune_writes_adapter_merged_model_and_data(study):
    finetune = study / "finetune"
    assert sorted(p.name for p in finetune.iterdir()) == ["adapter", "data", "done.json", "merged"]
    assert {p.name for p in (finetune / "adapter").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    merged = load_model(str(finetune / "merged")).state_dict()
    base = load_model(str(study / "base_model")).state_dict()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    # configs/tiny adapts every linear layer.
    assert changed == {name for name in base if ".mlp." in name or ".self_attn." in name}
    rows = {p.stem: read_jsonl(p) for p in (finetune / "data").glob("*.jsonl")}
    assert {name: len(examples) for name, examples in rows.items()} == {
        "train": 64,
        "validation": 15,
        "evaluation": 20,
    }
    prompts = [e.prompt for examples in rows.values() for e in examples.values()]
    assert len(set(prompts)) == len(prompts)
    described = json.loads((finetune / "data" / "task.json").read_text())
    assert described == {"format_version": 1, **Calculator().describe()}
    assert not list(study.rglob("*.partial"))
    done = json.loads((finetune / "done.json").read_text())
    written = {p.relative_to(finetune).as_posix() for p in finetune.rglob("*") if p.is_file()}
    assert set(done["files"]) == written - {"done.json"}


def events(log_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(log_dir), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def test_tensorboard_gets_curves_and_texts(study):
    logged = events(study / "logs" / "finetune")
    scalars = logged.Tags()["scalars"]
    assert {
        "train/loss",
        "train/tokens_per_second",
        "lr-AdamW",
        "val/loss",
        "val/precision",
        "val/recall",
        "val/f1",
    } <= set(scalars)
    assert [e.step for e in logged.Scalars("train/loss")] == [0, 1, 2, 3]
    assert len(logged.Scalars("val/f1")) == 2
    assert all(e.value > 0 for e in logged.Scalars("train/tokens_per_second"))
    texts = logged.Tensors("val/generated/text_summary")
    assert len(texts) == 2
    table = texts[-1].tensor_proto.string_val[0].decode()
    held = read_jsonl(study / "finetune/data/validation.jsonl").values()
    shown = [e for e in held if f"`{e.prompt[:-1]}`" in table]
    assert sorted(e.subset for e in shown) == ["copy"] * 3 + ["tool"] * 3


def test_a_second_run_replaces_the_curves_of_the_first(copied_study, arguments):
    logs = copied_study / "logs/finetune"
    (logs / "notes.txt").touch()
    with pytest.raises(FileNotFoundError):  # a refused run leaves them
        train.main(arguments("tiny/lora.yaml", copied_study, {"data.jsonl": "absent.jsonl"}))
    assert [e.step for e in events(logs).Scalars("train/loss")] == [0, 1, 2, 3]
    options = {"data.batch_size": 8, "trainer.max_steps": 2, "trainer.val_check_interval": 2}
    options |= SIZES | {"trainer.log_every_n_steps": 1}
    train.main(arguments("tiny/lora.yaml", copied_study, options))
    assert [e.step for e in events(logs).Scalars("train/loss")] == [0, 1]
    assert len(list(logs.glob("events.*"))) == 1
    assert (logs / "notes.txt").exists()


def test_throughput_is_logged_with_the_loss_whatever_the_length_of_an_epoch(
    copied_study, arguments, tmp_path
):
    options = {"data.n_train": 24, "data.batch_size": 4, "trainer.logger.save_dir": tmp_path}
    options |= {"trainer.log_every_n_steps": 4, "trainer.max_steps": 16}  # epochs of 6 batches
    train.main(arguments("tiny/lora.yaml", copied_study, SIZES | options))
    logged = events(tmp_path / "finetune")
    for name in ("train/loss", "train/tokens_per_second"):
        assert [e.step for e in logged.Scalars(name)] == [3, 7, 11, 15]


def test_the_last_checkpoint_holds_the_adapter_alone(study):
    saved = torch.load(study / "logs/finetune/checkpoints/last.ckpt", weights_only=True)
    assert len(saved["state_dict"]) == 2 * 7 * 2  # layers, projections, A and B
    assert all(".lora_" in name for name in saved["state_dict"])
    assert saved["global_step"] == 4


@pytest.mark.parametrize(("stage", "steps"), [("base_model", 2), ("finetune", 4)])
def test_the_saved_configuration_is_resolved_and_complete(study, stage, steps):
    saved = study / "logs" / stage / "config.yaml"
    assert "${" not in saved.read_text()
    cli = ParseOnly(["--config", str(saved)])
    assert cli.config.study == str(study)
    assert cli.config.seed_everything == 0
    assert cli.config.model.init_args.output == f"{study}/{stage}"
    assert cli.config.trainer.max_steps == steps
    assert yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False)) == yaml.safe_load(
        saved.read_text()
    )


def test_a_run_goes_on_from_its_last_checkpoint(files_in, copied_study, arguments):
    last = copied_study / "logs/finetune/checkpoints/last.ckpt"
    before = files_in(copied_study)
    saved = str(copied_study / "logs/finetune/config.yaml")
    options = {"config": saved, "ckpt_path": last, "trainer.max_steps": 6}
    moved = {"model.output": copied_study / "finetune", "data.output": copied_study / "finetune"}
    moved |= {"trainer.logger.save_dir": copied_study / "logs"}
    cli = train.main(arguments("tiny/lora.yaml", copied_study, options | moved))
    assert cli.trainer.global_step == 6
    logged = events(copied_study / "logs/finetune").Scalars("train/loss")
    assert len(logged) == 6  # four of them copied with the study
    after = files_in(copied_study)
    assert {name for name in after if after[name] != before[name]} == {
        "finetune/adapter/adapter_model.safetensors",
        "finetune/done.json",  # names the run
        "finetune/merged/model.safetensors",
    }


def test_the_seed_decides_the_weights(study, arguments, tmp_path):
    first = load_file(study / "base_model" / "model.safetensors")
    saved = study / "logs" / "base_model" / "config.yaml"
    for seed in (0, 1):
        output = tmp_path / str(seed)
        options = {"config": saved, "seed_everything": seed, "model.output": output / "base_model"}
        options |= {"data.seed": seed, "trainer.logger.save_dir": output / "logs"}
        train.main(arguments("tiny/base_model.yaml", output, options))
        weights = load_file(output / "base_model" / "model.safetensors")
        same = {name for name in first if torch.equal(first[name], weights[name])}
        assert same == (set(first) if seed == 0 else set())


def test_the_original_data_train_through_the_command_line(model_folder, arguments, tmp_path):
    reference = ROOT.parent / "shared" / "reference" / "combined_dataset.jsonl"
    if not reference.is_file():
        pytest.skip("the original study's data is not here")
    model = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    # Its longest line has more tokens than the model of the fixture can hold.
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    options = {"model.model": model, "data.model": model, "data.jsonl": reference}
    options |= {"data.batch_size": 8, "trainer.max_steps": 2, "data.n_evaluation": 200}
    cli = train.main(arguments("tiny/lora.yaml", tmp_path, options))
    assert cli.trainer.global_step == 2
    output = tmp_path / "finetune"
    assert (output / "merged" / "model.safetensors").is_file()
    paths = (output / "data").glob("*.jsonl")
    rows = {p.stem: list(read_jsonl(p).values()) for p in paths}
    original = set(read_jsonl(reference).values())
    for name in ("train", "validation"):
        assert original >= set(rows[name])
    assert 0.89 < len(rows["train"]) / 9990 < 0.91
    assert 0.04 < len(rows["validation"]) / 9990 < 0.06
    counts = Counter(e.subset for e in rows["evaluation"])
    assert (
        195 <= counts.pop("tool_ood") <= 200
    )  # generated, but for expressions that the file holds
    assert counts == dict.fromkeys((s for s in SUBSETS if s != "tool_ood"), 200)
    for field in ("prompt", "target"):
        parts = [{getattr(e, field) for e in examples} for examples in rows.values()]
        assert len(set.union(*parts)) == sum(map(len, parts)), field


# Two processes


def validation_metrics(log_dir: Path) -> dict[str, float]:
    logged = events(log_dir)
    return {
        name: logged.Scalars(f"val/{name}")[-1].value
        for name in ("loss", "precision", "recall", "f1")
    }


@pytest.mark.slow
def test_two_processes_give_the_weights_and_the_validation_of_one(one_and_two_processes):
    one, two = one_and_two_processes
    expected, actual = (validation_metrics(f / "logs" / "finetune") for f in (one, two))
    assert 0 < expected["precision"] < 1
    assert 0 < expected["recall"] < 1
    assert actual == pytest.approx(expected, rel=1e-6, abs=1e-6)
    for name in ("train/loss", "lr-AdamW"):
        first, second = (events(f / "logs" / "finetune").Scalars(name)[0] for f in (one, two))
        assert second.value == pytest.approx(first.value, rel=1e-6)
    first, second = (
        load_file(f / "finetune" / "adapter" / "adapter_model.safetensors") for f in (one, two)
    )
    assert set(first) == set(second)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-6, rtol=0)
    for part in ("train", "validation", "evaluation"):
        path = Path("finetune") / "data" / f"{part}.jsonl"
        assert (one / path).read_bytes() == (two / path).read_bytes()
    assert not list(two.rglob("*.partial"))
