"""`delta-transcoders inspect`: what it prints, and one short line where it cannot."""

import gc
import json
import re
import sys

import pytest

from delta_transcoders.command import run
from delta_transcoders.inspector import command


@pytest.fixture
def called(inspector, monkeypatch, capsys):
    """`called("PROMPT", "--json")`: what is printed, with the study opened before."""
    monkeypatch.setattr(command, "open_quietly", lambda study: inspector)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["inspect", inspector.parts.study, *args])
        command.main()
        return capsys.readouterr().out

    return call


def test_all_answers_and_features_are_printed(called, inspector):
    out = called(
        "What is 12 * 34?", "--alpha", "0.5", "-0.5", "--drop", "0:3", "--layers", "0", "2"
    )
    lines = out.splitlines()
    assert lines[1] == "prompt: What is 12 * 34?⏎"
    assert lines[3].split() == ["p(call)"]
    labels = [line.partition("  ")[0] for line in lines[4:10]]
    assert labels == [
        "base model",
        "finetuned model",
        "base dictionary alone",
        "base dictionary + delta",
        "base dictionary + 0.5 · delta without L0F3",
        "base dictionary − 0.5 · delta without L0F3",
    ]
    assert all(line.split(" %")[0].split()[-1].replace(".", "").isdigit() for line in lines[4:10])
    assert "p(call): probability of writing <tool_call>calculator( next" in lines
    heading = next(i for i, line in enumerate(lines) if line.startswith("The delta's strongest"))
    features = lines[heading + 1 :]
    assert all(len(line) <= 100 for line in features)
    found = json.loads(called("What is 12 * 34?", "--json"))
    expected = [
        f"L{layer}F{f} {a:.1f}"
        for token in found["tokens"]
        for layer, f, a in token["features"] or ()
    ]
    assert re.findall(r"L\d+F\d+ \d+\.\d", "\n".join(features)) == expected


def test_json_is_one_object_with_the_same(called, inspector):
    found = json.loads(called("What is 12 * 34?", "--json", "--max-new-tokens", "3"))
    assert list(found) == ["study", "prompt", "answers", "tokens"]
    assert found["study"] == inspector.parts.study
    assert [a["name"] for a in found["answers"]] == ["base_model", "raw", "no_delta", "full"]
    assert all(answer["is_cut"] for answer in found["answers"])
    assert found["answers"][1]["opening"] > 0


def test_hostile_texts_cannot_reach_the_terminal(called, inspector, monkeypatch):
    monkeypatch.setattr(inspector.reader, "text", lambda ids: "\x1b[2Ja\u202eb\u2028c\x00")
    out = called("a\x1b[31mb")
    assert "prompt: a\\x1b[31mb⏎" in out
    assert "\\x1b[2Ja\\u202eb\\u2028c\\x00" in out
    assert all(letter.isprintable() or letter == "\n" for letter in out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["hi", "--alpha", "nan"], "alpha is nan, expected a number from -10 to 10"),
        (["hi", "--drop", "31"], "'31' is no feature: give layer and number, as in 0:31 or L0F31"),
        (["hi", "--layers", "9"], "there is no layer 9: the model has 3, 0 to 2"),
        (["hi", "--drop", "L0F99"], "there is no feature L0F99: layer 0 has 6, L0F0 to L0F5"),
        (["  "], "the prompt is empty"),
    ],
)
def test_what_cannot_be_answered_is_one_line(inspector, monkeypatch, capsys, args, message):
    monkeypatch.setattr(command, "open_quietly", lambda study: inspector)
    monkeypatch.setattr(sys, "argv", ["inspect", inspector.parts.study, *args])
    with pytest.raises(SystemExit) as stopped:
        run(command.main)
    assert stopped.value.code == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {message}") and rest == ["(DELTA_TRACEBACK=1 shows where)"]


def test_what_stays_is_not_looked_through_for_garbage(inspectable_study, monkeypatch):
    enabled = []

    def opened(study):
        enabled.append(gc.isenabled())
        raise ValueError(study)

    monkeypatch.setattr("delta_transcoders.inspector.session.Session", opened)
    before = gc.get_freeze_count()
    with pytest.raises(ValueError):
        command.open_quietly(str(inspectable_study))
    assert enabled == [False] and gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_a_missing_study_is_told_before_the_slow_imports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inspect", str(tmp_path / "absent"), "hi"])
    monkeypatch.setitem(sys.modules, "delta_transcoders.inspector.session", None)
    with pytest.raises(SystemExit):
        run(command.main)
    assert "no study folder" in capsys.readouterr().err
