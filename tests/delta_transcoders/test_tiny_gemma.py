import itertools

import pytest
import torch

from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tiny_gemma import SPECIAL_TOKENS, build_tiny_gemma, train_tokenizer

TEXTS = (
    "What is 123 + 4567?\n",
    "<tool_call>calculator(12*34)</tool_call>",
    " leading and trailing ",
    "é 🙂 ß 日本 \t tabs\n\nlines",
    "7",
    "",
)


@pytest.fixture(scope="module")
def fresh():
    texts = [f"{a}\n{b}" for a, b in itertools.islice(base_documents(1), 500)]
    return train_tokenizer(texts, vocab_size=400)


def test_special_tokens_have_gemmas_names_and_ids(fresh):
    assert (fresh.pad_token, fresh.eos_token, fresh.bos_token) == ("<pad>", "<eos>", "<bos>")
    assert (fresh.pad_token_id, fresh.eos_token_id, fresh.bos_token_id) == (0, 1, 2)
    assert fresh.unk_token == "<unk>"
    assert {"<start_of_turn>", "<end_of_turn>"} <= set(fresh.all_special_tokens)
    assert fresh.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert len(fresh) == 400


@pytest.mark.parametrize("text", TEXTS)
def test_bos_is_added_once_and_by_the_tokenizer(fresh, text):
    ids = fresh(text).input_ids
    assert ids[0] == fresh.bos_token_id
    assert ids[1:] == fresh(text, add_special_tokens=False).input_ids
    assert ids.count(fresh.bos_token_id) == 1
    assert fresh.eos_token_id not in ids


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(fresh, text):
    assert fresh.decode(fresh(text).input_ids, skip_special_tokens=True) == text
    assert fresh.unk_token_id not in fresh(text).input_ids


def test_digits_are_single_tokens(fresh):
    for text in ("4096", "12.5", "(100+250)*3", "a1b22", " 77"):
        pieces = [fresh.decode([i]) for i in fresh(text, add_special_tokens=False).input_ids]
        assert "".join(pieces) == text
        for piece in pieces:
            assert len(piece) == 1 or not any(c.isdigit() for c in piece), pieces


def test_padding_is_on_the_left_and_masked(fresh):
    batch = fresh(["1", "12 34"], padding=True)
    width = len(batch.input_ids[1])
    assert width > 2
    assert batch.input_ids[0][: width - 2] == [fresh.pad_token_id] * (width - 2)
    assert batch.attention_mask[0] == [0] * (width - 2) + [1, 1]
    assert batch.attention_mask[1] == [1] * width


def test_ids_survive_saving_and_loading(fresh, tmp_path):
    fresh.save_pretrained(tmp_path)
    build_tiny_gemma(fresh, 32, 1, d_mlp=32).config.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert len(loaded) == len(fresh)
    assert loaded.padding_side == "left"
    for name in ("bos", "eos", "pad", "unk"):
        assert getattr(loaded, f"{name}_token_id") == getattr(fresh, f"{name}_token_id")
    for text in (*TEXTS, "<bos>a", "<start_of_turn>user"):
        assert loaded(text).input_ids == fresh(text).input_ids
        assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == fresh.decode(
            fresh(text).input_ids, skip_special_tokens=True
        )


def test_a_pair_gets_bos_in_front_of_each_part(fresh):
    a, b = "one", "two 2"
    assert fresh(a, b).input_ids == fresh(a).input_ids + fresh(b).input_ids


def test_the_model_is_gemma_2_in_the_shape_asked_for(fresh):
    torch.manual_seed(0)
    model = build_tiny_gemma(fresh, 48, n_layers=3, n_heads=4, n_kv_heads=2, d_mlp=80, context=64)
    config = model.config
    assert config.model_type == "gemma2"
    assert config.vocab_size == len(fresh)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 1, 0)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 48, 80)
    assert config.head_dim * config.num_attention_heads == 48
    assert config.query_pre_attn_scalar == config.head_dim
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.final_logit_softcapping == 30.0
    assert config.attn_logit_softcapping == 50.0
    layer = model.model.layers[0]
    assert layer.mlp.gate_proj.weight.shape == (80, 48)
    assert layer.self_attn.k_proj.weight.shape == (24, 48)
    assert layer.pre_feedforward_layernorm.weight.shape == (48,)
    assert layer.post_feedforward_layernorm.weight.shape == (48,)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_seed_decides_the_weights(fresh):
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(build_tiny_gemma(fresh, 32, 2, d_mlp=64).state_dict())
    first, again, other = weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_saved_model_is_the_same_model(fresh, tmp_path):
    torch.manual_seed(0)
    model = build_tiny_gemma(fresh, 32, 2, d_mlp=64).eval()
    model.save_pretrained(tmp_path)
    fresh.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.config._attn_implementation == "eager"
    assert not loaded.training
    ids = torch.tensor([fresh(TEXTS[0]).input_ids])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
