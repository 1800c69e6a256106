"""What a study reads that it does not make, and whether its task can be read."""

from pathlib import Path

import pytest

from delta_transcoders.language_models import load_tokenizer
from delta_transcoders.study.check.sources import dictionary_uses, sources_of
from delta_transcoders.study.check.tasks import check_task, tasks_of
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.study_file import read_study

CALCULATOR = "delta_transcoders.tasks.calculator.task.Calculator"
EXAMPLES = "delta_transcoders.tasks.examples.Examples"


@pytest.fixture
def in_the_checkout(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


def graph(file: str, **kwargs) -> Graph:
    return Graph(read_study(file, **kwargs))


def found(of: Graph) -> list[tuple[str, str, str]]:
    return [(source.kind, source.name, source.given_as("X")) for source in sources_of(of)]


def test_of_gemma_2_2b(in_the_checkout):
    of = graph("configs/gemma2_2b/study.yaml")
    assert found(of) == [
        (
            "model",
            "google/gemma-2-2b",
            "--finetune.model.model X --finetune.data.model X --behaviour.model.models.base_model X "
            "--delta.data.base_model X --exp1.model.base_model X --exp2a.model.base_model X "
            "--exp2b.model.base_model X",
        ),
        ("dataset", "allenai/c4", "--finetune.data.task.copy_dataset X"),
        (
            "dictionaries",
            "google/gemma-scope-2b-pt-transcoders",
            "--delta.data.base_transcoders X --exp1.model.base_transcoders X "
            "--exp2a.model.base_transcoders X --exp2b.model.base_transcoders X "
            "--effects.model.base_transcoders X",
        ),
    ]
    assert sources_of(of)[0].dtype == "bfloat16"
    (use,) = dictionary_uses(of)
    assert dict(use.which) == {"width": 16384, "files": None, "percentile": 0.5}
    assert (use.base_model, use.layers, use.dtype) == ("google/gemma-2-2b", None, "bfloat16")
    ((spec, model),) = tasks_of(of)
    assert model == "google/gemma-2-2b"
    assert spec["class_path"] == CALCULATOR and spec["init_args"]["copy_source"] == "hub"


def test_of_a_public_model(in_the_checkout):
    of = graph("configs/gemma3_1b/study.yaml", options={"all": {"base.model": "here/model"}})
    assert found(of)[0] == ("model", "here/model", "--all.base.model X")
    assert found(of)[-1][1:] == ("google/gemma-scope-2-1b-it", "--all.base.transcoders X")
    (use,) = dictionary_uses(of)
    assert (use.site, use.leading) == (None, 4)
    assert dict(use.which)["files"] == "transcoder_all/*_width_16k_l0_big"
    (use,) = dictionary_uses(graph("configs/qwen3_4b/study.yaml"))
    assert use.layers == (9, 18, 27)


def test_what_is_to_be_typed_gives_all_stages_another_source(in_the_checkout):
    file = "configs/gemma2_2b/study.yaml"
    words = sources_of(graph(file))[0].given_as("here/model").split()
    options: dict[str, dict[str, str]] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        stage, _, key = option.removeprefix("--").partition(".")
        options.setdefault(stage, {})[key] = value
    names = [source.name for source in sources_of(graph(file, options=options))]
    assert "here/model" in names and "google/gemma-2-2b" not in names


def test_of_a_study_that_makes_everything(in_the_checkout):
    assert found(graph("configs/tiny/study.yaml")) == []
    assert dictionary_uses(graph("configs/tiny/study.yaml")) == []


def test_of_a_model_that_a_stage_fetches(in_the_checkout):
    (source,) = sources_of(graph("configs/smollm2/quick.yaml"))
    assert (source.name, source.maker) == ("models/SmolLM2-135M-Instruct", "base_model")


# Tasks


def test_a_task_that_generates(model_folder):
    spec = {"class_path": CALCULATOR, "init_args": {}}
    assert check_task(spec, model_folder).startswith("24 examples read as texts, of ")


def test_messages_without_a_chat_template(model_folder, tmp_path):
    tokenizer = load_tokenizer(model_folder)
    jsonl = tmp_path / "chats.jsonl"
    line = (
        '{"messages": [{"role": "user", "content": "Hi %d"}], "target": "Hello", "subset": "a"}\n'
    )
    jsonl.write_text("".join(line % i for i in range(9)))
    spec = {"class_path": EXAMPLES, "init_args": {"jsonl": str(jsonl), "judge": "exact"}}
    assert "read as messages" in check_task(spec, model_folder)
    import shutil

    bare = shutil.copytree(model_folder, tmp_path / "bare")
    tokenizer.chat_template = None
    for path in bare.glob("chat_template*"):
        path.unlink()
    tokenizer.save_pretrained(bare)
    with pytest.raises(ValueError, match="chat template"):
        check_task(spec, str(bare))


def test_a_file_that_is_not_there(model_folder):
    spec = {"class_path": EXAMPLES, "init_args": {"jsonl": "no.jsonl", "judge": "exact"}}
    with pytest.raises((FileNotFoundError, ValueError), match=r"no\.jsonl"):
        check_task(spec, model_folder)
    assert not Path("no.jsonl").exists()
