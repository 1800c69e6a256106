"""Several stages at once; one after the other they are in test_running.py."""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest

from delta_transcoders.study import __main__ as shown
from delta_transcoders.study import steps, turns
from delta_transcoders.study.__main__ import main

ALL = ["a", "b", "c", "d"]
HOOK = """
        hook = Path(given["output"].rpartition("/")[2] + ".py")
        if hook.is_file():
            exec(hook.read_text())
        files.write_text(folder"""
MEET = """
signal.alarm(20)  # not for ever, if the other one never comes
Path("{0}.there").touch()
while not Path("{1}.there").exists():
    time.sleep(0.01)
signal.alarm(0)
"""


@pytest.fixture
def meeting(lab):
    """b and c wait for each other: alone, neither ends. Both can do more, by `b.py` and `c.py`."""
    lab.replace("evaluate.py", "\n        files.write_text(folder", HOOK)
    lab.write("b.py", MEET.format("b", "c"))
    lab.write("c.py", MEET.format("c", "b"))
    return lab


def add(lab, name, text):
    lab.write(name, lab.read(name) + text)


def done(lab, study="runs"):
    record = json.loads(lab.read(f"{study}/study.json"))["stages"]
    return {name: stage["done"] for name, stage in record.items() if "done" in stage}


def wait_for(*names):
    for _ in range(400):
        if all(map(os.path.exists, names)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {names}")


def test_stages_run_at_once_and_wait_for_what_they_need(meeting, study):
    assert study("--jobs", "2") == dict.fromkeys(ALL, "never run")
    for name in ("b", "c"):
        os.remove(f"{name}.py")
    assert study("--study", "singly") == dict.fromkeys(ALL, "never run")
    for name in ALL:
        assert meeting.read(f"runs/{name}/text.txt") == meeting.read(f"singly/{name}/text.txt")
    several, singly = done(meeting), done(meeting, "singly")
    assert list(several) == list(singly) == ALL
    for name in ALL:
        keys = ("config", "megabytes")
        assert [several[name][key] for key in keys] == [singly[name][key] for key in keys]
        assert several[name]["inputs"].keys() == singly[name]["inputs"].keys()
    assert several["b"]["began"] < several["c"]["began"] + several["c"]["seconds"]
    assert several["d"]["inputs"] == {f"${{study}}/{n}": several[n]["run"] for n in ("b", "c")}
    assert study("--jobs", "2") == {}


def test_stages_that_have_no_room_together_take_turns(lab, study, monkeypatch, capsys):
    for name, size in (("b", 5), ("c", 4)):
        file = f"config: {name}.yaml"
        lab.replace("configs/study.yaml", file, f"{file}, takes: {{memory_gb: {size}}}")
    monkeypatch.setattr(steps, "memory_bytes", lambda: 8_000_000_000)
    monkeypatch.setattr(shown, "memory_bytes", lambda: 8_000_000_000)
    main(["--config", "configs/study.yaml", "--jobs", "2"])
    assert "the 2 largest take 9.0 GB of memory, of 8.0: what does not fit waits\n" in (
        capsys.readouterr().out
    )
    b, c = (done(lab)[name] for name in ("b", "c"))
    assert b["began"] + b["seconds"] < c["began"] + 0.1  # of clocks


def test_what_another_stage_adds_to_an_input_is_not_counted(meeting):
    grow = "files.write_text(Path(args['--study'], 'a', 'more.txt'), 'x' * 3_000_000)\n"
    meeting.write("c.py", grow + meeting.read("c.py"))  # while b reads a
    main(["--config", "configs/study.yaml", "--jobs", "2"])
    assert done(meeting)["b"]["megabytes"] < 0.01


def test_tables_are_kept_once_free_jobs_have_been_started(meeting, monkeypatch):
    seen = []

    def look(*_):
        stages = json.loads(meeting.read("runs/study.json"))["stages"]
        seen.append({name: "done" if "done" in stage else "runs" for name, stage in stages.items()})

    monkeypatch.setattr(steps, "keep_tables", look)
    main(["--config", "configs/study.yaml", "--jobs", "2"])
    assert seen[0] == {"a": "done", "b": "runs", "c": "runs"}
    assert seen[-1] == dict.fromkeys(ALL, "done")
    seen.clear()
    for name in ("b", "c"):
        os.remove(f"{name}.py")
    main(["--config", "configs/study.yaml", "--study", "runs", "--all.model.lr", "1"])
    assert seen[0]["a"] == "done" and len(seen) == 4


def test_seconds_end_where_an_end_is_noticed(meeting, monkeypatch):
    end_of, outputs_of = steps.end_of, steps.outputs_of

    def waiting(process):  # b's end and c's are noticed in one look
        while (ended := end_of(process)) is None:
            time.sleep(0.01)
        return ended

    def slowly(step):
        time.sleep(1.5 * (step.stage.name == "b"))
        return outputs_of(step)

    monkeypatch.setattr(steps, "end_of", waiting)
    monkeypatch.setattr(steps, "outputs_of", slowly)
    main(["--config", "configs/study.yaml", "--jobs", "2"])
    found = done(meeting)
    assert found["c"]["seconds"] < found["b"]["seconds"] + 1


def test_what_a_user_sees(meeting, capsys, monkeypatch):
    monkeypatch.setattr(steps, "SECONDS_BETWEEN_LINES", 0.1)
    meeting.replace("configs/study.yaml", "config: b.yaml", "config: b.yaml, takes: {seconds: 90}")
    add(meeting, "b.py", "print('step 1', end='\\r'); print('step 2'); time.sleep(0.5)\n")
    add(meeting, "c.py", "print('warning: few', file=sys.stderr); time.sleep(0.5)\n")
    main(["--config", "configs/study.yaml", "--jobs", "2"])
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    for number, name in enumerate(ALL, start=1):
        run = "train" if name == "d" else "evaluate"
        start = f"[{number}/4] {name}: python {run}.py --config configs/{name}.yaml --study runs"
        assert f"{start} --seed_everything 0" in lines
        assert re.search(rf"^\[{number}/4\] {name}: done in \d+ s$", shown.out, re.MULTILINE)
    assert re.search(r"^running: b 0:\d\d of about 1:30, c 0:\d\d$", shown.out, re.MULTILINE)
    assert "  step 2" in lines and "  warning: few" in lines and "step 1" not in shown.out
    assert "step 1\rstep 2\n" in (meeting.folder / "runs/logs/b.txt").read_bytes().decode()
    assert not shown.err


def test_threads_are_shared_out_and_recorded(meeting, study, monkeypatch):
    monkeypatch.setattr(turns, "n_cpus", lambda: 6)
    add(meeting, "b.py", "Path('threads.txt').write_text(os.environ['OMP_NUM_THREADS'])\n")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study("--jobs", "2")
    assert meeting.read("threads.txt") == "3"
    assert done(meeting)["b"]["environment"]["threads"].endswith("OMP_NUM_THREADS 3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    study("--jobs", "2", "--study", "given")
    assert meeting.read("threads.txt") == "5"


def test_beside_one_that_fails_others_may_finish(meeting, study):
    add(meeting, "b.py", "print(*range(30), sep='\\n'); raise ValueError('no luck')\n")
    add(meeting, "c.py", "time.sleep(0.5)\n")
    out, err = meeting.start("--jobs", "2").communicate(timeout=30)
    lines = err.splitlines()
    end = lines.index("(the end of runs/logs/b.txt)")
    assert lines[end - 2 : end] == ["  error: no luck", "  (DELTA_TRACEBACK=1 shows where)"]
    assert lines[:end] == [f"  {n}" for n in range(12, 30)] + lines[end - 2 : end]
    assert lines[end + 1 :] == [
        "error: b ended with status 2",
        "no other stage is started; waiting for c to finish",
    ]
    assert "[3/4] c: done in" in out and "] d:" not in out
    assert list(done(meeting)) == ["a", "c"]
    meeting.write("b.py", "")
    assert study("--jobs", "2") == {"b": "not finished", "d": "never run"}


def test_the_first_failure_is_the_study_s_status(meeting):
    add(meeting, "b.py", "raise ValueError('no luck')\n")
    add(meeting, "c.py", "time.sleep(0.5); os._exit(7)\n")
    process = meeting.start("--jobs", "2")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "error: c ended with status 7" in err


def test_an_exit_status_alone_finishes_nothing(meeting, study):
    add(meeting, "b.py", "raise SystemExit\n")
    process = meeting.start("--jobs", "2")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "error: b ended without writing its output" in err
    assert list(done(meeting)) == ["a", "c"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_that_runs(meeting, study, signum):
    add(meeting, "b.py", "time.sleep(60)\n")
    # c ends well all the same.
    add(
        meeting,
        "c.py",
        "try:\n    Path('ready').touch(); time.sleep(60)\nexcept BaseException:\n    pass\n",
    )
    process = meeting.start("--jobs", "2")
    wait_for("b.there", "ready")
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert err == (
        f"stopped by {signum.name}. Go on with: python study.py --config configs/study.yaml --jobs 2\n"
    )
    assert "[2/4] b: stopped after" in out and "[3/4] c: done in" in out and "] d:" not in out
    assert f"stopped by {signum.name}. It was not finished" in meeting.read("runs/logs/b.txt")
    assert list(done(meeting)) == ["a", "c"]
    meeting.write("b.py", "")
    assert study("--jobs", "2") == {"b": "not finished", "d": "never run"}


def test_stages_outlive_a_study_that_is_killed_and_keep_its_lock(meeting, study):
    add(meeting, "b.py", "print('on'); time.sleep(1); print('and on')\n")
    process = meeting.start("--jobs", "2")
    wait_for("b.there", "c.there")
    process.kill()
    process.wait()
    with pytest.raises(FileExistsError, match="or a stage that it started still is"):
        study("--jobs", "2")
    wait_for("runs/b/text.txt", "runs/c/text.txt")
    time.sleep(0.5)
    assert meeting.read("runs/logs/b.txt") == "on\nand on\n"
    assert study("--jobs", "2") == {"d": "never run"}


def test_stages_are_let_finish_where_a_record_cannot_be_written(meeting, study, monkeypatch):
    add(meeting, "c.py", "time.sleep(0.5)\n")
    finish = steps._finish

    def fail_for_b(job, *args):
        if job.label == "b":
            raise OSError("no space left")
        finish(job, *args)

    monkeypatch.setattr(steps, "_finish", fail_for_b)
    with pytest.raises(OSError, match="no space left"):
        study("--jobs", "2")
    assert list(done(meeting)) == ["a"]
    assert study("--jobs", "2") == {"d": "never run"}  # b and c are there


def test_sigkill_at_random_moments(lab, study):
    lab.write("mode.txt", "nap")
    rng = random.Random(1)
    kills = 0
    for _ in range(8):
        process = lab.start("--jobs", "2")
        try:
            process.communicate(timeout=rng.uniform(0.2, 0.7))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    assert kills
    study("--jobs", "2")
    assert study() == {}
    assert study("--study", "undisturbed") == dict.fromkeys(ALL, "never run")
    for name in ALL:
        assert lab.read(f"undisturbed/{name}/text.txt") == lab.read(f"runs/{name}/text.txt")


def test_the_plan_says_the_least_time(lab, study, capsys):
    for name, seconds in (("a", 10), ("b", 100), ("c", 30), ("d", 5)):
        config = f"config: {name}.yaml"
        lab.replace("configs/study.yaml", config, f"{config}, takes: {{seconds: {seconds}}}")
    for given, expected in (([], []), (["--jobs", "2"], [115])):
        main(["--config", "configs/study.yaml", "--dry-run", *given])
        lines = capsys.readouterr().out.splitlines()
        found = [line for line in lines if line.startswith("with ")]
        assert found == [f"with 2 stages at once at least {n} seconds" for n in expected]
    assert study("--dry-run", "--jobs", "2") == dict.fromkeys(ALL, "never run")


def test_the_plan_says_hours_and_the_memory_of_the_largest_at_once(lab, capsys):
    for name, takes in (
        ("a", "seconds: 7200, memory_gb: 2.5"),
        ("b", "seconds: 28272, memory_gb: 6.7"),
        ("c", "seconds: 30, memory_gb: 3"),
    ):
        config = f"config: {name}.yaml"
        lab.replace("configs/study.yaml", config, f"{config}, takes: {{{takes}}}")
    main(["--config", "configs/study.yaml", "--dry-run", "--jobs", "2"])
    said = "with 2 stages at once at least 9.9 hours; the 2 largest take 9.7 GB of memory"
    assert said in capsys.readouterr().out.splitlines()


def test_a_number_of_jobs_that_is_none(lab):
    with pytest.raises(ValueError, match=r"--jobs is 0, expected a whole number from 1"):
        main(["--config", "configs/study.yaml", "--jobs", "0"])
