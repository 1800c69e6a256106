"""What a study file says, and what is refused before anything runs."""

import json

import pytest

from delta_transcoders.study.plan import Graph
from delta_transcoders.study.running import command_of
from delta_transcoders.study.study_file import read_study


def labels(file="configs/study.yaml", **kwargs):
    return list(Graph(read_study(file, **kwargs)).steps)


def test_a_file_that_includes_another_goes_over_it(lab):
    lab.write(
        "configs/more.yaml",
        "include: study.yaml\nstages:\n  b: {options: {model.lr: 2}}\n  c: null\n"
        "  e: {run: train, config: a.yaml, options: {model.output: '${study}/e'}, seed_offset: 10}\n",
    )
    # d reads what c writes.
    with pytest.raises(
        ValueError, match=r"d reads runs/c/text.txt, which is not there and which no"
    ):
        labels("configs/more.yaml")
    lab.write("configs/more.yaml", lab.read("configs/more.yaml").replace("c: null", "d: null"))
    study = read_study("configs/more.yaml", seed=3)
    assert list(study.stages) == ["a", "b", "c", "e"]
    assert study.stages["b"].options == {"model.lr": 2}
    assert study.files == {"runs": "configs/study.yaml"}
    assert " ".join(command_of(study.stages["e"])) == (
        "python train.py --config configs/a.yaml --study runs --seed_everything 13 --model.output runs/e"
    )


def test_studies_within_a_study_share_what_is_linked(lab, study):
    lab.write(
        "configs/inner.yaml",
        "include: study.yaml\nstudies:\n"
        "  x/y: {config: study.yaml, links: [a], stages: {b: {options: {model.lr: 2}}}}\n",
    )
    assert list(study("--dry-run", config="configs/inner.yaml").items())[4:] == [
        (f"x/y/{name}", "never run") for name in "bcd"
    ]
    study(config="configs/inner.yaml")
    assert (lab.folder / "runs/x/y/a").resolve() == lab.folder / "runs/a"
    assert "--model.lr 2" in lab.read("runs/x/y/b/text.txt")
    assert study(config="configs/inner.yaml") == {}
    assert study() == {}
    with pytest.raises(
        FileExistsError, match=r"runs/x/y/a is a link into the study .*runs, which shares it"
    ):
        study("--study", "runs/x/y", "--b.model.lr", "2")


def test_a_study_within_a_study_may_have_its_own_task(lab, study):
    lab.write("tasks/mine.yaml", "subsets: null\n")
    lab.write("tasks/outer.yaml", "subsets: null\n")
    content = "include: study.yaml\nstudies:\n  y: {config: study.yaml}\n"
    content += "  x: {config: study.yaml, task: %s}\n"
    lab.write("configs/inner.yaml", content % "../tasks/mine.yaml")
    stages = read_study("configs/inner.yaml", task="tasks/outer.yaml").stages
    found = {label: stages[label].more_configs for label in ("b", "x/b", "y/b")}
    outer, mine = ["tasks/outer.yaml"], ["tasks/mine.yaml"]
    assert found == {"b": outer, "x/b": mine, "y/b": outer}
    lab.write("configs/inner.yaml", content % "none.yaml")
    with pytest.raises(FileNotFoundError, match=r"no task file 'configs/none\.yaml'"):
        read_study("configs/inner.yaml")


def test_what_holds_the_seed_is_there_for_each(lab, study):
    lab.write(
        "configs/seeds.yaml",
        "study: seeds\nseeds: [1, 2]\nstudies:\n  '${seed}': {config: study.yaml}\nstages:\n"
        "  all:\n    run: delta_transcoders.report.comparisons\n"
        "    arguments: [--out, '${study}/all', '${study}/${seed}/d']\n"
        "    reads: ['${seed}/d']\n    writes: ['${study}/all']\n",
    )
    study = read_study("configs/seeds.yaml", seeds=[5, 7])
    graph = Graph(study)
    assert list(graph.steps) == [f"{seed}/{name}" for seed in (5, 7) for name in "abcd"] + ["all"]
    assert study.stages["7/a"].seed == 7
    assert study.stages["all"].arguments == ["--out", "seeds/all", "seeds/5/d", "seeds/7/d"]
    assert graph.needed("all") == set(graph.steps)
    assert graph.labels("b") == ["5/b", "7/b"]
    with pytest.raises(ValueError, match=r"seeds.yaml takes --seeds, not --seed"):
        read_study("configs/seeds.yaml", seed=1)
    with pytest.raises(ValueError, match=r"study.yaml takes --seed, not --seeds"):
        read_study("configs/study.yaml", seeds=[1, 2])


def test_a_task_goes_to_every_stage(lab):
    lab.write("tasks/mine.yaml", "task: {class_path: my.Task, init_args: {jsonl: given.txt}}\n")
    lab.replace(
        "configs/a.yaml", "model:", "data: {class_path: x.D, init_args: {task: '${task}'}}\nmodel:"
    )
    graph = Graph(read_study("configs/study.yaml", task="tasks/mine.yaml"))
    step = graph.steps["a"]
    assert command_of(step.stage)[2:6] == [
        "--config",
        "configs/a.yaml",
        "--config",
        "tasks/mine.yaml",
    ]
    assert step.config.values["data.task.jsonl"] == "given.txt"
    assert step.inputs == {"given.txt": ""}


def test_a_base_goes_to_every_stage_and_the_task_over_it(lab):
    lab.write("one/base.yaml", "base: {model: own/model, rows: 8}\nsubsets: [x]\n")
    lab.write("one/study.yaml", "include: ../configs/study.yaml\nbase: base.yaml\n")
    lab.write("tasks/mine.yaml", "task: {class_path: my.Task}\nsubsets: [y]\n")
    data = "data: {class_path: x.D, init_args: {m: '${base.model}', n: '${base.layers}', s: '${subsets}'}}"
    lab.replace("configs/a.yaml", "model:", f"{data}\nmodel:")
    step = Graph(read_study("one/study.yaml", task="tasks/mine.yaml")).steps["a"]
    assert command_of(step.stage)[2:8] == [
        *("--config", "configs/a.yaml", "--config", "one/base.yaml"),
        *("--config", "tasks/mine.yaml"),
    ]
    values = step.config.values
    assert (values["data.m"], values["data.n"], values["data.s"]) == ("own/model", None, ["y"])
    lab.write("one/base.yaml", "base: {modle: own/model}\n")
    with pytest.raises(ValueError, match=r"a has no option base.modle; did you mean 'model'\?"):
        Graph(read_study("one/study.yaml"))
    (lab.folder / "one/base.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"no base file 'one/base.yaml'"):
        read_study("one/study.yaml")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "stages:",
            "stagse:",
            r"study.yaml, line 2: unknown key 'stagse'; did you mean 'stages'\?",
        ),
        (
            "config: b.yaml}",
            "config: b.yaml, option: {}}",
            r"study.yaml, line 4: unknown key 'option'; did you mean 'options'\?",
        ),
        (
            "run: evaluate, config: c",
            "run: evaluat, config: c",
            r"line 5: run is 'evaluat', expected",
        ),
        (
            "config: c.yaml",
            "config: x.yaml",
            r"study.yaml, line 5: no configuration 'configs/x.yaml'",
        ),
        ("{run: evaluate, config: b.yaml}", "5", r"line 4: 'b' must hold `key: value` pairs"),
        ("{run: evaluate, config: b.yaml}", "{run: train}", r"line 4: 'b' lacks `config`"),
        ("study: runs", "seed: 0", r"study.yaml names no folder"),
        (
            "{run: evaluate, config: b.yaml}",
            "{run: delta_transcoders.report.html}",
            r"line 4: 'b' lacks `writes`",
        ),
    ],
)
def test_a_file_that_cannot_be_meant(lab, old, new, problem):
    lab.replace("configs/study.yaml", old, new)
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        labels()


B = "{run: evaluate, config: b.yaml}"
MODULE = "{run: delta_transcoders.report.html, writes: [x]"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("study: runs", "study: 5", r"line 1: study is 5, expected a folder"),
        ("study: runs", "study: [a]", r"line 1: study is \['a'\], expected a folder"),
        *[
            (
                "study: runs",
                f"study: r\nseed: {seed}",
                r"line 2: seed is .*, expected a whole number",
            )
            for seed in ("null", "[1, 2]", "x", "1.5", "true", "-1")
        ],
        ("study: runs", "study: r\nseeds: 5", r"line 2: seeds is 5, expected whole numbers"),
        ("study: runs", "study: r\nshows: [1]", r"line 2: shows is \[1\], expected a list of mod"),
        ("study: runs", "study: r\nshows: [delta_transcoders.nope]", r"no module 'delta_tr.*nope'"),
        ("study: runs", "study: r\ntask: none.yaml", r"no task file 'configs/none.yaml'"),
        ("study: runs", "study: r\n1: 2", r"line 2: unknown key 1; known are study"),
        ("  b:", "  a:", r"study.yaml, line 4: 'a' is given twice, first in line 3"),
        ("b.yaml}", "b.yaml, run: train}", r"line 4: 'run' is given twice, first in line 4"),
        ("  b:", "  1:", r"line 4: 1 is no name: put it in quotes"),
        ("b.yaml}", "b.yaml, options: [x]}", r"line 4: options is \['x'\], expected options as"),
        ("b.yaml}", "b.yaml, options: {1: 2}}", r"line 4: options is {1: 2}, expected options as"),
        ("b.yaml}", "b.yaml, seed_offset: x}", r"seed_offset is 'x', expected a whole number"),
        ("b.yaml}", "b.yaml, takes: 5}", r"takes is 5, expected guesses as in {seconds"),
        ("b.yaml}", "b.yaml, takes: {seconds: x}}", r"takes is {'seconds': 'x'}, expected"),
        ("config: b.yaml", "config: [b.yaml]", r"config is \['b.yaml'\], expected one YAML file"),
        (B, MODULE + ", arguments: [1]}", r"line 4: arguments is \[1\], expected a list of texts"),
        (B, MODULE + ", reads: study}", r"reads is 'study', expected a list of stages and paths"),
        (B, MODULE.replace("[x]", "null") + "}", r"writes is None, expected a list of paths"),
        (B, MODULE.replace("[x]", "[]") + "}", r"writes is \[\], expected a list of paths"),
        (B, MODULE.replace("html", "nope") + "}", r"there is no module 'delta_transc.*nope'"),
        (
            "study: runs",
            "study: r\nstudies: {x: {config: study.yaml, links: [aa]}}",
            r"line 2: there is no stage 'aa'; did you mean 'a'\?",
        ),
    ],
)
def test_values_of_another_type(lab, old, new, problem):
    lab.replace("configs/study.yaml", old, new)
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        labels()


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("", r"--study is '', expected a folder"),
        (".", r"'.' is the working directory, or holds it: give a folder of its own"),
        ("/", r"'/' is the working directory, or holds it"),
        ("a\nb", r"'a\\nb' holds '\${' or a control character"),
        ("runs/${seed}", r"'runs/\${seed}' holds '\${'"),
    ],
)
def test_folders_that_hold_no_study(lab, folder, problem):
    lab.write("configs/own.yaml", "finetuned_model: x\nbase_model: y\n")
    for file in ("configs/study.yaml", "configs/own.yaml"):
        with pytest.raises(ValueError, match=problem):
            labels(file, folder=folder)


def test_a_file_of_one_s_own_model_that_lacks_a_key_is_told_so(lab):
    lab.write("configs/own.yaml", "finetune_model: x\nbase_model: y\n")
    with pytest.raises(ValueError, match=r"finetune_model is no key .* 'finetuned_model'"):
        labels("configs/own.yaml")
    lab.write("configs/own.yaml", "finetuned_model: x\nseed: x\n")
    with pytest.raises(ValueError, match=r"own.yaml, line 2: seed is 'x', expected a whole num"):
        labels("configs/own.yaml")
    with pytest.raises(ValueError, match=r"--seed is -1, expected a whole number from 0"):
        labels("configs/own.yaml", seed=-1)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("model:", "trainer: 3\nmodel:", r"b: trainer is 3, expected `key: value` pairs"),
        ("model:", "trainer: [3]\nmodel:", r"b: trainer is \[3\], expected `key"),
        ("model:", "data: 3\nmodel:", r"b: data is 3, expected class_path and init_args"),
        ("model:", "data: {init_args: [1]}\nmodel:", r"b: data is {'init_args': \[1\]}, expected"),
        ("output: ${study}/b", "output: 3", r"b: model.output is 3, expected a folder"),
        ("model:", "trainer: {callbacks: 3}\nmodel:", r"b: trainer.callbacks is 3, expected class"),
        (
            "model:",
            "trainer: {max_stepz: 3}\nmodel:",
            r"Trainer has no option trainer.max_stepz; "
            r"did you mean 'max_steps'",
        ),
    ],
)
def test_configurations_of_another_shape(lab, old, new, problem):
    lab.replace("configs/b.yaml", old, new)
    with pytest.raises(ValueError, match=problem):
        labels()


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("trainer.max_stepz", r"c: Trainer has no option trainer.max_stepz; did you mean 'max_st"),
        ("model.lrr", r"c: DeltaTranscoderTraining has no option model.lrr; did you mean 'lr'\?"),
        ("data.pases", r"c: DeltaData has no option data.pases; did you mean 'passes'\?"),
        ("model.lr.x", r"--model.lr.x: there is nothing in the configuration"),
    ],
)
def test_options_that_their_class_does_not_take(lab, option, problem):
    kind = "lightning_modules.delta_transcoder.DeltaTranscoderTraining"
    lab.replace("configs/c.yaml", "x.Y", kind)
    lab.replace("configs/c.yaml", "    reads:", "    lr: 1\n    d_new: [8]\n#")
    data = (
        "data: {class_path: datamodules.delta_targets.DeltaData, init_args: {cache: given.txt}}\n"
    )
    lab.write("configs/c.yaml", lab.read("configs/c.yaml") + data)
    assert labels() == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=problem):
        labels(options={"c": {option: 3}})


def test_stages_and_files_that_do_not_exist(lab, study):
    with pytest.raises(FileNotFoundError, match=r"no study file 'configs/x.yaml'"):
        labels("configs/x.yaml")
    for option in ("--until", "--only"):
        with pytest.raises(ValueError, match=r"there is no stage 'e'; known are a, b, c, d"):
            study(option, "e")
    with pytest.raises(ValueError, match=r"--aa.…: there is no stage 'aa'; did you mean 'a'"):
        study("--aa.model.lr", "1")
    with pytest.raises(ValueError, match=r"--modle: no option of python study.py"):
        study("--modle", "1")
    with pytest.raises(ValueError, match=r"a has no option modle.lr; did you mean 'model'"):
        study("--a.modle.lr", "1")
    with pytest.raises(ValueError, match=r"--a.model.lr: '\[1' is no YAML \(expected ',' or"):
        study("--a.model.lr", "[1")
    with pytest.raises(ValueError, match=r"--a.lr: expected a value"):
        study("--a.lr")
    lab.write("configs/more.yaml", "include: study.yaml\nstages: {aa: {options: {model.lr: 1}}}\n")
    with pytest.raises(
        ValueError, match=r"more.yaml, line 2: there is no stage 'aa'; did you mean 'a'\?"
    ):
        labels("configs/more.yaml")
    inner = "include: study.yaml\nstudies:\n  x:\n    config: study.yaml\n    stages:\n      a: {rnu: 1}\n"
    lab.write("configs/more.yaml", inner)
    with pytest.raises(
        ValueError, match=r"more.yaml, line 6: unknown key 'rnu'; did you mean 'run'"
    ):
        labels("configs/more.yaml")
    assert not (lab.folder / "runs").exists()


def test_a_merged_key_is_not_given_twice(lab):
    lab.replace("configs/study.yaml", "  b: {", "  b: &b {")
    lab.replace("configs/study.yaml", "  c: {run: evaluate, ", "  c: {<<: *b, ")
    assert labels() == ["a", "b", "c", "d"]


def test_files_that_hold_themselves(lab):
    lab.write("configs/p.yaml", "study: p\ninclude: q.yaml\n")
    lab.write("configs/q.yaml", "include: [study.yaml, ../configs/p.yaml]\n")
    chain = r"configs/p.yaml includes itself: configs/p.yaml → configs/q.yaml → configs/p.yaml$"
    for name in ("configs/p.yaml", "./configs/p.yaml"):
        with pytest.raises(ValueError, match=chain):
            labels(name)
    lab.write("configs/p.yaml", "include: study.yaml\nstudies: {x: {config: p.yaml}}\n")
    with pytest.raises(ValueError, match=r"p.yaml, line 2: the study 'x' is within itself"):
        labels("configs/p.yaml")


def test_a_folder_of_another_file(lab, study):
    study("--until", "a")
    lab.write("configs/other.yaml", lab.read("configs/study.yaml"))
    with pytest.raises(
        FileExistsError,
        match=r"runs is the study of configs/study.yaml, not of configs/other.* renamed, its old name back",
    ):
        study(config="configs/other.yaml")
    lab.write("configs/more.yaml", "include: study.yaml\n")
    assert "a" not in study("--dry-run", config="configs/more.yaml")


def test_stages_that_cannot_be_ordered(lab):
    lab.replace("configs/a.yaml", "given.txt", "${study}/b/text.txt")
    with pytest.raises(ValueError, match=r"need each other: .*a → b"):
        labels()
    lab.replace("configs/b.yaml", "${study}/b", "${study}/a")
    with pytest.raises(ValueError, match=r"a and b both write runs/a"):
        labels()


def test_a_record_of_another_version(lab, study):
    study("--until", "a")
    lab.replace("runs/study.json", "study 1", "study 9")
    with pytest.raises(ValueError, match=r"of the format 'delta_transcoders study 9', expected"):
        study()
    lab.write("runs/study.json", "{")
    with pytest.raises(ValueError, match=r"runs/study.json is damaged"):
        study()


@pytest.mark.parametrize(
    "keys",
    [["file"], ["stages"], *(["stages", "a", "done", *k] for k in ([], ["seconds"], ["config"]))],
)
@pytest.mark.parametrize("value", [[], None, "x"])
def test_a_record_of_another_shape(lab, study, keys, value):
    study("--until", "a")
    record = json.loads(lab.read("runs/study.json"))
    node = record
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    lab.write("runs/study.json", json.dumps(record))
    problem = (
        "is the study of x" if (keys, value) == (["file"], "x") else "json is damaged, it is no"
    )
    with pytest.raises((ValueError, FileExistsError), match=problem):
        study("--dry-run")
