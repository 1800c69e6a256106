"""The pass through all stages: where it works, what it leaves alone, what it says of a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from delta_transcoders.study.check.__main__ import main
from delta_transcoders.study.check.before import made_before, missing, there
from delta_transcoders.study.check.lines import Lines
from delta_transcoders.study.check.passing import Pass, shadow
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.study_file import read_study

FILE = "configs/study.yaml"


def read(file: str = FILE, **kwargs):
    study = read_study(file, **kwargs)
    return study, Graph(study)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_shadow_shows_all_but_what_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/mine/a/x", "runs/mine/given.txt", "runs/other/y", "configs/z"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    (tmp_path.parent / "beside.txt").write_text("beside")
    before = files_of(tmp_path)
    with shadow(["runs/mine", "runs/new/deep"], ["runs/mine/given.txt"]) as folder:
        assert Path.cwd() == folder != tmp_path
        assert Path("configs/z").read_text() == "configs/z"
        assert Path("runs/other/y").read_text() == "runs/other/y"
        assert os.listdir("runs/mine") == ["given.txt"]
        assert Path("../beside.txt").read_text() == "beside"
        Path("runs/mine/a").mkdir()
        Path("runs/mine/a/x").write_text("new")
        Path("runs/new/deep").mkdir(parents=True)
    assert not folder.exists()
    assert Path.cwd() == tmp_path
    assert files_of(tmp_path) == before


def test_every_stage_runs_and_nothing_changes(lab, study, capsys):
    study()
    before = files_of(lab.folder)
    capsys.readouterr()
    passed = Pass(*read()).run(Lines())
    assert files_of(lab.folder) == before
    assert list(passed) == ["a", "b", "c", "d"]
    assert all(one.seconds > 0 and one.megabytes > 0 for one in passed.values())
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == [
        f"  ✓ {name}" for name in "abcd"
    ]


def test_a_stage_that_fails_and_what_needs_it(lab, capsys):
    lab.write("configs/b.yaml", lab.read("configs/b.yaml") + "    slow: true\n")
    lab.write("mode.txt", "fail")
    lines = Lines()
    assert list(Pass(*read()).run(lines)) == ["a", "c"]
    shown = capsys.readouterr().out
    assert "  ✗ b: no luck  (" in shown
    assert "  – d: not tried, it needs b\n" in shown
    assert lines.n_failed == 1


def test_a_stage_that_writes_nothing(lab, capsys):
    lab.write("mode.txt", "write nothing")
    Pass(*read()).run(Lines())
    assert "  ✗ d: it wrote no output" in capsys.readouterr().out


STUDY = """
study: runs
stages:
  model:
    run: delta_transcoders.smollm2
    arguments: [models/base]
    writes: [models/base]
  text:
    run: delta_transcoders.report.comparisons
    arguments: [x]
    reads: [model]
    writes: ["${study}/text"]
    takes: {seconds: %d}
  a: {run: evaluate, config: a.yaml}
  pages:
    run: delta_transcoders.report.comparisons
    arguments: [x]
    reads: [a]
    writes: ["${study}/pages"]
    takes: {seconds: 900}
"""


def labels(steps) -> list[str]:
    return [step.stage.label for step in steps]


def test_what_must_be_made_before(lab):
    lab.write(FILE, STUDY % 10)
    _, graph = read()
    assert labels(made_before(graph)) == ["model", "text"]
    assert labels(missing(graph)) == ["model"]  # the text is made in the pass
    lab.write(FILE, STUDY % 600)
    _, graph = read()
    assert labels(missing(graph)) == ["model", "text"]
    lab.write("runs/text/x", "x")
    assert labels(there(graph)) == ["text"]
    assert labels(missing(graph)) == ["model"]


def test_an_output_outside_is_not_written(lab, capsys):
    lab.replace("configs/a.yaml", "${study}/a", str(lab.folder.parent / "a"))
    for name in "bc":
        lab.replace(f"configs/{name}.yaml", "${study}/a", str(lab.folder.parent / "a"))
    assert Pass(*read()).run(Lines()) == {}
    assert "/a: it lies outside of the working directory" in capsys.readouterr().out
    assert not (lab.folder.parent / "a").exists()


# The command


def test_parts_and_status(lab, capsys):
    assert main([FILE, "--until", "files"]) == 0
    shown = capsys.readouterr().out
    assert "access: the study makes all that it reads" in shown
    assert "✓ disk: 0.0 GB needed" in shown
    assert "\npass" not in shown
    assert main([FILE]) == 0
    shown = capsys.readouterr().out
    assert shown.index("\nsite") < shown.index("\npass") < shown.index("\nestimate")
    lab.write("mode.txt", "fail")
    assert main([FILE, "--until", "pass"]) == 1
    assert "1 of these lines say what to do first" in capsys.readouterr().out


def test_an_absolute_folder_is_left_alone(lab, tmp_path, capsys):
    assert main([FILE, "--study", str(tmp_path / "elsewhere")]) == 0
    assert not (tmp_path / "elsewhere").exists()
    assert "✓ d:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no.yaml"], "no study file 'no.yaml'"),
        ([FILE, "--only", "a"], "--only: check looks at the whole study"),
        ([FILE, "--jobs", "2"], r"--jobs is an option of study\.py alone"),
        ([FILE, "--unregistered"], r"--unregistered is an option of study\.py alone"),
        ([FILE, "--x"], "--x: no option"),
        ([FILE, "--z.model.lr", "1"], "there is no stage 'z'"),
    ],
)
def test_what_is_refused(lab, args, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(args)


def test_help_imports_nothing_slow():
    check = (
        "import sys\nfrom delta_transcoders.study.check.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "slow = {'torch', 'lightning', 'transformers', 'jsonargparse', 'pandas', 'peft'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("usage: delta-transcoders check")
    assert ended.stdout.splitlines()[-1] == "[]"
