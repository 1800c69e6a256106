"""`draw`, a committed file of rules, and `score`: nothing is scored that was not committed."""

import csv
import sys

import pytest

from delta_transcoders.features.rules import __main__ as command
from delta_transcoders.features.rules.committed import committed, rules_sha256


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*args) -> str:
        monkeypatch.setattr(sys, "argv", ["rules", *map(str, args)])
        command.main()
        return capsys.readouterr().out

    return run


def rows_of(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_from_contexts_to_scores(planted, names, rules_text, git, run, tmp_path):
    out = tmp_path / "mine"
    assert "contexts of 4 units" in run("draw", planted("A"), out)
    assert {p.name for p in out.iterdir()} == {"contexts.txt", "rules.yaml", "units.json"}
    with pytest.raises(FileExistsError, match=r"rules.yaml is there already"):
        run("draw", planted("A"), out)
    with pytest.raises(ValueError, match="U1: says is ''"):
        run("score", out, planted("A"))
    (out / "rules.yaml").write_text(rules_text)
    shown = run("score", out, planted("A"))
    assert "balanced accuracy on half A" in shown and "1.000 [1.000, 1.000]" in shown
    assert "neuron" not in shown and not (out / "scores.csv").exists()  # what they are stays hidden

    half_b = planted("B", rules_sha256(out))
    with pytest.raises(ValueError, match=r"rules.yaml is not committed, and half B is opened for"):
        run("score", out, half_b)
    git("add", "mine")
    git("commit", "--quiet", "-m", "Rules")
    with pytest.raises(ValueError, match=r"B is not half A of "):
        run("score", out, half_b, half_b)
    shown = run("score", out, half_b, planted("A"))
    assert "half B, all tokens" in shown and "half B, new tokens" in shown
    assert "feature by effect" in shown and "feature − neuron by seed" in shown
    commit = git("rev-parse", "HEAD")
    scores, means = (rows_of(out / f"{name}.csv") for name in ("scores", "summary"))
    assert [row["unit"] for row in scores] == 2 * list(names)
    assert {row["rules_commit"] for row in (*scores, *means)} == {commit}
    assert [row["balanced_accuracy"] for row in scores] == 2 * ["1", "1", "1", "0.5"]
    assert [row["tokens"] for row in means] == 6 * ["all"] + 6 * ["new"]
    n_tokens = {(row["tokens"], row["unit"]): int(row["n_tokens"]) for row in scores}
    assert n_tokens["all", "U1"] == 60 * 30 > n_tokens["new", "U1"] > 0

    # Later commits of other files do not count; a change of the rules does, committed or not.
    git("add", ".")
    git("commit", "--quiet", "-m", "Scores")
    assert committed(out) == commit
    (out / "rules.yaml").write_text(rules_text.replace("an animal", "a cat or a dog"))
    with pytest.raises(ValueError, match=r"rules.yaml was changed since it was committed"):
        run("score", out, half_b)
    git("commit", "--quiet", "-am", "Better rules")
    with pytest.raises(ValueError, match="are others than half B was opened for: take those back"):
        run("score", out, half_b)


def test_what_is_not_in_git_or_is_ignored_is_refused(planted, git, run, tmp_path):
    out = tmp_path / "runs/mine"
    run("draw", planted("A"), out)
    (tmp_path / ".gitignore").write_text("runs/\n")
    with pytest.raises(ValueError, match=r"rules.yaml is not committed"):
        committed(out)
    git("add", "-f", "runs/mine/rules.yaml")
    git("commit", "--quiet", "-m", "Rules")
    with pytest.raises(ValueError, match=r"units.json is not committed"):
        committed(out)
    with pytest.raises(ValueError, match=r"does not exist; `python -m .* draw` writes it"):
        committed(tmp_path)


def test_what_does_not_belong_together_is_refused(planted, run, tmp_path):
    with pytest.raises(ValueError, match="is of half B: rules are written from half A alone"):
        run("draw", planted("B", "sha"), tmp_path / "out")
    run("draw", planted("A"), tmp_path / "out")
    path = tmp_path / "out/units.json"
    path.write_text(path.read_text().replace('"number": 7', '"number": 8'))
    with pytest.raises(ValueError, match=r"is of other units than .*: were they drawn anew"):
        run("score", tmp_path / "out", planted("A"))


def test_the_rules_own_folder_must_be_in_a_repository(planted, run, tmp_path, monkeypatch):
    run("draw", planted("A"), tmp_path / "out")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match=r"git ls-files in .*: .*not a git repository"):
        committed(tmp_path / "out")
