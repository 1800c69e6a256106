"""What earlier versions wrote is read with the same values, or refused by the name of what makes it anew."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.layout import SPLITS
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.corrections import load_corrections
from delta_transcoders.dictionaries.delta import load_base_of, load_deltas
from delta_transcoders.dictionaries.files.exported import load_export
from delta_transcoders.report.ranking import across, read_effects
from delta_transcoders.report.shared_study import read_study

FROZEN = Path(__file__).parent / "frozen" / "8a66e85"
LAYERS = (0, 1)


@pytest.fixture(scope="module")
def values() -> dict[str, torch.Tensor]:
    """What the commit's own code computed from the files on `x`, or read out of them."""
    return load_file(FROZEN / "values.safetensors")


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_delta_and_its_base(values):
    deltas = load_deltas(FROZEN / "delta")
    assert sorted(deltas) == list(LAYERS)
    for layer, (path, delta, config) in deltas.items():
        base, _ = load_base_of(path, config, str(FROZEN / "base_transcoders"))  # checks its hash
        equal(delta(values["x"]), values[f"delta {layer}"])
        equal(base(values["x"]), values[f"base {layer}"])
        assert (config.d_new, config.target, config.hook_site) == (3, "residual", "gemma_scope")


def test_bases_in_gemma_scopes_layout(values):
    for layer in LAYERS:
        base, base_id = load_base(FROZEN / "base_transcoders", layer, percentile=0.5)
        equal(base(values["x"]), values[f"base {layer}"])
        assert (base_id.width, base_id.average_l0) == (16, 4)


@pytest.mark.parametrize("name", ["gemma_scope", "saelens", "circuit_tracer"])
def test_an_export(name, values):
    model = load_deltas(FROZEN / "delta")[0][2].model_fingerprint
    card, dictionaries = load_export(FROZEN / name, model)  # checks the hashes
    assert (card.format, card.alpha, sorted(dictionaries)) == (name, 0.5, list(LAYERS))
    for layer, dictionary in dictionaries.items():
        equal(dictionary(values["x"]), values[f"half of the delta {layer}"])


def test_a_correction_which_had_no_version_yet(values):
    for layer, (correction, config) in load_corrections(FROZEN / "corrections/ridge").items():
        equal(correction(values["x"]), values[f"ridge {layer}"])
        assert (config.kind, config.format_version) == ("ridge", 1)


def test_an_activation_cache(values):
    cache = ActivationCache(FROZEN / "activations")
    assert cache.meta.layers == LAYERS
    assert cache.meta.token_policy == "without BOS, EOS and padding"
    assert [cache.n_tokens(split) for split in SPLITS] == [6, 3]
    assert cache.index("train")["example_ids"].tolist() == [0, 0, 0, 1, 1, 1]
    names = ("x", "y", "residual-p0.5")
    for layer in LAYERS:
        for name, found in cache.load("train", layer, names).items():
            assert torch.equal(found, values[f"cache {name} {layer}"])
    with pytest.raises(ValueError, match=r"rebuild it with `python evaluate\.py --config configs/"):
        cache.expect(token_policy="another")


def test_a_ranking_which_had_no_version_yet(tmp_path):
    ((place, effects),) = read_effects(FROZEN / "ranking").items()
    assert place == (0, "drop", "tool")
    assert effects.tolist() == [[0, 0], [1, -1], [2, -2]]
    ranking = shutil.copytree(FROZEN / "ranking", tmp_path / "ranking")
    (ranking / "ranking.json").write_text(json.dumps({"delta": str(FROZEN / "delta")}))
    (row,) = across(ranking, ranking)
    assert (row["n_features"], row["cosine"]) == (2, pytest.approx(1))


@pytest.mark.parametrize(
    ("file", "load", "remake"),
    [
        (
            "delta/layer_0/config.json",
            lambda f: load_deltas(f / "delta"),
            "train.py --config …/delta",
        ),
        (
            "corrections/ridge/layer_0/config.json",
            lambda f: load_corrections(f / "corrections/ridge"),
            "train.py --config …/corrections",
        ),
        (
            "activations/manifest.json",
            lambda f: ActivationCache(f / "activations"),
            "evaluate.py --config …/activations",
        ),
        (
            "saelens/export.json",
            lambda f: load_export(f / "saelens"),
            "-m delta_transcoders.export",
        ),
        (
            "ranking/ranking.json",
            lambda f: across(f / "ranking", f / "ranking"),
            "evaluate.py --config …/ranking",
        ),
    ],
)
def test_a_later_version_is_refused_by_the_name_of_what_makes_it_anew(tmp_path, file, load, remake):
    folder = shutil.copytree(FROZEN, tmp_path / "later")
    later = json.loads((folder / file).read_text()) | {"format_version": 99, "added": 1}
    (folder / file).write_text(json.dumps(later))
    with pytest.raises(ValueError, match=r"format_version.* 99, .*`python ") as refused:
        load(folder)
    assert remake in str(refused.value)


def test_a_later_description_of_the_task_is_refused(tmp_path):
    path = tmp_path / "finetune/data/task.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"format_version": 2}')
    with pytest.raises(ValueError, match=r"task\.json: format_version is 2, .* anew with `python"):
        read_study(tmp_path, tmp_path / "delta", None)
