"""Finished work is replaced by finished, sane work of the same stage, and by nothing else."""

import shutil

import pytest
import torch

import evaluate
import train
from delta_transcoders.language_models import load_model
from lightning_modules.loggers import SUFFIX

SIZES = {"data.n_train": 64, "data.n_validation": 15, "data.n_evaluation": 5}
FEW = {"trainer.max_steps": 2, "trainer.val_check_interval": 2}
TINY = {"model.d_model": 32, "model.n_layers": 2, "model.d_mlp": 64, "data.vocab_size": 400}
TINY |= {"data.n_documents": 48, "data.n_validation": 8}
DELTA = {"data.batch_tokens": 128, "data.passes": 2, "model.d_new": "[6]", "model.l0": 2}
DELTA |= {"trainer.val_check_interval": 2}
BASE = {"data.batch_tokens": 128, "data.passes": 2, "model.width": 64, "model.l0": "[8]"}
PROMPTS = {"data.n_per_subset": 2, "model.max_new_tokens": 4}
STAGES = {
    "base_model": (train, "base_model", TINY | FEW),
    "lora": (train, "finetune", SIZES | FEW),
    "base_transcoder": (train, "base_transcoders", BASE),
    "delta": (train, "delta", DELTA),
    "corrections": (train, "corrections", {"data.batch_tokens": 128}),
    "base_activations": (
        evaluate,
        "base_activations",
        {"data.n_train": 8, "data.n_validation": 4},
    ),
    "activations": (evaluate, "activations", {}),
    "behaviour": (evaluate, "behaviour", PROMPTS),
    "exp2a": (evaluate, "exp2a", PROMPTS | {"model.layers": "[0]"}),
    "visible_change": (evaluate, "visible_change", {"data.n_per_subset": 2, "data.batch_size": 2}),
    "ranking": (evaluate, "ranking", PROMPTS | {"model.layers": "[0]"}),
}


@pytest.fixture
def changed(dictionaries, tmp_path, files_in):
    """A copy of the study, and what has changed in it since; logs and the cache's targets aside."""
    folder = shutil.copytree(dictionaries, tmp_path / "study")

    def compare():
        after = files_in(folder)
        names = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
        return names - {"activations/hook_site_check.json", "activations/done.json"}

    def mark(name):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
        before[name] = b"mine"

    before = files_in(folder)
    return folder, mark, compare


@pytest.mark.parametrize("stage", STAGES)
def test_a_trial_run_changes_nothing(changed, arguments, stage):
    folder, _, compare = changed
    script, _, options = STAGES[stage]
    script.main(arguments(f"tiny/{stage}.yaml", folder, options | {"trainer.fast_dev_run": "true"}))
    assert compare() == set()


@pytest.mark.parametrize(
    "name", ["notes.txt", "merged/notes.txt", "train/data.csv", "layer_0/notes.txt"]
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_with_something_else_in_it_is_refused_before_the_run(
    changed, arguments, stage, name
):
    folder, mark, compare = changed
    script, output, options = STAGES[stage]
    mark(f"{output}/{name}")
    with pytest.raises(FileExistsError, match=name):
        script.main(arguments(f"tiny/{stage}.yaml", folder, options))
    assert compare() == set()


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("lora", {"model.lr": 1e20}),
        ("lora", {"model.lr": 1e20, "model.method": "full"}),
        ("base_model", {"model.lr": 1e20}),
        ("delta", {"model.lr": 1e30}),
        ("base_transcoder", {"model.lr": 1e30}),
    ],
)
def test_a_training_that_diverges_leaves_earlier_results(changed, arguments, stage, options):
    folder, _, compare = changed
    script, _, small = STAGES[stage]
    enough = {"trainer.max_steps": 12, "trainer.val_check_interval": 4}
    if stage in ("delta", "base_transcoder"):
        enough |= {"model.warmup_steps": 0, "model.clip_norm": "null"}
    with pytest.raises(ValueError, match="lower lr"):
        script.main(arguments(f"tiny/{stage}.yaml", folder, small | enough | options))
    assert compare() == set()


@pytest.mark.parametrize(
    ("stage", "options", "problem"),
    [
        ("lora", {"data.seed": 9, "model.target_modules": "[gate_prj]"}, "gate_prj"),
        ("lora", {"trainer.max_steps": 0}, "no step was trained"),
        ("base_model", {"trainer.max_steps": 0}, "no step was trained"),
        ("behaviour", {"trainer.limit_test_batches": 1}, "limit_test_batches"),
        ("activations", {"trainer.limit_predict_batches": 0.5}, "limit_predict_batches"),
        ("exp2a", {"trainer.strategy": "ddp_spawn", "trainer.devices": 2}, "use auto or ddp"),
        ("delta", {"trainer.strategy": "ddp_fork", "trainer.devices": 2}, "use auto or ddp"),
        ("lora", {"trainer.strategy": "ddp_spawn", "trainer.devices": 2}, "auto or ddp or fsdp"),
        ("corrections", {"ckpt_path": "any.ckpt"}, "cannot go on from a checkpoint"),
    ],
)
def test_a_refused_run_changes_nothing(changed, arguments, stage, options, problem):
    folder, _, compare = changed
    script, _, small = STAGES[stage]
    with pytest.raises(ValueError, match=problem):
        script.main(arguments(f"tiny/{stage}.yaml", folder, small | options))
    assert compare() == set()


def test_a_model_that_computes_no_numbers_has_no_table(changed, arguments):
    folder, _, compare = changed
    model = load_model(str(folder / "finetune/merged"))
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(folder / "finetune/merged")
    before = compare()
    with pytest.raises(ValueError, match=r"the cross-entropy of raw \(subset tool\) is nan"):
        evaluate.main(arguments("tiny/behaviour.yaml", folder, PROMPTS))
    assert compare() == before


def test_a_link_in_the_place_of_a_part_is_refused_before_the_run(changed, arguments, tmp_path):
    folder, _, compare = changed
    (tmp_path / "big").mkdir()
    (folder / "linked").mkdir()
    (folder / "linked" / "adapter").symlink_to(tmp_path / "big")
    where = {"model.output": folder / "linked", "data.output": folder / "linked"}
    with pytest.raises(FileExistsError, match="adapter"):
        train.main(arguments("tiny/lora.yaml", folder, SIZES | FEW | where))
    assert compare() == set()
    assert [p.name for p in (folder / "linked").iterdir()] == ["adapter"]


def test_a_linked_output_is_written_through(changed, arguments, tmp_path):
    folder, _, _ = changed
    (tmp_path / "big").mkdir()
    (folder / "mine").symlink_to(tmp_path / "big")
    where = {"model.output": folder / "mine", "data.output": folder / "mine"}
    train.main(arguments("tiny/lora.yaml", folder, SIZES | FEW | where))
    assert (folder / "mine").is_symlink()
    assert sorted(p.name for p in (tmp_path / "big").iterdir()) == [
        "adapter",
        "data",
        "done.json",
        "merged",
    ]


def test_logs_inside_of_an_output_are_refused(changed, arguments):
    folder, _, compare = changed
    options = SIZES | FEW | {"trainer.logger.save_dir": folder / "finetune"}
    with pytest.raises(ValueError, match="the logs would go to"):
        train.main(arguments("tiny/lora.yaml", folder, options))
    assert compare() == set()


LOGGERS = {
    "none": "false",
    "csv": "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: FOLDER}}",
    "two": "[{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: FOLDER}}, "
    "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: FOLDER}}]",
}


@pytest.mark.parametrize("loggers", LOGGERS)
@pytest.mark.parametrize("stage", ["lora", "delta", "corrections", "behaviour", "exp2a"])
def test_any_logger_several_or_none(changed, arguments, tmp_path, stage, loggers):
    folder, _, _ = changed
    script, output, options = STAGES[stage]
    options = options | {"trainer.log_every_n_steps": 1}
    options |= {"trainer.logger": LOGGERS[loggers].replace("FOLDER", str(tmp_path / "logs"))}
    script.main(arguments(f"tiny/{stage}.yaml", folder, options))
    assert (folder / output / "done.json").is_file()
    csv = list((tmp_path / "logs").rglob("metrics.csv"))
    assert len(csv) == (loggers != "none")
    events = (tmp_path / "logs").rglob("events.out.*")
    of_loggers = [path for path in events if not path.name.endswith(SUFFIX)]
    assert len(of_loggers) == (loggers == "two")
    if csv and stage in ("lora", "delta"):
        header = csv[0].read_text().splitlines()[0]
        assert {"lora": "train/loss", "delta": "fvu/layer_0"}[stage] in header
