"""Other tasks than the calculator: through the whole tiny pipeline, and as docs/NEW_TASK.md has them."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import evaluate
import train
from delta_transcoders.report.tables import read_metrics

QUICK = {
    "train": {
        "lora": {
            "trainer.max_steps": 2,
            "trainer.val_check_interval": 1,
            "data.batch_size": 8,
            "data.n_evaluation": 4,
        },
        "delta": {},
    },
    "evaluate": {"behaviour": {"model.max_new_tokens": 4}},
}
EXPERIMENTS = {
    "exp1": {"model.layers": "[0,1,all]"},
    "exp2a": {"model.layers": "[all]", "model.max_new_tokens": 4},
    "exp2b": {"model.layers": "[all]", "model.max_new_tokens": 4},
}


@pytest.fixture
def here(pytestconfig, tmp_path, monkeypatch, dictionaries):
    """An empty folder to work in as if it were a checkout, with a base model and its dictionaries."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(pytestconfig.rootpath / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def with_base(name: str):
        study = tmp_path / "runs" / name
        for part in ("base_model", "base_transcoders"):
            shutil.copytree(dictionaries / part, study / part)
        return study

    return with_base


# A task with a class of its own: how often a thing is counted aloud.
ALOUD = """
from delta_transcoders.tasks.examples import Examples

class Aloud(Examples):
    def __init__(self, jsonl: str) -> None:
        super().__init__(jsonl, judge="exact", opening="one")

    def judge(self, text, example):
        few = example.subset == "few"
        return super().judge(text, example) | {"long": len(text) > 9 if few else None}
"""
ALOUD_YAML = """
task: {class_path: aloud.Aloud, init_args: {jsonl: aloud.jsonl}}
subsets: null
"""


def write_aloud(folder: Path) -> None:
    rows = [
        {"prompt": f"Count {n} {things}.\n", "target": " ".join(["one", "more"][: n % 2 + 1] * n)}
        | {"subset": "few" if n < 4 else "many"}
        for n in (1, 2, 3, 5, 6, 7)
        for things in ("lamps", "books", "boxes", "chairs", "apples", "letters", "keys", "maps")
    ]
    (folder / "aloud.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "aloud.py").write_text(ALOUD)
    (folder / "aloud.yaml").write_text(ALOUD_YAML)


@pytest.mark.parametrize(
    ("name", "config", "measures", "subsets"),
    [
        ("json", "configs/tasks/json.yaml", ["valid_json", "has_fields"], {"json", "copy"}),
        ("refusal", "configs/tasks/refusal.yaml", ["refusal"], {"private", "public"}),
        ("aloud", "aloud.yaml", ["exact_match", "long"], {"few", "many"}),
    ],
)
def test_a_task_goes_through_the_whole_study_by_one_yaml(
    here, arguments, delta_options, tmp_path, name, config, measures, subsets
):
    study = here(name)
    write_aloud(tmp_path)
    task = ["--config", config]

    def run(program, stage: str, options: dict) -> None:
        program.main([*arguments(f"tiny/{stage}.yaml", study, options), *task])

    run(train, "lora", QUICK["train"]["lora"])
    run(evaluate, "behaviour", {"model.max_new_tokens": 4})
    run(evaluate, "activations", {"data.n_train": 32, "data.n_validation": 16})
    run(train, "delta", delta_options)
    for stage, options in EXPERIMENTS.items():
        run(evaluate, stage, options)
    for stage in ("behaviour", "exp2a", "exp2b"):
        rows = read_metrics(study / stage / "metrics.csv")
        found = [column.removesuffix("_rate") for column in rows[0] if column.endswith("_rate")]
        assert found == measures
        assert {row["subset"] for row in rows} == subsets
        assert all(row[f"{measures[0]}_n"] == row["n_examples"] for row in rows)
        if name == "aloud":
            assert all(row["long_n"] == "0" for row in rows if row["subset"] == "many")
        line = json.loads((study / stage / "generations.jsonl").read_text().splitlines()[0])
        assert set(measures) < line.keys()
        assert isinstance(line["prompt"], list) == (name == "refusal")
    assert read_metrics(study / "exp1" / "metrics.csv")[0]["opening_logprob"]
    assert {p.stem for p in (study / "exp2a" / "plots").glob("*.png")} >= {"rates_per_layer"}


def test_the_page_on_new_tasks_followed_to_the_letter(here, pytestconfig, tmp_path):
    page = (pytestconfig.rootpath / "docs" / "NEW_TASK.md").read_text()
    commands = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL):
        if file := re.match(r"# file: (\S+)\n", block):
            (tmp_path / file[1]).write_text(block[file.end() :])
        elif language == "bash":
            commands += block.splitlines()
    assert len(commands) == 4
    for name in ("capitals", "one_word"):
        here(name)
    for command in commands:
        _, script, *args = shlex.split(command)
        stage = re.search(r"tiny/(\w+)\.yaml", command)[1]
        quick = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
        quick |= QUICK[script.removesuffix(".py")][stage]
        program = {"train.py": train, "evaluate.py": evaluate}[script]
        program.main([*args, *(f"--{key}={value}" for key, value in quick.items())])
    for name, measures in (
        ("capitals", ["contains_target"]),
        ("one_word", ["exact_match", "one_word"]),
    ):
        rows = read_metrics(tmp_path / "runs" / name / "behaviour" / "metrics.csv")
        assert [c.removesuffix("_n") for c in rows[0] if c.endswith("_n")] == measures
        assert {row["subset"] for row in rows} == {"europe", "asia"}
