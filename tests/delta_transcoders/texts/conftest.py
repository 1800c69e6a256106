"""Packages of an environment of their own, and a chat model."""

import random
from importlib.metadata import distributions
from pathlib import Path

import pytest

from delta_transcoders.language_models import load_tokenizer
from delta_transcoders.tasks.task import Message
from delta_transcoders.texts import sources

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
NOUNS = ["table", "row", "file", "word", "page", "list", "node", "path", "name", "part"]


def paragraph(rng: random.Random) -> str:
    """A made-up sentence of 17 words that passes for prose."""
    a, b, c, d, e, f = rng.choices(NOUNS, k=6)
    return f"Each {a} of the {b} is kept in a {c} until the {d} has left its {e} {f} again."


def write_package(site: Path, name: str, modules: dict[str, list[str]], metadata: str = "") -> None:
    """An installed package whose modules have a docstring of such paragraphs each."""
    info = site / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n{metadata}\n"
    )
    for module, paragraphs in modules.items():
        path = site / name / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('"""' + "\n\n".join(paragraphs) + '\n"""\n')
    record = [f"{name}/{module},," for module in modules] + [f"{name}-1.2.dist-info/METADATA,,"]
    (info / "RECORD").write_text("\n".join(record) + "\n")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """Where packages are installed: two, of 30 modules in all with four paragraphs each."""
    folder, rng = tmp_path / "site", random.Random(0)
    for name, licence in (("alpha", "License: MIT"), ("beta", "License-Expression: BSD-3-Clause")):
        modules = {f"m{i}.py": [paragraph(rng) for _ in range(4)] for i in range(15)}
        write_package(folder, name, modules, licence)
    monkeypatch.setattr(sources, "distributions", lambda: distributions(path=[str(folder)]))
    return folder


@pytest.fixture(scope="session")
def chat_model(model_folder, tmp_path_factory) -> str:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chat_model")
    for path in Path(model_folder).iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert load_tokenizer(str(folder)).chat_template == TEMPLATE
    return str(folder)


@pytest.fixture(autouse=True)
def requests(monkeypatch):
    """A few requests in place of the task's."""

    def few(seed: int):
        for i in range(6):
            messages = (Message("user", f"How many is {i} and {i + 1}?"),)
            yield [sources.chat(messages, None, sources.REQUESTS)]

    monkeypatch.setattr(sources, "requests", few)
