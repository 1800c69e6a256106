"""Every command in the README and in docs/ runs: on a tiny study, or as far as it goes without weights.

`how` sorts them: what it does not know fails `test_every_command_is_on_a_list`.
"""

import importlib
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import train
from delta_transcoders.study import __main__ as study
from delta_transcoders.study.plan import Graph, outputs_of, recorded
from delta_transcoders.study.records import Record
from delta_transcoders.study.study_file import read_study

ROOT = Path(__file__).parent.parent
# docs/FINDINGS.md is made by `make findings`; docs/LOG.md says what was run, with the code of then.
PAGES = [
    *[p for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in ("FINDINGS.md", "LOG.md")],
    ROOT / "README.md",
]
PROGRAMS = "python|delta-transcoders|make|tensorboard|pip|source|circuit-tracer|hf|pytest"

ELSEWHERE = {  # followed to the letter by a test of the page
    "docs/NEW_TASK.md": "tests/test_tasks.py::test_the_page_on_new_tasks_followed_to_the_letter",
    "docs/NEW_FAMILY.md": "tests/delta_transcoders/families/test_new_family.py"
    "::test_the_page_on_new_families",
}
WITH_RULES = "needs rules: tests/delta_transcoders/features/rules"
NOT_RUN = {  # the beginning of a command, and why
    "python -m delta_transcoders.features.rules score": WITH_RULES,
    "python evaluate.py --config configs/tiny/unit_firing.yaml --model.rules": WITH_RULES,
    "git add rules/tiny": "needs a repository",
    "source .venv/bin/activate": "changes a shell",
    "pip wheel": "tests/test_installed.py builds the wheel",
    "pip install": "tests/test_installed.py installs the wheel",
    "circuit-tracer attribute": "another environment's: make interop attributes by its Python interface",
    "python study.py --config mine.yaml": "tests/test_own_study.py::test_through_study_py",
    "make demo TASK=capitals.yaml": "docs/NEW_TASK.md's file; the stages are run by tests/test_tasks.py",
    "make gpu": "needs a GPU: tests/devices runs the stages on an emulated one",
    "make full-shape": "20 minutes and 14 GB of memory",
    "make signals": "half an hour: tests/test_signals.py kills some of the stages",
    "make study-kills": "a quarter of an hour",
    "make help": "prints the list",
    "make interop-real": "a finished study of a real model: make interop is the same on the tiny one",
    "hf download USER/NAME": "the hub's",
    "delta-transcoders serve": "goes on until it is ended: tests/browser asks it",
}
OF_THE_BASE = {"base_model", "lora", "base_activations", "base_transcoder"}
SHRUNK = {  # options with which a stage of configs/tiny/ takes seconds
    "base_model": "--model.d_model 32 --model.d_mlp 64 --data.vocab_size 400 --data.n_documents 48 "
    "--data.n_validation 8 --trainer.max_steps 2 --trainer.val_check_interval 2",
    "lora": "--data.n_train 64 --data.n_validation 15 --data.n_evaluation 4 --data.batch_size 8 "
    "--trainer.max_steps 2 --trainer.val_check_interval 2",
    "behaviour": "--model.max_new_tokens 4",
    "base_activations": "--data.n_train 48 --data.n_validation 16",
    "base_transcoder": "--data.batch_tokens 128 --data.passes 4 --model.width 128",
    "activations": "--data.n_train 32 --data.n_validation 16",
    "delta": "--data.batch_tokens 128 --data.passes 2 --data.n_check_examples 8 "
    "--model.warmup_steps 2 --trainer.val_check_interval 4",
    "mlp_difference": "--data.batch_tokens 128 --data.passes 2 --model.warmup_steps 2 "
    "--trainer.val_check_interval 4",
    "delta_end_to_end": "--model.d_new 64 --model.budgets [2] --trainer.max_steps 4 "
    "--trainer.val_check_interval 1",
    "exp1": "--model.layers [0,1,all]",
    "exp2a": "--model.layers [0,all] --model.max_new_tokens 4",
    "exp2b": "--model.layers [all] --model.max_new_tokens 4",
    "base_floor": "--model.layers [all] --model.max_new_tokens 4",
    "ranking": "--data.n_per_subset 2 --model.layers [0]",
    "feature_curve": "--model.grid [2] --model.n_random 2 --model.max_new_tokens 4",
    "features": "",
    "unit_firing": "--model.n 1",
    "effects": "--data.n_per_subset 2 --model.first 2 --model.max_new_tokens 4",
    "transplant": "--model.max_new_tokens 4",
    "removal": "--model.n_draws 2 --model.max_new_tokens 4",
}


def commands_of(page: str) -> list[str]:
    """Lines of bash blocks and commands in the text, in order; `(NAME: a, b)` after one is filled in."""
    found = []
    inline = rf"`((?:\w+=\S+ )*(?:{PROGRAMS})\s[^`]+)`([^`|\n]*)"
    for match in re.finditer(rf"```(\w+)\n(.*?)```|{inline}", page, re.DOTALL):
        language, block, command, after = match.groups()
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                found.append(shlex.join(shlex.split(line, comments=True)))
        elif command:
            names = re.search(r"\(NAME: ([\w, ]+)", after) or re.search(r"{([\w,]+)}", command)
            for name in names[1].replace(" ", "").split(",") if names else [""]:
                filled = re.sub(r"NAME|{[\w,]+}", name, command) if name else command
                found.append(" ".join(filled.split()))
    return [command for command in dict.fromkeys(found) if command and "…" not in command]


COMMANDS = {
    path.relative_to(ROOT).as_posix(): commands_of(path.read_text("utf-8")) for path in PAGES
}
HERE = list(
    dict.fromkeys(
        command
        for page in ("docs/STAGES.md", *COMMANDS)  # in the order in which stages need each other
        if page not in ELSEWHERE
        for command in COMMANDS[page]
    )
)


def stage_of(command: str) -> str | None:
    found = re.search(r"--config configs/tiny/(\w+)\.yaml", command)
    return found and found[1]


def how(command: str) -> str | None:
    """`real`, `dry run`, `configuration`, `help`, `make`, `not run`, or None for what is on no list."""
    if any(command.startswith(start) for start in NOT_RUN):
        return "not run"
    words = program(command)
    match words:
        case ["make", *_]:
            return "make"
        case ["tensorboard", *_]:
            return "real"
        case ["study", *_]:
            return "dry run" if "--config" in words else "help"
        case ["train" | "evaluate", *_]:
            if "--config" not in words:
                return "help"
            alone = not {"--trainer.devices", "--print_config"} & set(words)
            return "real" if stage_of(command) in SHRUNK and alone else "configuration"
        case [module, *_] if module.startswith("delta_transcoders."):
            elsewhere = {
                "--push-to-hub",
                "--push",
                "GRAPHS/NAME.json",
                "docs",
            }  # the hub, a graph, this checkout
            return "real" if "runs/tiny" in command and not elsewhere & set(words) else "help"
        case [script, *_] if script.startswith("benchmarks/"):
            return "help"
    return None


def program(command: str) -> list[str]:
    """Its words, the same for a script of the checkout and for the installed program's command."""
    from lightning_modules.commands import MODULES

    words = shlex.split(command)
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    match words:
        case ["python", "train.py" | "evaluate.py" | "study.py" as script, *rest]:
            return [script.removesuffix(".py"), *rest]
        case ["python", "-m", module, *rest]:
            return [module, *rest]
        case ["delta-transcoders", "train" | "evaluate" | "study" as name, *rest]:
            return [name, *rest]
        case ["delta-transcoders", name, *rest] if name in MODULES:
            return [MODULES[name], *rest]
        case ["python", script, *rest]:
            return [script, *rest]
    return words


def of_kind(kind: str) -> list[str]:
    return [command for command in HERE if how(command) == kind]


def test_every_command_is_on_a_list():
    assert len(HERE) > 60
    assert [command for command in HERE if how(command) is None] == []


def test_no_list_has_a_line_too_many():
    for start in NOT_RUN:
        assert any(c.startswith(start) for cs in COMMANDS.values() for c in cs), start


@pytest.mark.parametrize("test", [*ELSEWHERE.values(), *NOT_RUN.values()])
def test_a_test_that_is_named_is_there(test):
    if named := re.search(r"(tests/[\w/]+)(\.py::(\w+))?", test):
        assert (ROOT / named[1]).is_dir() or (ROOT / f"{named[1]}.py").is_file()
        if named[3]:
            assert f"def {named[3]}(" in (ROOT / f"{named[1]}.py").read_text("utf-8")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty folder to work in as if it were the checkout."""
    for name in ("configs", "docs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", of_kind("make"))
def test_a_target_of_make_is_run_by_ci_or_is_a_study_that_could_run(command, checkout, capsys):
    recipe = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    if command not in (ROOT / ".ci/run").read_text("utf-8").splitlines():
        studies = re.findall(r"^\S*/python study\.py (.*)", recipe, re.MULTILINE)
        assert studies, f"{command}: CI does not run it, and it runs no study"
        for options in studies:
            options = re.sub(r"\$\(.*\)", "4 5", options)  # the seeds that a shell would fill in
            if "smollm2/study.yaml" in options:  # its seeds are a commit's, which may not be here
                options += " --unregistered"
            study.main([*shlex.split(options), "--dry-run"])
        assert " to run" in capsys.readouterr().out


@pytest.mark.parametrize("command", of_kind("dry run"))
def test_a_study_says_what_it_would_run(command, checkout, capsys):
    study.main([*program(command)[1:], "--dry-run"])
    assert capsys.readouterr().out
    assert not (checkout / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", of_kind("configuration"))
def test_a_configuration_can_be_read(command, checkout, capsys):
    name, *args = program(command)
    with pytest.raises(SystemExit) as stopped:
        {"train": train, "evaluate": evaluate}[name].main([*args, "--print_config"])
    assert not stopped.value.code
    assert "class_path" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", of_kind("help"))
def test_a_command_explains_itself(command):
    name = program(command)[0]
    how_to_run = ["-m", name] if name.startswith("delta_transcoders.") else [name]
    if name in ("train", "evaluate", "study"):
        how_to_run = [f"{name}.py"]
    shown = subprocess.run(
        [sys.executable, *how_to_run, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.startswith("usage: ")
    assert name != "delta_transcoders.export" or "--push-to-hub" in shown


@pytest.mark.slow
def test_the_base_of_a_tiny_study_by_hand(checkout, run):
    for command in of_kind("real"):
        if stage_of(command) in OF_THE_BASE:
            run(command)


@pytest.mark.slow
def test_the_rest_of_a_tiny_study_by_hand(checkout, run, dictionaries):
    """Stage by stage as docs/STAGES.md has them, then everything else that is said of runs/tiny."""
    shutil.copytree(dictionaries, checkout / "runs/tiny")
    for command in of_kind("real"):
        if stage_of(command) not in OF_THE_BASE:
            run(command)


def write_record(folder: str) -> None:
    """The record that `study.py` would have written of stages that were run by hand."""
    file = "configs/tiny/study.yaml"
    graph, record = Graph(read_study(file, folder=folder)), Record(folder, file)
    for name in ("base_model", "finetune", "base_transcoders", "delta", "exp2a"):
        step = graph.steps[name]
        record.start(name, {"run": name, "command": "", "began": 0.0, **recorded(step)})
        record.finish(name, {"outputs": outputs_of(step), "seconds": 0.0, "megabytes": 0.0})


@pytest.fixture
def run(checkout, monkeypatch):
    def run_(command: str) -> None:
        name, *args = program(command)
        if name == "tensorboard":
            assert any(Path(args[-1]).rglob("events.out*"))
        elif name in ("train", "evaluate"):
            small = shlex.split(SHRUNK[stage_of(command)])
            quiet = ["--trainer.enable_progress_bar", "false"]
            {"train": train, "evaluate": evaluate}[name].main([*args, *small, *quiet])
        else:
            if name.startswith("delta_transcoders.inspector."):
                write_record("runs/tiny")
            monkeypatch.setattr(sys, "argv", [name, *args])
            module = importlib.import_module(name)
            if hasattr(module, "__path__"):  # a package, run as `python -m` runs it
                module = importlib.import_module(f"{name}.__main__")
            assert not module.main()

    return run_
