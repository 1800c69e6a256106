"""What is run, what is not, and what comes of an interruption."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile
from collections import namedtuple

import pytest

from delta_transcoders import files
from delta_transcoders.study import steps
from delta_transcoders.study.__main__ import main

ALL = ["a", "b", "c", "d"]


def test_a_study_is_run_once(lab, study):
    assert study() == dict.fromkeys(ALL, "never run")
    names = [text for text in lab.read("runs/d/text.txt").split("; ") if text[0] != "-"]
    assert [name.removeprefix("${study}/") for name in names] == [
        "d",
        "b",
        "a",
        "given",
        "c",
        "a",
        "given",
    ]
    record = json.loads(lab.read("runs/study.json"))
    assert record["file"] == "configs/study.yaml"
    done = record["stages"]["b"]["done"]
    assert done["run"] == json.loads(lab.read("runs/b/done.json"))["run"]
    assert done["inputs"] == {"${study}/a": record["stages"]["a"]["done"]["run"]}
    before = lab.read("runs/study.json")
    assert study() == {}
    assert lab.read("runs/study.json") == before


def test_a_changed_option_runs_what_depends_on_it(lab, study):
    study()
    lab.replace("configs/b.yaml", "class_path", "lr_unused: 1\n  class_path")
    assert study() == {"b": "model.lr_unused nothing → 1", "d": "after b"}
    lab.replace("configs/a.yaml", "lr: 0.5", "lr: 0.25")
    assert study("--dry-run") == {
        "a": "model.lr 0.5 → 0.25",
        "b": "after a",
        "c": "after a",
        "d": "after b, c",
    }
    assert study("--until", "c") == {"a": "model.lr 0.5 → 0.25", "c": "after a"}
    assert study() == {"b": "input changed: ${study}/a", "d": "after b"}
    assert study() == {}


def test_options_of_the_command_line_go_to_the_command_and_into_the_record(lab, study):
    study("--b.model.lr", "0.1", "--all.model.sizes=[1, 2]")
    assert "; --model.lr 0.1; --model.sizes [1, 2]; --seed" in "; " + lab.read("runs/b/text.txt")
    assert study("--b.model.lr", "0.1", "--all.model.sizes=[1, 2]") == {}
    assert study("--all.model.sizes=[1, 2]") == {"b": "model.lr 0.1 → nothing", "d": "after b"}


def test_what_is_read_from_elsewhere_is_watched(lab, study):
    study()
    lab.write("given.txt", "other")
    assert study() == {
        "a": "input changed: given.txt",
        "b": "after a",
        "c": "after a",
        "d": "after b, c",
    }
    os.utime("given.txt")  # the same bytes
    assert study() == {}


def test_an_output_without_its_record_is_made_again(lab, study):
    study()
    shutil.rmtree("runs/b")
    assert study() == {"b": "its output is missing", "d": "after b"}
    record = json.loads(lab.read("runs/study.json"))
    del record["stages"]["c"]
    lab.write("runs/study.json", json.dumps(record))
    assert study() == {"c": "its output has no record", "d": "after c"}
    # A command typed by hand, with another option.
    os.system("python train.py --config configs/c.yaml --study runs --seed_everything 1")
    assert study() == {"c": "its output was changed by something else", "d": "after c"}


def test_an_output_that_lost_a_file_is_made_again(lab, study):
    study()
    os.remove("runs/b/text.txt")
    assert study() == {"b": "its output was changed by something else", "d": "after b"}
    assert study() == {}


def test_files_of_others_are_refused_before_the_first_stage(lab, study):
    study()
    lab.write("runs/b/text.txt", "changed by hand")
    with pytest.raises(FileExistsError, match=r"'runs/b' holds text.txt, which no stage wrote"):
        study("--a.model.lr", "2")
    assert "--model.lr" not in lab.read("runs/a/text.txt")
    os.remove("runs/b/text.txt")
    lab.write("runs/d/notes.txt", "mine")
    with pytest.raises(FileExistsError, match=r"'runs/d' holds notes.txt, which no stage wrote"):
        study("--dry-run")
    os.remove("runs/d/notes.txt")
    assert list(study()) == ["b", "d"]


def test_a_file_that_is_added_to_an_output_changes_nothing(lab, study):
    study()
    files.write_text("runs/a/more.txt", "added later, as residuals are to a cache")
    assert "more.txt" in json.loads(lab.read("runs/a/done.json"))["files"]
    assert study() == {}


def test_a_study_s_folder_can_be_moved(lab, study):
    study()
    os.rename("runs", "elsewhere")
    assert study("--study", "elsewhere") == {}


def test_only_one_stage(lab, study):
    with pytest.raises(FileNotFoundError, match=r"c reads runs/a, which is not there: run a first"):
        study("--only", "c")
    study("--until", "a")
    assert study("--only", "c") == {"c": "never run"}


def test_a_stage_that_fails_stops_the_study(lab, study):
    lab.write("mode.txt", "fail")
    process = lab.start()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "error: no luck" in err
    lab.write("mode.txt", "")
    assert study() == {"d": "not finished"}


def test_an_exit_status_alone_finishes_nothing(lab, study):
    study()
    lab.replace("configs/d.yaml", "slow: True", "slow: True\n    lr: 1")
    lab.write("mode.txt", "write nothing")
    process = lab.start()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "error: d ended without writing its output" in err
    lab.write("mode.txt", "")
    assert study() == {"d": "not finished"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stage_and_then_the_study(lab, study, signum):
    lab.write("mode.txt", "sleep")
    process = lab.start()
    wait_for(lab, "runs/.d.partial")
    process.send_signal(signum)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert err.splitlines()[-1] == (
        f"stopped by {signum.name}. Go on with: python study.py --config configs/study.yaml"
    )
    assert "[4/4] d: python train.py --config configs/d.yaml --study runs" in out
    lab.write("mode.txt", "")
    assert study() == {"d": "not finished"}


def wait_for(lab, name):
    for _ in range(200):
        if (lab.folder / name).exists():
            time.sleep(0.1)
            return
        time.sleep(0.05)
    raise AssertionError(f"no {name}")


def test_two_runs_on_one_folder(lab, study):
    lab.write("mode.txt", "sleep")
    first = lab.start()
    wait_for(lab, "runs/.d.partial")
    with pytest.raises(FileExistsError, match="another run is working on runs"):
        study()
    # The study is killed and its stage is not: it still writes.
    first.kill()
    first.wait()
    with pytest.raises(FileExistsError, match="or a stage that it started still is"):
        study()
    os.killpg(first.pid, signal.SIGKILL)
    for stream in (first.stdout, first.stderr):
        stream.read()  # until the stage has ended
    lab.write("mode.txt", "")
    assert study() == {"d": "not finished"}


def test_a_training_goes_on_from_its_newest_whole_checkpoint(lab, study):
    lab.write("mode.txt", "sleep")
    process = lab.start()
    wait_for(lab, "runs/.d.partial")
    logs = lab.folder / "runs/logs/d/checkpoints"
    logs.mkdir(parents=True)
    for name in ("last.ckpt", "stopped.ckpt"):
        with zipfile.ZipFile(logs / name, "w") as archive:
            archive.writestr("state", name * 100)
    torn = (logs / "stopped.ckpt").read_bytes()[:-20]
    (logs / "stopped.ckpt").write_bytes(torn)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    lab.write("mode.txt", "")
    assert study("--dry-run") == {"d": "not finished; goes on from last.ckpt"}
    # Another configuration does not go on from there.
    assert study("--dry-run", "--d.model.lr", "1") == {"d": "never run"}
    study()
    assert lab.read("runs/resumed.txt") == "runs/logs/d/checkpoints/last.ckpt"
    assert study() == {}


def test_a_checkpoint_of_an_earlier_run_is_not_gone_on_from(lab, study):
    logs = lab.folder / "runs/logs/d/checkpoints"
    logs.mkdir(parents=True)
    with zipfile.ZipFile(logs / "last.ckpt", "w") as archive:
        archive.writestr("state", "old")
    os.utime(logs / "last.ckpt", (1, 1))
    lab.write("mode.txt", "fail")
    with pytest.raises(SystemExit):
        study()
    lab.write("mode.txt", "")
    assert study() == {"d": "not finished"}
    assert not (lab.folder / "runs/resumed.txt").exists()


def test_what_was_finished_while_the_study_was_killed_counts(lab, study):
    study()
    record = json.loads(lab.read("runs/study.json"))
    done = record["stages"]["d"].pop("done")
    started = {key: done[key] for key in ("run", "config", "inputs", "began", "command")}
    record["stages"]["d"]["started"] = started
    lab.write("runs/study.json", json.dumps(record))
    assert study() == {}


def test_sigkill_at_random_moments(lab, study):
    lab.write("mode.txt", "nap")
    rng = random.Random(0)
    kills = 0
    for _ in range(12):
        process = lab.start()
        try:
            process.communicate(timeout=rng.uniform(0.2, 0.7))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    assert kills, process.communicate()
    study()
    result = lab.read("runs/d/text.txt")
    assert study() == {}
    assert study("--study", "undisturbed") == dict.fromkeys(ALL, "never run")
    assert lab.read("undisturbed/d/text.txt") == result


def test_what_a_stage_adds_to_its_cache_is_counted(lab, study):
    """As the delta stage adds its targets."""
    lab.replace(
        "train.py",
        "        files.write_text(folder",
        """        if "/b" in given["output"]:
            files.write_text(Path(args["--study"], "a", "more.txt"), "x" * 3_000_000)
        files.write_text(folder""",
    )
    lab.replace("configs/study.yaml", "b: {run: evaluate", "b: {run: train")
    data = 'data: {class_path: x.Z, init_args: {cache: "${study}/a"}}\n'
    lab.write("configs/b.yaml", lab.read("configs/b.yaml") + data)
    study()
    done = json.loads(lab.read("runs/study.json"))["stages"]
    assert done["b"]["done"]["megabytes"] == pytest.approx(3, abs=0.01)
    assert done["c"]["done"]["megabytes"] < 0.01


def test_each_stage_s_commit_is_noted(lab, study, monkeypatch):
    commits = iter("1234")
    monkeypatch.setattr(steps, "environment", lambda variables: {"commit": next(commits)})
    study()
    record = json.loads(lab.read("runs/study.json"))["stages"]
    found = [stage["done"]["environment"]["commit"] for stage in record.values()]
    assert found == ["1", "2", "3", "4"]


def test_the_most_memory_of_a_stage_is_noted_and_planned(lab, study, capsys):
    lab.replace(
        "evaluate.py",
        "        options =",
        "        taken = bytearray(300_000_000)\n        options =",
    )
    lab.replace("configs/study.yaml", "config: d.yaml", "config: d.yaml, takes: {memory_gb: 7}")
    assert study("--dry-run") == dict.fromkeys(ALL, "never run")
    lab.start().communicate(
        timeout=20
    )  # a process that forks counts before it becomes another program
    done = {k: s["done"] for k, s in json.loads(lab.read("runs/study.json"))["stages"].items()}
    assert 0.3 < done["a"]["memory_gb"] < 0.6 and done["d"]["memory_gb"] < 0.2
    main(["--config", "configs/study.yaml", "--dry-run", "--a.model.lr", "1"])
    *_, head, _, _, _, _, together = capsys.readouterr().out.strip().splitlines()
    assert head.split("  ")[-2:] == ["GB of memory", "why"]
    assert float(together.split()[-1]) == pytest.approx(done["a"]["memory_gb"], abs=0.15)


def test_what_was_never_measured_is_not_nought(lab, study, capsys):
    lab.replace("configs/study.yaml", "config: d.yaml", "config: d.yaml, takes: {seconds: 7}")
    assert study("--dry-run") == dict.fromkeys(ALL, "never run")
    main(["--config", "configs/study.yaml", "--dry-run"])
    together = capsys.readouterr().out.strip().splitlines()[-1]
    assert together.split() == ["together", "at", "least", "7", "?"]


def test_no_room_on_the_disk(lab, study, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 5e6))
    lab.replace("configs/study.yaml", "config: d.yaml", "config: d.yaml, takes: {megabytes: 7}")
    with pytest.raises(OSError, match="take 7 MB, and 5 MB are free in"):
        study()
    assert not (lab.folder / "runs/a").exists()
    # An interrupted capture has taken some of it already.
    staged = files.start_output("runs/d", "${study}/d", made_from={})
    (staged / "shard").write_bytes(bytes(3_000_000))
    files.leave_output("runs/d")
    assert study() == dict.fromkeys(ALL, "never run")
