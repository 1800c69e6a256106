import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from delta_transcoders import files


def write(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text)


KIND = "model"


def make(path, kind=KIND, **contents):
    with files.new_output(path, kind) as folder:
        write(folder, **contents)
        files.finish_output(path)


def contents(folder) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def leftovers(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(".") or "partial" in p.name)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["train.py", "--study", "my runs"], "python train.py --study 'my runs'"),
        (["/env/bin/delta-transcoders", "train"], "delta-transcoders train"),
        (["delta-transcoders export", "--run", "a"], "delta-transcoders export --run a"),
    ],
)
def test_a_command_is_written_down_as_it_is_typed(monkeypatch, argv, command):
    monkeypatch.setattr("sys.argv", argv)
    assert files.command_line() == command


def test_a_module_s_command_is_typed_by_its_name(tmp_path):
    (tmp_path / "package").mkdir()
    code = "from delta_transcoders import files\nprint(files.command_line())"
    for name in ("stage", "__main__"):
        (tmp_path / "package" / f"{name}.py").write_text(code)
    for module in ("package.stage", "package"):
        command = [sys.executable, "-m", module, "a b"]
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == f"python -m {module} 'a b'"


def test_an_output_is_finished_by_its_list(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--study", "a"])
    make(tmp_path / "out", model="old")
    done = json.loads((tmp_path / "out" / "done.json").read_text())
    assert done["files"] == {"model": 3}
    assert done["command"] == "python train.py --study a"
    make(tmp_path / "out", weights="new")
    assert set(contents(tmp_path / "out")) == {"done.json", "weights"}
    assert leftovers(tmp_path) == []


def test_after_an_error_the_old_output_is_untouched(tmp_path):
    make(tmp_path / "out", model="old")
    before = contents(tmp_path / "out")
    with pytest.raises(RuntimeError), files.new_output(tmp_path / "out", KIND) as folder:
        write(folder, model="new")
        raise RuntimeError
    write(files.start_output(tmp_path / "out", KIND), model="a trial run")
    files.discard_output(tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub/notes.txt", "model.safetensors"])
def test_a_folder_with_a_strangers_file_is_refused_by_name(tmp_path, name):
    out = tmp_path / "out"
    make(out, model="old")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(FileExistsError, match=name):
        files.check_output(out, KIND)
    with pytest.raises(FileExistsError, match=name):
        files.start_output(out, KIND)
    assert (out / name).read_text() == "mine"
    assert leftovers(tmp_path) == []


def test_a_file_that_was_changed_since_is_a_strangers(tmp_path):
    make(tmp_path / "out", model="old")
    (tmp_path / "out" / "model").write_text("edited")
    with pytest.raises(FileExistsError, match="model"):
        files.check_output(tmp_path / "out", KIND)


def test_a_folder_without_a_list_is_a_strangers_whatever_its_files_are_called(tmp_path):
    write(tmp_path / "out", **{"config.json": "{}", "done.json": '{"files": {"config.json": 2}}'})
    with pytest.raises(FileExistsError, match=r"config\.json and 1 more"):
        files.check_output(tmp_path / "out", KIND)


def test_a_copied_output_may_still_be_replaced(tmp_path):
    import shutil

    make(tmp_path / "out", model="old")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    make(tmp_path / "copy", model="newer")
    assert contents(tmp_path / "copy")["model"] == "newer"


def test_a_link_to_a_folder_is_written_through(tmp_path):
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "big")
    make(tmp_path / "out", model="new")
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "disk" / "big")["model"] == "new"


def test_a_link_that_leads_nowhere_yet_is_written_through(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "big")
    make(tmp_path / "out", model="new")
    assert contents(tmp_path / "disk" / "big")["model"] == "new"


def test_a_link_inside_an_output_is_refused(tmp_path):
    (tmp_path / "big").mkdir()
    write(tmp_path / "out")
    (tmp_path / "out" / "adapter").symlink_to(tmp_path / "big")
    with pytest.raises(FileExistsError, match="adapter"):
        files.check_output(tmp_path / "out", KIND)


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make("~/out", model="new")
    assert contents(tmp_path / "out")["model"] == "new"


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_above_the_working_directory_is_refused(tmp_path, monkeypatch, path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises((ValueError, FileExistsError)):
        files.check_output(path, KIND)


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        files.check_output(tmp_path / "file" / "out", KIND)
    with pytest.raises(ValueError, match="is not a folder"):
        files.check_output(tmp_path / "file", KIND)
    with pytest.raises(ValueError, match="empty"):
        files.check_output("", KIND)


def test_what_a_killed_run_left_is_removed_and_a_strangers_folder_is_not(tmp_path):
    write(files.start_output(tmp_path / "out", KIND), model="half")
    make(tmp_path / "out", model="new")
    assert set(contents(tmp_path / "out")) == {"done.json", "model"}
    write(tmp_path / ".other.partial", notes="mine")
    with pytest.raises(FileExistsError, match=r"\.other\.partial"):
        files.start_output(tmp_path / "other", KIND)
    assert contents(tmp_path / ".other.partial") == {"notes": "mine"}


@pytest.mark.parametrize("moment", ["mkdir", "_swap", "rmtree"])
def test_what_a_kill_at_any_moment_left_is_removed(tmp_path, monkeypatch, moment):
    """When the folder was just made, when it was finished, and while an earlier one was being removed."""

    class Killed(BaseException):
        pass

    def kill(folder, *args, **kwargs):
        if moment == "mkdir":
            os.mkdir(folder)
        if moment == "rmtree":
            os.unlink(folder / files._UNFINISHED)  # a file system's order may be this
        raise Killed

    def end_of_the_process():
        while files._locks:
            os.close(files._locks.popitem()[1])

    make(tmp_path / "out", model="old")
    if moment == "rmtree":
        write(files.start_output(tmp_path / "out", KIND), model="half")
        end_of_the_process()

    owner = {"mkdir": files.Path, "_swap": files, "rmtree": files.shutil}[moment]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, moment, kill)
        write(files.start_output(tmp_path / "out", KIND), model="whole")
        files.finish_output(tmp_path / "out")
    end_of_the_process()
    assert contents(tmp_path / "out")["model"] == "old"
    make(tmp_path / "out", model="new")
    assert contents(tmp_path / "out")["model"] == "new"
    assert leftovers(tmp_path) == []


def test_an_output_comes_back_after_a_kill_between_the_two_renames(tmp_path):
    make(tmp_path / "out", model="old")
    os.rename(tmp_path / "out", tmp_path / ".out.replaced")
    files.start_output(tmp_path / "out", KIND)
    assert contents(tmp_path / "out")["model"] == "old"


def test_parts_that_a_run_did_not_make_are_kept(tmp_path):
    for names, replaces in ((("a", "b"), None), (("b", "c"), ["b", "c"])):
        folder = files.start_output(tmp_path / "out", KIND)
        for name in names:
            write(folder / name, file=f"{names}")
        files.finish_output(tmp_path / "out", replaces)
    assert contents(tmp_path / "out") == {
        "a/file": "('a', 'b')",
        "b/file": "('b', 'c')",
        "c/file": "('b', 'c')",
        "done.json": (tmp_path / "out" / "done.json").read_text(),
    }
    files.check_output(tmp_path / "out", KIND)


def test_an_incomplete_result_stands_beside_the_complete_one(tmp_path):
    make(tmp_path / "out", model="old")
    for text in ("half", "other half"):
        write(files.start_output(tmp_path / "out", KIND), model=text)
        aside = files.set_aside_output(tmp_path / "out")
    assert (aside.name, (aside / "model").read_text()) == ("out.incomplete", "other half")
    assert contents(tmp_path / "out")["model"] == "old"


def test_files_that_are_added_later_belong_to_the_output(tmp_path):
    make(tmp_path / "out", model="old")
    files.write_text(tmp_path / "out" / "report" / "table.csv", "a,b\n")
    files.write_text(tmp_path / "out" / "report" / "table.csv", "a,b,c\n")
    files.check_output(tmp_path / "out", KIND)
    files.write_text(tmp_path / "elsewhere" / "table.csv", "a,b\n")
    assert contents(tmp_path / "elsewhere") == {"table.csv": "a,b\n"}


def _add_files(folder, worker, n):
    for i in range(n):
        files.write_text(folder / f"{worker}_{i}", "text")


def test_processes_that_add_files_at_once_lose_none(tmp_path):
    make(tmp_path / "out", model="old")
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_add_files, args=(tmp_path / "out", worker, 20)) for worker in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    listed = json.loads((tmp_path / "out" / "done.json").read_text())["files"]
    assert set(listed) == {"model", *(f"{w}_{i}" for w in (0, 1) for i in range(20))}


def test_a_replaced_folder_may_be_the_present_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with files.replace_folder(".") as folder:
        write(folder, card="text")
    assert contents(tmp_path / "out") == {"card": "text"}


def test_another_kind_of_output_is_refused(tmp_path):
    make(tmp_path / "out", model="old")
    with pytest.raises(FileExistsError, match=r"another kind of stage \(model, not tables\)"):
        files.check_output(tmp_path / "out", "tables")


def test_an_output_inside_of_another_is_refused(tmp_path):
    make(tmp_path / "out", model="old")
    with pytest.raises(ValueError, match="a finished output itself"):
        files.check_output(tmp_path / "out" / "sub" / "mine", KIND)


def test_an_empty_folder_of_somebody_else_is_not_replaced(tmp_path):
    make(tmp_path / "out", model="old")
    (tmp_path / "out" / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine"):
        files.check_output(tmp_path / "out", KIND)


def _start(path, started, end):
    files.start_output(path, KIND)
    started.set()
    end.wait(60)


def test_a_second_run_on_one_output_is_refused_until_the_first_has_ended(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, end = context.Event(), context.Event()
    other = context.Process(target=_start, args=(tmp_path / "out", started, end))
    other.start()
    assert started.wait(60)
    with pytest.raises(FileExistsError, match="another run is writing 'out'"):
        files.check_output(tmp_path / "out", KIND)
    files.discard_output(tmp_path / "out")  # not ours
    assert (tmp_path / ".out.partial").is_dir()
    end.set()
    other.join()
    make(tmp_path / "out", model="new")
    assert contents(tmp_path / "out")["model"] == "new"


@dataclass
class Settings:
    size: int
    name: str = "a"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}, expected 0 or more")


def test_json_is_read_back_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "settings.json"
    files.write_json(path, {"size": 3, "name": "é"})
    assert files.read_json(path) == {"size": 3, "name": "é"}
    assert files.read_config(path, Settings) == Settings(3, "é")
    assert [p.name for p in path.parent.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"settings.json is damaged, it is not JSON \(.*\): no settings here"),
        ("[" * 100_000, r"settings.json is damaged, it is not JSON \(.*\): no settings here"),
        ("[]", "settings.json is damaged, it holds a list and no dict: no settings here"),
        ('{"size": 1, "nam": "b"}', r"settings.json: unknown key 'nam'; known are \['name', 'si"),
        ('{"name": "b"}', "settings.json: key 'size' is missing"),
        ('{"size": -1, "name": "b"}', "settings.json: size is -1, expected 0 or more"),
    ],
)
def test_a_damaged_configuration_is_named(tmp_path, text, message):
    path = tmp_path / "settings.json"
    with pytest.raises(FileNotFoundError, match=r"settings\.json does not exist: no settings here"):
        files.read_config(path, Settings, "no settings here")
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        files.read_config(path, Settings, "no settings here")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.partial_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert contents(tmp_path) == {"weights": "old"}
