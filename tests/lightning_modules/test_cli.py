"""What the command line makes of a configuration before anything is instantiated."""

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
                "data.copy_file": "~/lines.txt",
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
