"""Seeds that follow from the commit that registers the claims."""

import subprocess

import pytest

from delta_transcoders.study.seeds import main, registering_commit, seeds_of


def git(*args: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.example")
    ended = subprocess.run(["git", *identity, *args], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    for folder in ("docs", "docs/model"):
        (tmp_path / folder).mkdir()
        for name in ("REGISTERED.md", "findings_conditions.csv"):
            (tmp_path / folder / name).write_text("first\n")
    (tmp_path / "other.md").write_text("first\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "Register")
    return tmp_path


def test_seeds_are_different_stable_and_begin_alike():
    seeds = seeds_of("0" * 40, 200)
    assert len(set(seeds)) == 200
    assert all(100_000 <= seed < 1_000_000 for seed in seeds)
    assert seeds_of("0" * 40, 5) == seeds[:5]
    assert not set(seeds_of("1" * 40, 5)) & set(seeds[:5])


def test_the_commit_is_the_last_that_changed_what_is_registered(checkout):
    first = git("rev-parse", "HEAD")
    (checkout / "other.md").write_text("second\n")
    git("commit", "--all", "--quiet", "--message", "Something else")
    assert registering_commit() == first
    (checkout / "docs/findings_conditions.csv").write_text("second\n")
    with pytest.raises(
        ValueError, match=r"not committed, and so not registered: docs/findings_con"
    ):
        registering_commit()
    git("commit", "--all", "--quiet", "--message", "Register other claims")
    assert registering_commit() == git("rev-parse", "HEAD") != first


def test_each_folder_is_registered_by_itself(checkout, capsys):
    first = git("rev-parse", "HEAD")
    with pytest.raises(ValueError, match=r"nothing is registered in docs/model yet: .* plan\.json"):
        main(["--registered", "docs/model"])
    (checkout / "docs/model/plan.json").write_text("{}\n")
    with pytest.raises(ValueError, match=r"so not registered: docs/model/plan\.json"):
        registering_commit("docs/model")
    git("add", ".")
    git("commit", "--quiet", "--message", "A plan")
    assert registering_commit("docs/model") == git("rev-parse", "HEAD") != first
    assert registering_commit() == first
    main([])
    main(["--registered", "docs/model", "--n", "3"])
    shown = [list(map(int, line.split())) for line in capsys.readouterr().out.splitlines()]
    assert shown == [seeds_of(first, 5), seeds_of(git("rev-parse", "HEAD"), 3)]


def test_elsewhere_nothing_is_registered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="nothing is registered in docs: there is no such folder"):
        registering_commit()
    (tmp_path / "docs").mkdir()
    with pytest.raises(ValueError, match="git"):
        registering_commit()
    git("init", "--quiet")
    with pytest.raises(ValueError, match="no commit holds docs/REGISTERED"):
        registering_commit()


def test_a_clone_without_history_does_not_know_the_commit(checkout, monkeypatch):
    (checkout / "other.md").write_text("second\n")
    git("commit", "--all", "--quiet", "--message", "Something else")
    first = registering_commit()
    git("clone", "--quiet", "--depth", "1", checkout.as_uri(), "shallow")
    monkeypatch.chdir(checkout / "shallow")
    with pytest.raises(
        ValueError, match=r"without history .* that registered docs: git fetch --unshallow"
    ):
        registering_commit()
    git("fetch", "--quiet", "--unshallow")
    assert registering_commit() == first
