"""The original study's checkpoints: read as tensors alone, marked with its hook site, usable as deltas."""

import pickle

import pytest
import torch

from delta_transcoders.dictionaries.delta import load_delta
from delta_transcoders.export import export
from delta_transcoders.fingerprints import hash_tensors
from delta_transcoders.import_dictionaries import import_original
from delta_transcoders.interventions.loading import load_delta_set


@pytest.fixture
def state(random_study):
    """The state dict of layer 0."""
    parts = {
        "base_transcoder": random_study.bases[0],
        "delta_features": random_study.deltas[0],
    }
    return {
        f"{part}.{name}": tensor.clone()
        for part, dictionary in parts.items()
        for name, tensor in dictionary.state_dict().items()
    }


@pytest.fixture
def imported(random_study, tmp_path):
    """Save a state dict as the original did, and import it."""

    def make(content, *folders: str):
        for name in folders or ("layer_0_dnew_6_pctl_0.50",):
            folder = tmp_path / "train_4" / name
            folder.mkdir(parents=True)
            if isinstance(content, bytes):
                (folder / "best_model.pt").write_bytes(content)
            else:
                torch.save(content, folder / "best_model.pt")
        return import_original(
            tmp_path / "train_4",
            tmp_path / "delta",
            model=random_study.model,
            base_transcoders=str(random_study.folder / "base_transcoders"),
            dtype="float32",
        )

    return make


def test_a_checkpoint_becomes_a_delta_for_the_original_site(imported, state, random_study, model):
    out = imported(state)
    delta, config = load_delta(out / "layer_0")
    assert hash_tensors(delta.state_dict()) == hash_tensors(random_study.deltas[0].state_dict())
    assert (config.hook_site, config.hook_in) == ("original", "blocks.0.hook_mlp_in")
    assert (config.percentile, config.average_l0_base) == (0.5, 8)
    assert config.base_hash == hash_tensors(random_study.bases[0].state_dict())
    # 1.5 kB of delta: the base was left out.
    assert (out / "layer_0" / "delta.safetensors").stat().st_size < 4096
    loaded = load_delta_set(out, str(random_study.folder / "base_transcoders"), model)
    assert (loaded.site.name, loaded.label) == ("original", "d6_p0.5")
    x = torch.randn(5, 32)
    written, _ = loaded.sources["delta"][0](x, None)
    assert torch.equal(written, random_study.deltas[0](x))


@pytest.mark.parametrize("format", ["deltas", "saelens"])
def test_an_imported_delta_is_exported_with_its_card(
    imported, state, random_study, tmp_path, format
):
    options = {"deltas": imported(state)}
    if format == "saelens":
        options["model"] = random_study.model
    out = export(random_study.folder, format, tmp_path / "out", **options)
    card = (out / "README.md").read_text()
    assert "| sparsity | l1 |" in card  # which aims at no L0
    assert "`original`: reads `blocks.L.hook_mlp_in`" in card


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (self.marker.touch, ())


def test_nothing_is_unpickled_but_tensors(imported, state, tmp_path):
    bomb = Bomb(tmp_path / "executed")
    with pytest.raises(ValueError, match="nothing of it was executed"):
        imported(state | {"delta_features.W_enc": bomb})
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused(imported, tmp_path, protocol):
    with pytest.raises(ValueError, match="nothing of it was executed"):
        imported(pickle.dumps(Bomb(tmp_path / "executed"), protocol=protocol))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"neither"])
def test_damaged_files_are_refused(imported, content):
    with pytest.raises(ValueError, match=r"best_model\.pt is not a checkpoint"):
        imported(content)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("delta_features.threshold"), "delta_features.threshold is missing"),
        (lambda s: s.update(step=torch.tensor(1)), "step is unexpected"),
        (lambda s: s.update(step=3), "holds a dict, expected a state dict of tensors"),
        (
            lambda s: s.update({"delta_features.W_enc": s["delta_features.W_enc"].T}),
            r"delta_features.W_enc has shape \[6, 32\], expected \[32, 6\] .*transposed",
        ),
        (
            lambda s: s.update({"delta_features.threshold": torch.zeros(7)}),
            r"delta_features.threshold has shape \[7\], expected \[6\]",
        ),
        (
            lambda s: s.update({"delta_features.b_dec": torch.zeros(1, 32)}),
            r"delta_features.b_dec has shape \[1, 32\], expected a vector",
        ),
        (lambda s: s["delta_features.b_enc"].fill_(torch.inf), "b_enc .* holds NaN or infinite"),
        (
            lambda s: s["base_transcoder.b_enc"].add_(1),
            r"base_transcoder is another base dictionary: hash .*average_l0_8/params.npz has",
        ),
    ],
)
def test_other_contents_are_named(imported, state, tmp_path, edit, message):
    edit(state)
    with pytest.raises(ValueError, match=message):
        imported(state)
    assert not (tmp_path / "delta").exists()


def test_several_configurations_are_refused(imported, state):
    with pytest.raises(ValueError, match=r"\(dnew 6 pctl 0.5, dnew 32 pctl 0.25\)"):
        imported(state, "layer_0_dnew_6_pctl_0.50", "layer_0_dnew_32_pctl_0.25")


def test_a_folder_without_checkpoints(random_study, tmp_path):
    with pytest.raises(FileNotFoundError, match="as the original study names them"):
        import_original(random_study.folder, tmp_path / "out", model=random_study.model)
