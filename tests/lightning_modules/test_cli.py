"""What the command line makes of a configuration before anything is instantiated."""

import re
import subprocess
import sys

import pytest
import yaml

import evaluate
import train
from delta_transcoders.command import run
from lightning_modules.cli import StudyCLI


class ParseOnly(StudyCLI):
    def instantiate_classes(self) -> None:
        pass


def texts(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts(part)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (
            "lora",
            {
                "data.jsonl": "~/mine.jsonl",
                "task.copy_file": "~/lines.txt",
                "ckpt_path": "~/a.ckpt",
            },
        ),
        ("behaviour", {"model.models": "{raw: ~/a, base_model: ~/b}", "data.model": "~/a"}),
        ("exp2a", {"model.deltas": "[~/delta, ~/other]", "model.base_transcoders": "~/bases"}),
        ("controls", {"model.controls": "{steering: ~/steering}", "model.output": "~/out"}),
        (
            "activations",
            {"trainer.callbacks.init_args.output": "~/cache", "data.examples": "~/data"},
        ),
        ("delta_behaviour", {"data.cache": "~/cache", "trainer.logger.save_dir": "~/logs"}),
    ],
)
def test_the_home_folder_is_spelt_out_everywhere(home, arguments, config, options):
    cli = ParseOnly(arguments(f"tiny/{config}.yaml", "~/study", options))
    stage = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    values = texts(stage)
    assert not [value for value in values if value.startswith("~")]
    assert stage["study"] == f"{home}/study"
    for value in options.values():
        for path in (word.strip("{}[],") for word in value.split()):
            if path.startswith("~"):
                assert f"{home}{path[1:]}" in values


def test_a_file_too_may_say_it_and_only_at_the_start(home, arguments, tmp_path):
    (tmp_path / "more.yaml").write_text(
        "model: {init_args: {models: {raw: ~/raw, base_model: 'a/~/b', third: '~c'}}}\n"
    )
    args = arguments("tiny/behaviour.yaml", "runs/x", {"model.dtype": "bfloat16"})
    cli = ParseOnly([*args, f"--config={tmp_path / 'more.yaml'}"])
    models = cli.config.model.init_args.models
    assert models == {"raw": f"{home}/raw", "base_model": "a/~/b", "third": "~c"}


def test_a_stage_reads_and_writes_there(home, study, arguments, tmp_path):
    (home / "study").symlink_to(study)
    options = {"data.subsets": "[tool]", "model.max_new_tokens": 2, "model.output": "~/results"}
    evaluate.main(arguments("tiny/behaviour.yaml", "~/study", options))
    assert (home / "results" / "metrics.csv").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("module", ["report.summary", "report.html", "export"])
def test_other_commands_understand_it_too(home, pytestconfig, module):
    """In `--option=~/folder` no shell has replaced it."""
    args = (
        ["--run=~/none", "--format", "deltas", "--out", "~/out"]
        if module == "export"
        else ["~/none"]
    )
    ended = subprocess.run(
        [sys.executable, "-m", f"delta_transcoders.{module}", *args],
        env={"HOME": str(home), "PYTHONPATH": str(pytestconfig.rootpath)},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert "~" not in ended.stdout + ended.stderr
    assert str(home / "none") in ended.stdout + ended.stderr
    assert not (home / "~").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_configuration_of_another_encoding_is_named(tmp_path, capsys, monkeypatch, encoding):
    monkeypatch.delenv("DELTA_TRACEBACK", raising=False)
    (tmp_path / "mine.yaml").write_bytes("study: a\n# café\n".encode(encoding))
    with pytest.raises(SystemExit) as end:
        run(lambda: train.main(["--config", str(tmp_path / "mine.yaml")]))
    assert end.value.code == 2
    line = 2 if encoding == "cp1252" else 1
    assert f"mine.yaml, line {line}: not UTF-8" in capsys.readouterr().err


# What the stages of a folder share

PARTS = """
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.tasks.task import Task
from lightning import LightningDataModule, LightningModule

class Words(Examples):
    def __init__(self, folder: str, n: int = 3): self.folder, self.n = folder, n

class Letters(Words):
    def __init__(self, folder: str): super().__init__(folder, 1)

class Data(LightningDataModule):
    def __init__(self, task: Task, subsets: list[str] | None = None):
        super().__init__()
        self.save_hyperparameters(ignore=["task"])
        self.task = task

class Model(LightningModule):
    def __init__(self, subsets: list[str] | None = None):
        super().__init__()
        self.save_hyperparameters()
"""
DEFAULTS = """
study: first
task: {class_path: parts_of_a_test.Words, init_args: {folder: "${study}/words"}}
subsets: [one, two]
trainer:
  accelerator: cpu
  default_root_dir: ${study}/logs/${stage}
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: "${study}/logs", name: "${stage}", version: ""}
"""
STAGE = """
model:
  class_path: parts_of_a_test.Model
  init_args: {subsets: "${subsets}"}
data:
  class_path: parts_of_a_test.Data
  init_args: {task: "${task}", subsets: "${subsets}"}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with `configs/{defaults,stage}.yaml`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts_of_a_test.py").write_text(PARTS)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/defaults.yaml").write_text(DEFAULTS)
    (tmp_path / "configs/stage.yaml").write_text(STAGE)
    return tmp_path


def test_a_stage_takes_its_folders_defaults_and_refers_to_them(folder):
    cli = StudyCLI(["--config", "configs/stage.yaml"])
    task = cli.datamodule.task
    assert (type(task).__name__, task.folder, task.n) == ("Words", "first/words", 3)
    assert cli.model.hparams.subsets == cli.datamodule.hparams.subsets == ["one", "two"]
    assert cli.trainer.default_root_dir == "first/logs/stage"
    assert (cli.trainer.logger.save_dir, cli.trainer.logger.name) == ("first/logs", "stage")
    assert cli.config.trainer.devices == "auto"  # what nobody names is Lightning's own


def test_a_second_configuration_and_the_command_line_go_over_them(folder):
    other = {"class_path": "parts_of_a_test.Letters", "init_args": {"folder": "${study}/letters"}}
    (folder / "other.yaml").write_text(yaml.safe_dump({"study": "second", "task": other}))
    both = ["--config", "configs/stage.yaml", "--config", "other.yaml"]
    cli = StudyCLI([*both, "--subsets", "[three]", "--trainer.logger.name", "named"])
    task = cli.datamodule.task
    assert (type(task).__name__, task.folder, task.n) == ("Letters", "second/letters", 1)
    assert cli.model.hparams.subsets == ["three"]
    assert cli.trainer.default_root_dir == "second/logs/stage"
    assert (cli.trainer.logger.save_dir, cli.trainer.logger.name) == ("second/logs", "named")
    cli = StudyCLI(["--config", "configs/stage.yaml", "--stage=mine", "--trainer.logger=false"])
    assert cli.trainer.default_root_dir == "first/logs/mine"
    assert cli.trainer.loggers == []


def test_a_configuration_elsewhere_has_the_defaults_beside_it_alone(folder):
    (folder / "mine.yaml").write_text("model: {class_path: parts_of_a_test.Model}\n")
    cli = ParseOnly(["--config", "mine.yaml"])
    assert (cli.config.task, cli.config.trainer.logger) == (None, None)
    cli = ParseOnly(["--config", "configs/defaults.yaml", "--config", "mine.yaml"])
    assert cli.config.trainer.default_root_dir == "first/logs/mine"
    assert cli.config.trainer.logger.class_path == "lightning.pytorch.loggers.CSVLogger"


def test_the_whole_configuration_is_shown_and_can_be_given_back(folder, capsys):
    with pytest.raises(SystemExit):
        StudyCLI(["--config", "configs/stage.yaml", "--print_config"])
    shown = capsys.readouterr().out
    assert "${" not in shown
    (folder / "shown.yaml").write_text(shown)
    first, second = (ParseOnly(["--config", f]) for f in ("configs/stage.yaml", "shown.yaml"))
    for key in ("study", "stage", "seed_everything", "task", "subsets", "model", "trainer"):
        assert first.config[key] == second.config[key]
    assert second.config.data.init_args.task.init_args.folder == "first/words"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  acelerator: cpu\n", "no option 'acelerator'; did you mean 'accelerator'?"),
        ("sead_everything: 1\n", "no option 'sead_everything'; did you mean 'seed_everything'?"),
        ("study: [a\n", "configs/defaults.yaml, line 12: not YAML"),
        ("seed_everything: many\n", "--seed_everything is many, expected bool or int"),
    ],
)
def test_an_error_in_the_defaults_is_one_short_line(folder, text, message):
    (folder / "configs/defaults.yaml").write_text(DEFAULTS + text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        train.main(["--config", "configs/stage.yaml"])
    assert "\n" not in str(error.value)
