"""A registered study: what it refuses, on which seeds it runs, and what it keeps."""

import json
import shutil
import subprocess

import pytest

from delta_transcoders.study.__main__ import main
from delta_transcoders.study.register import main as register
from delta_transcoders.study.registration import is_registered, plan_of
from delta_transcoders.study.seeds import registering_commit, seeds_of

FILE = "configs/registered.yaml"
STUDY = """\
study: runs/seeds
seeds: [0]
registered: docs/mine
studies:
  base: {config: base.yaml, study: runs/base, seed: 0}
  "${seed}":
    config: study.yaml
    stages: {c: null, d: null}
"""
BASE = """\
stages:
  shared:
    run: evaluate
    config: shared.yaml
    takes: {seconds: 60, megabytes: 500, memory_gb: 2}
"""
SHARED = """model:
  class_path: x.Y
  init_args: {output: "${study}/shared", table: configs/table.jsonl}
"""
FIGURE = "b/table.csv name=x value"
CLAIMS = {
    "docs/mine/REGISTERED.md": "# Claims\n",
    "docs/mine/findings_conditions.csv": "claim,figure,part,comparison,bound\n"
    f"one,{FIGURE},value,>,1\n",
    "docs/mine/findings.md.j2": "{{ f('shared/table.csv name=x value') }} {{ v('one') }}\n",
}


def git(*args: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.example")
    subprocess.run(["git", *identity, *args], check=True)


def commit() -> None:
    git("add", "docs")
    git("commit", "--quiet", "--message", "Register")


@pytest.fixture
def claims(lab):
    """Claims and a study file, not registered yet; every stage writes a table with one number."""
    lab.replace(
        "evaluate.py",
        "        files.write_text(folder",
        '        files.write_text(folder / "table.csv", "name,value\\nx,2\\n")\n'
        "        files.write_text(folder",
    )
    configs = {FILE: STUDY, "configs/base.yaml": BASE, "configs/shared.yaml": SHARED}
    for name, text in (configs | CLAIMS).items():
        lab.write(name, text)
    lab.write("configs/table.jsonl", "{}\n")
    git("init", "--quiet")
    return lab


@pytest.fixture
def registered(claims):
    register([FILE])
    commit()
    return claims


def seeds() -> list[int]:
    return seeds_of(registering_commit("docs/mine"), 5)


def run(*args: str) -> None:
    main(["--config", FILE, *args])


def test_the_plan_is_what_the_configurations_come_to(claims, capsys):
    register([FILE])
    plan = json.loads(claims.read("docs/mine/plan.json"))
    assert plan["stages"]["0/a"]["model.lr"] == 0.5
    assert plan["stages"]["base/shared"]["model.output"] == "runs/base/shared"
    assert list(plan["files"]) == ["configs/table.jsonl"]
    expected = {"stages": 1, "hours": 0.0, "gigabytes": 0.5, "memory_gb": 2}
    assert plan["guessed"]["once"] == expected | {"longest": "base/shared, 1 minutes"}
    assert plan["guessed"]["each seed"]["stages"] == 2
    assert "once: stages 1, hours 0.0, gigabytes 0.5" in capsys.readouterr().out
    # What a seed, a folder and a device change is no part of it.
    options = {"all": {"trainer.accelerator": "gpu", "trainer.devices": 2}}
    assert plan_of(FILE, options=options) == {k: plan[k] for k in ("stages", "files")}


def test_the_seeds_are_those_of_the_commit(registered, capsys):
    run("--dry-run")
    shown = capsys.readouterr().out
    labels = [f"{seed}/{stage}" for seed in seeds() for stage in "ab"]
    assert all(f"\n{label} " in shown for label in labels) and "\nbase/shared " in shown
    assert "\n0/a" not in shown
    run("--dry-run", "--seeds", str(seeds()[2]), "--all.trainer.accelerator", "gpu")
    assert f"\n{seeds()[2]}/a " in (shown := capsys.readouterr().out)
    assert f"\n{seeds()[0]}/a " not in shown
    with pytest.raises(
        ValueError, match=rf"--seeds 7: the registered seeds are {seeds()[0]} .*--un"
    ):
        run("--dry-run", "--seeds", str(seeds()[0]), "7")


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        (
            ("configs/a.yaml", "lr: 0.5", "lr: 0.25"),
            [],
            r"plan\.json: 0/a: model\.lr 0\.5 → 0\.25\. Reg",
        ),
        (("configs/a.yaml", "given.txt", "given.txt\n    x: 1"), [], r"model\.x nothing → 1"),
        ((FILE, "seed: 0}", "seed: 1}"), [], r"base/shared: seed_everything 0 → 1"),
        ((FILE, "c: null, d", "d"), [], r"0/c is not registered"),
        ((FILE, "d: null", "d: null, b: null"), [], r"0/b is missing"),
        (("configs/table.jsonl", "{}", "{ }"), [], r"configs/table\.jsonl \w{64} → "),
        (None, ["--a.model.lr", "1"], r"0/a: model\.lr 0\.5 → 1"),
        (
            None,
            ["--base/shared.trainer.precision", "16"],
            r"shared: trainer\.precision nothing → 16",
        ),
        (None, ["--task", "configs/task.yaml"], r"model\.task nothing → other"),
    ],
)
def test_another_plan_is_refused(registered, change, args, message):
    registered.write("configs/task.yaml", "model: {init_args: {task: other}}\n")
    if change:
        registered.replace(*change)
    with pytest.raises(ValueError, match=message) as error:
        run(*args)
    assert f"Register anew (python -m delta_transcoders.study.register {FILE})" in str(error.value)
    assert not (registered.folder / "runs").exists()
    run(*args, "--unregistered", "--dry-run")


def test_what_is_not_registered_is_refused(claims):
    with pytest.raises(
        FileNotFoundError, match=r"plan\.json does not exist: register it: python -m"
    ):
        run()
    register([FILE])
    with pytest.raises(
        ValueError, match=r"is registered in docs/mine: not committed, and so not reg"
    ):
        run()
    commit()
    run("--dry-run")
    claims.replace("docs/mine/plan.json", '"model.lr": 0.5', '"model.lr": 5')
    with pytest.raises(ValueError, match=r"plan\.json was changed by hand: register anew"):
        run()
    register([FILE])
    claims.write("docs/mine/REGISTERED.md", "# Other claims\n")
    with pytest.raises(
        ValueError, match=r"not committed, and so not registered: docs/mine/REGISTER"
    ):
        run()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (FILE, "registered: docs/mine\n", "", f"{FILE} is not to be registered: give `registered"),
        (FILE, "docs/mine", "docs/yours", r"no docs/yours/REGISTERED\.md: write the claims first"),
        (FILE, "seeds: [0]", "seed: 0", "is registered and has one seed: give `seeds`"),
        (
            FILE,
            "studies:",
            "include: base.yaml\nstudies:",
            "shared would get the first of the seeds",
        ),
        (
            "docs/mine/findings.md.j2",
            "shared/table",
            "shard/table",
            r"no stage of .* writes the table of 'shard/table\.csv name=x value' \(1 of 2 figures",
        ),
    ],
)
def test_what_cannot_be_registered(claims, file, old, new, message):
    claims.replace(file, old, new)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        register([FILE])
    assert not (claims.folder / "docs/mine/plan.json").exists()


def test_what_stages_leave_is_kept_after_each(registered, capfd):
    registered.write("mode.txt", "fail")
    registered.replace("configs/b.yaml", "output:", "slow: True\n    output:")
    register([FILE])
    commit()
    seed = str(seeds()[0])
    with pytest.raises(SystemExit):
        run("--seeds", seed)
    kept = registered.folder / "docs/mine/results"
    assert {path.name for path in kept.iterdir()} == {"base", seed}
    assert (kept / "base/shared/table.csv").read_text() == "name,value\nx,2\n"
    assert (kept / "base/figures.csv").read_text().splitlines()[1:] == [
        "shared/table.csv name=x value,2,2,2"
    ]
    record = json.loads((kept / seed / "study.json").read_text())
    assert list(record["stages"]) == ["a"] and not (kept / seed / "figures.csv").exists()
    registered.write("mode.txt", "")
    run("--seeds", seed)
    assert (kept / seed / "figures.csv").read_text().splitlines()[1:] == [f"{FIGURE},2,2,2"]
    written = (kept / seed / "done.json").read_text()
    # Killed before it was kept; and nothing is written where nothing is new.
    (kept / "base/study.json").unlink()
    run("--seeds", seed)
    assert "nothing to do" in capfd.readouterr().out
    assert (kept / "base/study.json").read_text() == registered.read("runs/base/study.json")
    assert (kept / seed / "done.json").read_text() == written


def test_what_is_kept_outlives_the_study_s_folder(registered, capfd):
    seed = str(seeds()[0])
    run("--seeds", seed)
    kept = registered.folder / "docs/mine/results" / seed
    before = {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()}
    shutil.rmtree("runs")
    run("--seeds", seed, "--until", f"{seed}/a")
    assert {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()} == before
    shown = capfd.readouterr().err
    assert f"results/{seed} holds results of b, which runs/seeds/{seed} has not finished" in shown
    assert "to replace it, remove it first" in shown
    run("--seeds", seed)  # all that was kept, anew
    assert (kept / "study.json").read_text() == registered.read(f"runs/seeds/{seed}/study.json")
    shutil.rmtree("runs")
    shutil.rmtree(kept)
    run("--seeds", seed, "--until", f"{seed}/a")
    assert list(json.loads((kept / "study.json").read_text())["stages"]) == ["a"]


def test_a_figure_that_is_not_in_its_table_ends_no_study(registered, capfd):
    name = "docs/mine/findings_conditions.csv"
    registered.replace(name, "name=x", "name=y")
    register([FILE])
    commit()
    run("--seeds", str(seeds()[0]))
    shown = capfd.readouterr().err
    assert "1 figures are not there: 0 rows, not one, are b/table.csv name=y value" in shown
    assert f"warning: docs/mine/results/{seeds()[0]} lacks something of runs/seeds/" in shown


def test_development_is_not_on_registered_seeds(claims):
    args = ("--unregistered", "--dry-run", "--seeds")
    register([FILE])
    run(*args, "123456")
    commit()
    run(*args, "123456")
    with pytest.raises(ValueError, match=rf"--seeds {seeds()[1]}: .* registered in docs/mine: gi"):
        run(*args, "123456", str(seeds()[1]))


def test_an_edit_of_the_claims_frees_no_registered_seed(registered):
    seed = str(seeds()[0])
    registered.write("docs/mine/REGISTERED.md", "# Claims that are being edited\n")
    with pytest.raises(ValueError, match=rf"--seeds {seed}: it is one of the seeds registered"):
        run("--unregistered", "--dry-run", "--seeds", seed)


def test_where_git_cannot_say_whether_a_seed_is_registered(registered, monkeypatch):
    args = ("--unregistered", "--dry-run")
    seed = str(seeds()[0])
    assert is_registered("docs/mine")
    # As in a clone without history.
    registered.write(".git/shallow", registering_commit("docs/mine") + "\n")
    with pytest.raises(ValueError, match=r"is not known: .* docs/mine: git fetch --unshallow"):
        run(*args, "--seeds", seed)
    with pytest.raises(ValueError, match="git fetch --unshallow"):
        is_registered("docs/mine")
    run(*args)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"git is not installed, .*: install it"):
        run(*args, "--seeds", seed)
    with pytest.raises(ValueError, match=r"git is not installed, .*: install it"):
        is_registered("docs/mine")


def test_an_installed_program_says_that_it_needs_the_checkout(registered):
    shutil.rmtree("docs")
    with pytest.raises(
        FileNotFoundError, match=r"registered in docs/mine, which is not here: run it in a checkout"
    ):
        run()


def test_development_keeps_nothing(registered):
    run("--unregistered", "--a.model.lr", "1")
    assert (registered.folder / "runs/seeds/0/b/text.txt").is_file()
    assert not (registered.folder / "docs/mine/results").exists()
    with pytest.raises(ValueError, match=r"--unregistered: configs/study\.yaml is not registered"):
        main(["--config", "configs/study.yaml", "--unregistered"])
