"""What is shared can be loaded again, says what it is, and is refused where it does not belong."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from delta_transcoders import publish
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.interventions.loading import load_control, load_delta_set
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.publish import push_folder, write_folder
from delta_transcoders.transcoders.delta import load_delta
from delta_transcoders.transcoders.gemma_scope import load_base, save_base


class Hub:
    """Stands in for the hub: repositories are folders. Calls must fit the real signatures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: dict[str, bool] = {}

    def create_repo(self, api, repo_id, *, private=None, exist_ok=False):
        assert exist_ok
        self.private.setdefault(repo_id, private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{repo_id}"

    def repo_info(self, api, repo_id):
        return SimpleNamespace(private=self.private[repo_id])

    def upload_folder(self, api, *, repo_id, folder_path, commit_message, delete_patterns):
        for pattern in delete_patterns:
            for path in (self.root / repo_id).glob(pattern):
                shutil.rmtree(path)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo_id, *, allow_patterns):
        if not (self.root / repo_id).is_dir():
            raise LocalEntryNotFoundError("not cached")
        assert allow_patterns == ["layer_*/*"]
        return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "repo_info", "upload_folder"):
        checked = mock.create_autospec(getattr(HfApi, name), side_effect=getattr(hub, name))
        monkeypatch.setattr(HfApi, name, checked)
    download = mock.create_autospec(
        huggingface_hub.snapshot_download, side_effect=hub.snapshot_download
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return hub


@pytest.fixture
def run(monkeypatch):
    """Run the command line; its exit status."""

    def call(*args) -> int:
        monkeypatch.setattr(sys, "argv", ["publish", *map(str, args)])
        try:
            publish.run_command(publish.main)
        except SystemExit as stop:
            return stop.code
        return 0

    return call


@pytest.fixture
def merged(dictionaries):
    return load_model(str(dictionaries / "finetune/merged"))


@pytest.fixture
def bases(dictionaries):
    return str(dictionaries / "base_transcoders")


@pytest.fixture
def pushed(dictionaries, hub, tmp_path):
    """Hub id of the study's deltas."""
    write_folder(dictionaries, "deltas", tmp_path / "deltas")
    push_folder(tmp_path / "deltas", "user/deltas")
    return "user/deltas"


# There and back


def test_pushed_deltas_load_by_their_hub_id(dictionaries, hub, pushed, merged, bases):
    loaded = load_delta_set(pushed, bases, merged)
    local = load_delta_set(dictionaries / "delta", bases, merged)
    assert (loaded.label, loaded.site, list(loaded.layers)) == (local.label, local.site, [0, 1])
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for name in ("base", "delta"):
        for layer in loaded.layers:
            got, want = (s.sources[name][layer](x, None)[0] for s in (loaded, local))
            assert torch.equal(got, want)
    assert list(load_control(pushed, local.site, 32)) == [0, 1]


def test_a_wrong_model_or_base_is_refused_after_the_round_trip(
    dictionaries, pushed, merged, bases, tmp_path
):
    other = load_model(str(dictionaries / "base_model"))
    with pytest.raises(ValueError, match=r"layer_0 was trained on another model: fingerprint"):
        load_delta_set(pushed, bases, other)
    for layer in (0, 1):
        base, base_id = load_base(bases, layer, percentile=0.5)
        base.b_dec = base.b_dec + 1
        save_base(tmp_path / "bases", layer, base, base_id.average_l0)
    with pytest.raises(ValueError, match=r"layer_0 was trained on another base dictionary: hash"):
        load_delta_set(pushed, str(tmp_path / "bases"), merged)


def test_nothing_but_names_changes_in_the_deltas(dictionaries, hub, pushed):
    for layer in (0, 1):
        shared, local = hub.root / pushed / f"layer_{layer}", dictionaries / f"delta/layer_{layer}"
        name = "delta.safetensors"
        assert (shared / name).read_bytes() == (local / name).read_bytes()
        got, want = (json.loads((p / "config.json").read_text()) for p in (shared, local))
        base_id = got.pop("base_id")
        assert want.pop("base_id").endswith(base_id)
        assert re.fullmatch(
            r"base_transcoders/layer_\d/width_128/average_l0_\d+/params\.npz", base_id
        )
        assert got == want


def test_the_merged_model_and_the_adapter_give_the_same_model(dictionaries, merged, tmp_path):
    from peft import PeftModel

    for what in ("merged", "adapter"):
        write_folder(dictionaries, what, tmp_path / what)
    shared = str(tmp_path / "merged")
    assert model_fingerprint(load_model(shared)) == model_fingerprint(merged)
    assert (
        load_tokenizer(shared)("7*8").input_ids
        == load_tokenizer(str(dictionaries / "finetune/merged"))("7*8").input_ids
    )
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base_model"
    adapted = PeftModel.from_pretrained(
        load_model(str(dictionaries / "base_model")), str(tmp_path / "adapter")
    )
    wanted = PeftModel.from_pretrained(
        load_model(str(dictionaries / "base_model")), str(dictionaries / "finetune/adapter")
    )
    for got, want in zip(adapted.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(got, want)


def test_no_name_of_this_machine_is_shared(dictionaries, tmp_path):
    for what in ("adapter", "merged", "deltas"):
        write_folder(dictionaries, what, tmp_path / what)
        for path in (tmp_path / what).rglob("*"):
            if path.suffix in (".json", ".md"):
                assert str(dictionaries) not in path.read_text(), path


def test_a_second_push_replaces_the_layers(hub, dictionaries, pushed, tmp_path):
    shutil.copytree(dictionaries, tmp_path / "study")
    shutil.rmtree(tmp_path / "study/delta/layer_1")
    write_folder(tmp_path / "study", "deltas", tmp_path / "deltas")
    push_folder(tmp_path / "deltas", pushed)
    assert [p.name for p in (hub.root / pushed).glob("layer_*")] == ["layer_0"]


def test_the_command_writes_and_pushes(dictionaries, hub, run, tmp_path, capsys):
    out = tmp_path / "shared"
    given = ["--run", dictionaries, "--what", "deltas", "--out", out]
    assert run(*given) == 0 and not hub.private
    assert load_delta(out / "layer_1")[1].layer == 1
    assert run(*given, "--push-to-hub", "user/name", "--private") == 0
    assert hub.private == {"user/name": True}
    assert "pushed: https://hub/user/name" in capsys.readouterr().out
    card = hub.root / "user/name/README.md"
    assert card.read_text() == (out / "README.md").read_text()
    fields = metadata_load(card)
    assert (fields["library_name"], fields["license"]) == ("delta-transcoders", "apache-2.0")
    assert "base_model" not in fields  # a local folder, which the hub does not know


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push-to-hub", "name"], "--push-to-hub 'name': a hub id is USER/NAME"),
        (["--push-to-hub", "a/b/c"], "--push-to-hub 'a/b/c': a hub id is USER/NAME"),
        (["--push-to-hub", "user/na me"], "--push-to-hub 'user/na me': Repo id must"),
        (["--private"], "--private goes with --push-to-hub"),
        (["--base-model", "./gemma"], "--base-model './gemma' is not a hub id"),
    ],
)
def test_bad_options(dictionaries, hub, run, tmp_path, capsys, options, message):
    out = tmp_path / "shared"
    assert run("--run", dictionaries, "--what", "deltas", "--out", out, *options) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not out.exists() and not hub.private


def test_no_token(dictionaries, hub, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    given = ["--run", dictionaries, "--what", "deltas", "--out", tmp_path / "shared"]
    assert run(*given, "--push-to-hub", "user/name") == 2
    assert re.search(r"error: no Hugging Face token here: .*HF_TOKEN\n", capsys.readouterr().err)
    assert not hub.private and not (tmp_path / "shared").exists()


def test_a_private_push_into_a_public_repository(dictionaries, hub, pushed, tmp_path):
    with pytest.raises(ValueError, match="user/deltas exists and is public"):
        push_folder(tmp_path / "deltas", pushed, private=True)


def test_a_hub_that_refuses_or_is_out_of_reach(hub, monkeypatch, tmp_path):
    (tmp_path / "x").mkdir()
    monkeypatch.setattr(
        HfApi, "create_repo", mock.Mock(side_effect=OfflineModeIsEnabled("off\nit is"))
    )
    with pytest.raises(
        ConnectionError, match=r"as user/name: it is; it needs a network and a token"
    ):
        push_folder(tmp_path / "x", "user/name")


@pytest.mark.parametrize(
    ("what", "missing", "message"),
    [
        (
            "deltas",
            "delta",
            r"delta has no layer_\*/config.json: run `python train.py .*/delta.yaml",
        ),
        (
            "merged",
            "finetune/merged/tokenizer.json",
            r"merged has no tokenizer.json: run .*lora.yaml",
        ),
        ("deltas", "finetune/adapter", r"adapter has no adapter_config.json: run .*/lora.yaml"),
        ("adapter", "finetune/adapter/adapter_model.safetensors", "no adapter_model.safetensors"),
    ],
)
def test_a_missing_stage(dictionaries, tmp_path, what, missing, message):
    study = shutil.copytree(
        dictionaries, tmp_path / "study", ignore=shutil.ignore_patterns("*activations", "logs")
    )
    if (study / missing).is_dir():
        shutil.rmtree(study / missing)
    else:
        (study / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        write_folder(study, what, tmp_path / "shared")
    with pytest.raises(FileNotFoundError, match="no study folder 'absent'"):
        write_folder("absent", what, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_a_folder_of_something_else_is_not_replaced(dictionaries, tmp_path):
    (tmp_path / "README.md").write_text("mine: delta-transcoders")
    with pytest.raises(FileExistsError, match="holds something else"):
        write_folder(dictionaries, "adapter", tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine: delta-transcoders"
    for _ in range(2):  # its own folder is
        write_folder(dictionaries, "adapter", tmp_path / "adapter")


def test_deltas_of_two_models_are_not_shared_as_one(dictionaries, tmp_path):
    study = shutil.copytree(dictionaries, tmp_path / "study")
    path = study / "delta/layer_1/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="model_fingerprint differs between layers"):
        write_folder(study, "deltas", tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_an_absent_source_of_deltas(hub, merged, bases):
    with pytest.raises(ConnectionError, match=r"'user/none' is neither .*`hf download user/none"):
        load_delta_set("user/none", bases, merged)
    for source in ("runs/none", "./none", "none"):
        with pytest.raises(FileNotFoundError, match=f"no such folder: {source}"):
            load_delta_set(source, bases, merged)


def test_help_is_quick():
    code = (
        "import sys; sys.argv = ['publish', '--help']\n"
        "from delta_transcoders import publish\n"
        "try: publish.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--push-to-hub USER/NAME" in done.stdout and done.stdout.endswith("[]\n")
