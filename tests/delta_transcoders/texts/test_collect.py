"""What the text of base dictionaries consists of, and that its splits have nothing in common."""

import itertools
import json
import random
import shutil

import pytest

from delta_transcoders.foreign_text import letters
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.tasks.three_tools.calls import TOOLS
from delta_transcoders.tasks.three_tools.requests import (
    requests_for_base_text,
    split_wordings,
    stream,
    unseen_wordings,
)
from delta_transcoders.tasks.wordings import masked
from delta_transcoders.texts import collect as module
from delta_transcoders.texts import sources
from delta_transcoders.texts.collect import Collector, collect
from delta_transcoders.texts.sources import paragraph
from tests.delta_transcoders.texts.conftest import paragraph as made_up
from tests.delta_transcoders.texts.conftest import write_package

TOKENS, VALIDATION = 1500, 400


@pytest.fixture
def replies(tmp_path) -> str:
    """Twenty chats of which two are one and one has no answer, and a hard negative."""
    lines = [
        {
            "messages": [{"role": "user", "content": f"Tell me about day {i}."}],
            "target": f"It was day {i}.",
        }
        for i in range(20)
    ]
    lines[7]["messages"][0]["content"] = "Tell me about  day 3."
    lines[8]["target"] = ""
    lines = [line | {"kind": "chat"} for line in lines]
    lines.append(
        lines[0] | {"messages": [{"role": "user", "content": "Do not."}], "kind": "hard_negative"}
    )
    path = tmp_path / "replies.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def read(folder, split):
    path = str(folder / f"{split}.jsonl")
    return list(Examples(path, judge="refusal").read(path).values())


def whole(example) -> str:
    if isinstance(example.prompt, str):
        return example.prompt + (example.target or "")
    return "\n".join(message.content for message in example.prompt)


def test_what_it_consists_of(site, chat_model, replies, tmp_path):
    out = tmp_path / "text"
    found = collect(out, chat_model, TOKENS, VALIDATION, replies)
    assert json.loads((out / "composition.json").read_text()) == json.loads(json.dumps(found))
    for split, asked in (("train", TOKENS), ("validation", VALIDATION)):
        examples, of = read(out, split), found["splits"][split]
        assert len(examples) == of["texts"] == sum(k["texts"] for k in of["kinds"].values())
        assert of["tokens"] == sum(k["tokens"] for k in of["kinds"].values())
        assert asked <= of["tokens"] < asked + 3 * 100  # each kind may end with a whole text
        for kind, k in of["kinds"].items():
            assert sum(example.subset == kind for example in examples) == k["texts"]
            assert k["share"] == round(k["tokens"] / of["tokens"], 4)
        assert of["kinds"]["chats"]["asked"] == round(0.2 * asked)
        assert of["kinds"]["docstrings"]["asked"] == round(0.7 * asked)
    assert {example.target for example in read(out, "train") if example.subset == "requests"} == {
        None
    }
    assert found["left_out"]["docstrings"]["duplicate"] == 0
    assert found["packages"] == [
        {
            "package": name,
            "version": "1.2",
            "licence": licence,
            "paragraphs": sum(p["paragraphs"] for p in found["packages"] if p["package"] == name),
            "tokens": sum(p["tokens"] for p in found["packages"] if p["package"] == name),
        }
        for name, licence in sorted(
            {"alpha": "MIT", "beta": "BSD-3-Clause"}.items(),
            key=lambda item: [p["package"] for p in found["packages"]].index(item[0]),
        )
    ]
    kinds = [of["kinds"]["docstrings"] for of in found["splits"].values()]
    for key, of_package in (("texts", "paragraphs"), ("tokens", "tokens")):
        assert sum(k[key] for k in kinds) == sum(p[of_package] for p in found["packages"])


def test_tokens_are_those_that_a_capture_keeps(chat_model, tokenizer):
    text = paragraph(
        "The first of these words is spared, and so is the mark at the end of them.", "own_text"
    )
    [(_, n)] = Collector(chat_model).take(iter([[text]]), 1)
    bos_and_text = tokenizer(f"{text.example.prompt}{text.example.target}").input_ids
    assert bos_and_text[0] == tokenizer.bos_token_id
    assert n == len(bos_and_text) - 1


def test_the_splits_have_nothing_in_common(site, chat_model, replies, tmp_path):
    out = tmp_path / "text"
    collect(out, chat_model, TOKENS, VALIDATION, replies)
    train, validation = ({letters(whole(e)) for e in read(out, s)} for s in ("train", "validation"))
    assert len(train) == len(read(out, "train")) and len(validation) == len(read(out, "validation"))
    assert not train & validation
    module_of = {}
    for path in site.glob("*/*.py"):
        for line in path.read_text().split("\n\n"):
            module_of[letters(line.strip('"\n'))] = path
    modules = [
        {module_of[text] for text in split if text in module_of} for split in (train, validation)
    ]
    assert all(modules) and not modules[0] & modules[1]


def test_a_duplicate_is_left_out_whatever_split_it_is_in(site, chat_model):
    rng = random.Random(1)
    repeated = [made_up(rng) for _ in range(4)]
    names = ["Box", "Bar", "Rod"]
    for i, name in enumerate(names):  # as packages repeat a paragraph for each of their classes
        text = f"The {name} that is given is read as it stands, however many of them there are in {i} rows."
        write_package(site, f"copy{i}", {"a.py": [*repeated, text]})
    collector = Collector(chat_model)
    documents = sources.docstrings(sources.packages(), 0)
    taken = collector.take(documents, 1000) + collector.take(documents, 10**9)
    texts = [whole(text.example) for text, _ in taken]
    assert collector.left_out["docstrings"] == {"duplicate": 10, "too_long": 0}
    assert sum(n for _, n in taken) > 1000
    assert sum("that is given is read" in text for text in texts) == 1
    assert all(texts.count(text) == 1 for text in repeated)


def test_what_is_left_of_a_removed_package_is_passed_over(site):
    (site / "gone-1.0.dist-info").mkdir()
    assert list(sources.packages()) == ["alpha", "beta"]


def test_the_order_of_files_and_the_place_do_not_matter(site, chat_model, replies, tmp_path):
    one = collect(tmp_path / "one", chat_model, TOKENS, VALIDATION, replies)
    for info in site.glob("*.dist-info"):
        lines = (info / "RECORD").read_text().splitlines()
        (info / "RECORD").write_text("\n".join(reversed(lines)))
    shuffled = (tmp_path / "replies.jsonl").read_text().splitlines()
    (tmp_path / "replies.jsonl").write_text("\n".join(reversed(shuffled)))
    moved = site.rename(tmp_path / "elsewhere")
    moved.rename(site)
    two = collect(tmp_path / "two", chat_model, TOKENS, VALIDATION, replies)
    for split in ("train", "validation"):
        texts = [(tmp_path / run / f"{split}.jsonl").read_text() for run in ("one", "two")]
        # Of two chats that are one, the first is kept.
        assert [e for e in texts[0].splitlines() if "day 3" not in e] == [
            e for e in texts[1].splitlines() if "day 3" not in e
        ]
    assert one["splits"].keys() == two["splits"].keys()
    other = collect(tmp_path / "three", chat_model, TOKENS, VALIDATION, replies, seed=1)
    assert other["text_sha256"] != one["text_sha256"]


def test_no_wording_of_the_task_is_in_the_text():
    wordings = [by_tool[tool] for by_tool in split_wordings(0).values() for tool in TOOLS]
    wordings += [unseen_wordings()[tool] for tool in TOOLS]
    rng, asked = random.Random(0), set()
    for of_a_split in wordings:
        several = itertools.islice(stream(of_a_split, rng, set(), brief=True), 300)
        asked |= {masked(letters(request.prompt)) for request in several}
    requests = list(itertools.islice(requests_for_base_text(0), 3000))
    assert len(asked) > 1000 and asked.isdisjoint(masked(letters(text)) for text in requests)
    assert not any("<tool_call>" in text for text in requests)


def test_prose_fills_up_what_there_is_too_little_of(site, chat_model, capsys, tmp_path):
    found = collect(tmp_path / "text", chat_model, TOKENS, VALIDATION)
    kinds = found["splits"]["train"]["kinds"]
    assert kinds["chats"] == {"texts": 0, "tokens": 0, "asked": 300, "share": 0}
    assert kinds["docstrings"]["tokens"] + kinds["requests"]["tokens"] >= TOKENS
    assert "chats: 0 of 300 tokens, all there are; prose fills up" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_text_of_one_s_own_in_place_of_docstrings(chat_model, tmp_path, kind):
    rng = random.Random(2)
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("a.txt", "b.md", "c.py"):
        (mine / name).write_text("\n\n".join(made_up(rng) for _ in range(60)))
    source = f"file:{mine / 'a.txt'}" if kind == "file" else f"folder:{mine}"
    found = collect(tmp_path / "text", chat_model, 1000, 200, source=source)
    assert (found["source"], found["packages"]) == (source, [])
    texts = [whole(e) for e in read(tmp_path / "text", "train") if e.subset == "own_text"]
    assert len(texts) == found["splits"]["train"]["kinds"]["own_text"]["texts"]
    there = [(mine / name).read_text().split("\n\n") for name in ("a.txt", "b.md")]
    assert all(text in there[0] or (kind == "folder" and text in there[1]) for text in texts)


def test_a_hub_dataset_in_place_of_docstrings(chat_model, tmp_path, monkeypatch):
    rng, asked = random.Random(3), []

    def rows(dataset, name):
        asked.append((dataset, name))
        while True:
            yield "\n\n".join(made_up(rng) for _ in range(3))

    monkeypatch.setattr(sources, "hub_texts", rows)
    found = collect(tmp_path / "text", chat_model, 1000, 200, source="hub:owner/text:en")
    assert asked == [("owner/text", "en")]
    assert found["splits"]["train"]["tokens"] >= 1000


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"source": "files:x"}, r"--source is 'files:x', expected docstrings, file:PATH"),
        ({"source": "file:"}, r"--source is 'file:', expected"),
        ({"source": "file:absent.txt"}, r"--source file:absent.txt: no file absent.txt"),
        ({"source": "folder:absent"}, r"--source folder:absent: no \*.txt or \*.md file in absent"),
        (
            {"replies": "absent.jsonl"},
            r"absent.jsonl: no such file; make it: python -m .*\.replies",
        ),
        ({"model": "absent/x/y"}, r"no model folder 'absent/x/y'"),
        (
            {"tokens": 100_000},
            r"too little text: --source docstrings has .* of the .*fewer --tokens",
        ),
    ],
)
def test_what_cannot_be_collected(site, chat_model, tmp_path, options, why):
    options = {"model": chat_model, "tokens": TOKENS, "validation_tokens": VALIDATION} | options
    with pytest.raises((ValueError, OSError), match=why):
        collect(tmp_path / "text", **options)
    assert not (tmp_path / "text").exists()


def test_a_text_that_is_not_utf_8_is_named(chat_model, tmp_path):
    (tmp_path / "mine.txt").write_bytes("Café".encode("cp1252"))
    with pytest.raises(ValueError, match=r"mine.txt: not UTF-8 \(byte 3\)"):
        collect(
            tmp_path / "text",
            chat_model,
            TOKENS,
            VALIDATION,
            source=f"file:{tmp_path / 'mine.txt'}",
        )


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": [{"role": "user", "content": "Hello."}], "kind": "chat"}',
        "[]",
        '{"messages": []}',
    ],
)
def test_a_line_that_is_no_reply_is_named(chat_model, replies, tmp_path, line):
    with open(replies, "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(
        ValueError, match=r"replies.jsonl, line 22: needs messages, target and kind"
    ):
        collect(tmp_path / "text", chat_model, TOKENS, VALIDATION, replies)


def test_a_model_without_a_chat_template(site, chat_model, tmp_path):
    model = shutil.copytree(chat_model, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        collect(tmp_path / "text", str(model), TOKENS, VALIDATION)


def test_too_small_a_disk(chat_model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"needs 16 MB of disk, .* has 0 free"):
        collect(tmp_path / "a" / "text", chat_model, 1_500_000, 60_000)


def test_help_and_wrong_numbers_need_no_model(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["collect", "out", "--model", "m", "--tokens", "-1"])
    with pytest.raises(SystemExit):
        module.main()
    assert "argument --tokens: invalid number above 0 value: '-1'" in capsys.readouterr().err
