"""What a family says of a model is what the model itself does."""

import re
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, OPTConfig, PaliGemmaConfig, Phi3Config, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.families import FAMILIES, family_by_type, family_of
from delta_transcoders.families.gpt2 import GPT2
from delta_transcoders.families.sites import HOOK_SITES, RESIDUAL
from delta_transcoders.interventions.sources import mlp_sources
from delta_transcoders.language_models import load_config, load_model, load_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ids(folder):
    """Two rows [2, 12] of text, after BOS where the tokenizer adds it; no padding."""
    drawn = torch.randint(6, 400, (2, 12), generator=torch.Generator().manual_seed(0))
    bos = load_tokenizer(folder)("").input_ids
    drawn[:, : len(bos)] = torch.tensor(bos)
    return drawn


def test_a_model_belongs_to_one_family():
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))


def test_the_configuration_tells_family_and_sizes(case, folder):
    family = family_of(load_config(folder))
    assert type(family) is case.family
    assert (family.n_layers, family.d_model, family.context) == (3, 32, 128)
    model = load_model(folder)
    assert len(model.get_submodule(family.blocks_path)) == 3
    assert model.get_input_embeddings().embedding_dim == 32


def test_decoder_and_logits_are_the_models_own(case, folder, ids):
    model = load_model(folder)
    family = family_of(model.config)
    with torch.no_grad():
        hidden = family.decoder(model)(input_ids=ids).last_hidden_state
        logits = family.logits(model, hidden.flatten(0, 1))
        assert torch.equal(logits, model(input_ids=ids).logits.flatten(0, 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_mlp_gives_the_models_output_bit_for_bit(case, folder, ids, dtype):
    mlps = [mlp_sources(load_model(folder, dtype), range(3), s) for s in case.family.mlps]
    bridge = boot_bridge(load_model(folder, dtype), load_tokenizer(folder))
    for site, sources in zip(case.family.mlps, mlps, strict=True):
        got = capture(bridge, ids, torch.ones_like(ids), range(3), site)
        for layer, (x, y) in got.activations.items():
            again = sources[layer](x)[0]
            assert torch.equal(sources[layer](x.float())[0], again)  # as a cache holds it
            if (
                case.family is GPT2 and site == RESIDUAL
            ):  # the bridge writes out PyTorch's layer norm
                torch.testing.assert_close(again, y, atol=1e-5, rtol=1e-5)
            else:
                assert torch.equal(again, y), (site.name, layer)


def test_an_mlp_is_not_put_back_where_it_would_not_be_exact(case, folder):
    for site in set(HOOK_SITES.values()) - set(case.family.mlps):
        with pytest.raises(ValueError, match=f"hook site '{site.name}' is not where an MLP of"):
            mlp_sources(load_model(folder), [0], site)


def test_the_familys_sites_exist(case):
    assert case.family.site in case.family.candidates
    assert set(case.family.mlps) <= set(case.family.candidates)


def test_only_gemma_s_mlps_are_followed_by_a_norm(case, folder):
    layer = load_model(folder).get_submodule(f"{case.family.blocks_path}.0")
    has_one = hasattr(layer, "post_feedforward_layernorm")
    assert family_of(load_config(folder)).has_post_norm is has_one is ("gemma" in case.name)


def test_adapters_go_on_linear_layers_of_every_block(case, folder):
    model = load_model(folder)
    linear = torch.nn.Linear | Conv1D
    names = [name for name, m in model.named_modules() if isinstance(m, linear)]
    excluded = case.family.lora_excluded
    for target in case.family.lora_targets:
        found = [name for name in names if name.endswith(f".{target}")]
        found = [name for name in found if not (excluded and re.fullmatch(excluded, name))]
        assert {name.removesuffix(f".{target}").rpartition(".")[0] for name in found} == {
            f"{case.family.blocks_path}.{layer}" for layer in range(3)
        }, target


@pytest.mark.parametrize(
    "config",
    [Phi3Config(), OPTConfig(), PaliGemmaConfig(text_config=Gemma2Config().to_dict())],
    ids=lambda config: config.model_type,
)
def test_other_families_are_refused_multimodal_ones_too(config, tmp_path):
    message = (
        rf"model_type '{config.model_type}' is not supported, only gemma2 \(Gemma 2\), .*gpt2 \(GPT-2\); "
        r"what another family's file says is in docs/NEW_FAMILY\.md"
    )
    with pytest.raises(ValueError, match=message):
        family_of(config)
    config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        load_config(str(tmp_path))


def test_hub_ids_are_refused_too(monkeypatch):
    """Also one that comes with code of its own, which is never run."""
    said = Phi3Config().to_dict() | {"auto_map": {"AutoConfig": "configuration.Own"}}
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", lambda source: (said, {}))
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match="'owner/phi' is of an unknown family: model_type"):
            load("owner/phi")


def test_a_configuration_without_a_type_is_refused():
    with pytest.raises(ValueError, match="model_type None is not supported"):
        family_by_type(None)


# What a family knows is asked of it, neither of a model or its configuration, nor by a site's name.
KNOWLEDGE = re.compile(
    r"model_type|num_hidden_layers|hidden_size|max_position_embeddings|final_logit_softcapping"
    r"|\w+_layernorm|\bln_2|\w+_proj\b|\bc_(?:attn|proj|fc)\b|hook_mlp_in|\.model\.(?:model|layers)\b|n_embd"
    r"|(?:Gemma|Llama|Qwen|GPT)\d\w*(?=[(.])"
    r"|HOOK_SITES\[\"|site(?:\.name)? [!=]= \""
)
EXCEPTIONS = {
    # Its first line says what kind of model a study is of.
    "delta_transcoders/report/answer.py",
    # They make models.
    "delta_transcoders/tiny_gemma.py",
    "delta_transcoders/smollm2.py",
    "benchmarks/full_shape.py",
    "benchmarks/wide_bases.py",
    # They write public files, and models that such files are for.
    "interop/published_sets.py",
    "interop/prepare_published.py",
    # The same interventions by plain hooks, to compare with.
    "benchmarks/engine_throughput.py",
    # Sizes of the models that it makes.
    "benchmarks/end_to_end_step.py",
    # The gates: they read config.json before anything is loaded.
    "delta_transcoders/language_models.py",
    "delta_transcoders/own_study/file.py",
    "delta_transcoders/own_study/sizes.py",
    # It says what kind of model was found.
    "delta_transcoders/study/check/whole.py",
    # The tiny base model's sizes, read from its config.json.
    "delta_transcoders/report/model_card.py",
}


def test_nothing_else_asks_for_a_model_type_or_a_site():
    rooms = [
        "delta_transcoders",
        "lightning_modules",
        "datamodules",
        "callbacks",
        "benchmarks",
        "interop",
    ]
    paths = [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    found = {
        path.relative_to(ROOT).as_posix(): KNOWLEDGE.findall(path.read_text("utf-8"))
        for path in paths
        if path.parent.name != "families"
    }
    assert len(found) > 80
    assert not {name: hits for name, hits in found.items() if hits and name not in EXCEPTIONS}
