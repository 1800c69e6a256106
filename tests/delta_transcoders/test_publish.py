"""Everything that studies trained, as one repository: what is in it, what is said of it, what is refused."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from huggingface_hub import metadata_load

from delta_transcoders.command import run as run_command
from delta_transcoders.dictionaries.delta import load_deltas, save_delta
from delta_transcoders.interventions.loading import load_delta_set
from delta_transcoders.language_models import load_model
from delta_transcoders.publish import main, publish


@pytest.fixture
def runs(dictionaries, tmp_path):
    """Base dictionaries in one folder, two finetunes on them in others, one with a delta of a budget."""
    base, seeds = tmp_path / "base", [tmp_path / "seeds" / name for name in ("7", "8")]
    for part in ("base_transcoders", "base_activations"):
        shutil.copytree(dictionaries / part, base / part)
    for seed in seeds:
        for part in ("finetune", "delta"):
            shutil.copytree(dictionaries / part, seed / part)
    shutil.copytree(dictionaries / "delta", seeds[1] / "delta_end_to_end" / "n4")
    return [base, *seeds]


def test_a_study_in_one_folder(dictionaries, tmp_path):
    listed = publish([dictionaries], "user/it", tmp_path / "out")
    assert list(listed) == ["base_transcoders", "adapter", "delta", "."]
    for name, files in listed.items():
        for path, size in files:
            assert (tmp_path / "out" / name / path).stat().st_size == size
        assert "README.md" in dict(files)


def test_what_is_not_finished_is_not_shared(runs, tmp_path):
    delta = runs[1] / "delta"
    shutil.copytree(delta, runs[1] / ".delta.replaced")
    for name in (".other.partial", "delta_end_to_end.incomplete/n4"):
        shutil.copytree(delta, runs[1] / name, ignore=shutil.ignore_patterns("done.json"))
    listed = publish(runs[:2], "user/it", tmp_path / "out")
    assert list(listed) == ["base_transcoders", "adapter", "delta", "."]


def test_nothing_leaves_without_push_and_what_is_pushed_loads(runs, dictionaries, hub, tmp_path):
    out = tmp_path / "out"
    publish(runs, "user/it", out, dtype="bfloat16")
    assert not hub.root.exists()
    listed = publish(runs, "user/it", out, dtype="bfloat16", push=True)
    names = ["base_transcoders", "7_adapter", "7_delta", "8_adapter", "8_delta"]
    assert list(listed) == [*names, "8_delta_end_to_end_n4", "."]
    assert sorted(p.name for p in (hub.root / "user/it").iterdir() if p.is_dir()) == sorted(
        [*names, "8_delta_end_to_end_n4"]
    )
    merged = load_model(str(dictionaries / "finetune/merged"))
    loaded = load_delta_set("user/it/8_delta", str(hub.root / "user/it/base_transcoders"), merged)
    assert list(loaded.layers) == [0, 1]
    for _, _, config in load_deltas("user/it/7_delta").values():
        folder = f"user/it/base_transcoders/layer_{config.layer}"
        assert config.base_id == f"{folder}/sae_weights.safetensors"

    card = (out / "README.md").read_text()
    assert metadata_load(out / "README.md")["library_name"] == "delta-transcoders"
    for name in names:
        assert f"| [`{name}`]({name}/README.md) |" in card
    assert "hf download user/it --local-dir models/it" in card
    fingerprint = load_deltas(runs[1] / "delta")[0][2].model_fingerprint
    assert f"| `7_adapter` | `{fingerprint}` |" in card
    deltas = (out / "8_delta/README.md").read_text()
    assert 'load_delta_set("user/it/8_delta", "user/it/base_transcoders"' in deltas
    adapter = (out / "7_adapter/README.md").read_text()
    assert 'from_pretrained(base, "user/it", subfolder="7_adapter")' in adapter
    for path in out.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text(), path


def test_deltas_on_other_dictionaries_keep_the_name_of_these(runs, tmp_path):
    """As those on a second set of the same layers."""
    other = runs[2] / "delta_end_to_end/n4"
    changes = {"base_hash": "0" * 64, "base_id": "base_transcoders_2/layer_{}/params.npz"}
    for layer, (path, delta, config) in load_deltas(other).items():
        changed = {name: text.format(layer) for name, text in changes.items()}
        save_delta(path, delta, replace(config, **changed))
    publish(runs, "user/it", tmp_path / "out")
    for name, base in (("8_delta_end_to_end_n4", "base_transcoders_2"), ("8_delta", "user/it")):
        for _, _, config in load_deltas(tmp_path / "out" / name).values():
            assert config.base_id.startswith(f"{base}/")


def test_a_later_push_takes_back_what_is_no_longer_there(runs, hub, tmp_path):
    publish(runs, "user/it", tmp_path / "out", push=True)
    (hub.root / "user/it/notes.txt").write_text("of its owner")
    shutil.rmtree(runs[2] / "delta/layer_1")
    publish(runs, "user/it", tmp_path / "out", push=True)
    assert list(load_deltas(hub.root / "user/it/8_delta")) == [0]
    assert (hub.root / "user/it/notes.txt").exists()


def test_the_finetuned_model_on_request(dictionaries, tmp_path):
    listed = publish([dictionaries], "user/it", tmp_path / "out", merged=True)
    assert "model.safetensors" in dict(listed["merged"])
    model = load_model(str(tmp_path / "out/merged"))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_command_lists_what_it_would_push(dictionaries, tmp_path, monkeypatch, capsys):
    given = [str(dictionaries), "--to", "user/it", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["publish", *given])
    main()
    said = capsys.readouterr().out
    assert (
        "files  base_transcoders\n" in said and "not pushed (--push does that) to user/it" in said
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "name"}, ValueError, "--to 'name': a hub id is USER/NAME"),
        ({"runs": ["nowhere"]}, FileNotFoundError, "nowhere holds nothing to share"),
        ({"runs": 2}, ValueError, "would both be shared as base_transcoders: give one"),
        ({"out": "taken"}, FileExistsError, "taken holds something else than an export"),
    ],
)
def test_what_the_user_got_wrong_is_named(
    dictionaries, tmp_path, monkeypatch, options, error, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.json").write_text(json.dumps({}))
    if options.get("runs") == 2:
        shutil.copytree(dictionaries / "base_transcoders", tmp_path / "b/base_transcoders")
        options = {"runs": [dictionaries, tmp_path / "b"]}
    with pytest.raises(error, match=message):
        publish(**{"runs": [dictionaries], "to": "user/it", "out": "out"} | options)
    assert not (tmp_path / "out").exists()


def test_private_goes_with_push(dictionaries, tmp_path, monkeypatch, capsys):
    given = [str(dictionaries), "--to", "user/it", "--out", str(tmp_path / "out"), "--private"]
    monkeypatch.setattr(sys, "argv", ["publish", *given])
    with pytest.raises(SystemExit):
        run_command(main)
    assert "error: --private goes with --push" in capsys.readouterr().err
