"""A bridge with an intervention attached writes what the engine writes; without it, what it always did."""

from types import SimpleNamespace

import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.families.tokens import TokenPolicy
from delta_transcoders.interventions.attachment import attached, real_tokens
from delta_transcoders.interventions.intervention import RAW, from_spec
from delta_transcoders.interventions.loading import DictionarySet
from delta_transcoders.language_models import load_model, position_ids

ALL = (0, 1, 2)
N_NEW_TOKENS = 10
GREEDY = {"do_sample": False, "max_new_tokens": N_NEW_TOKENS, "verbose": False}
CONDITIONS = ["raw", "no_delta", "alpha_0.5", "full", "base_mlp"]


@pytest.fixture
def deltas(bank):
    return DictionarySet("d6", HOOK_SITES["gemma_scope"], bank, bank["base"].keys())


@pytest.fixture
def bridge(model_folder, tokenizer):
    bridge = boot_bridge(load_model(model_folder), tokenizer)
    bridge("What?")  # the bridge adds hooks of its own at its first pass
    return bridge


def continuations(tokenizer, ids, n_prompt):
    """Texts of rows [B, n_prompt + new], up to EOS."""
    rows = ids[:, n_prompt:].tolist()
    cut = [row[: [*row, 1].index(tokenizer.eos_token_id)] for row in rows]
    return tokenizer.batch_decode(cut, skip_special_tokens=True)


def loaded_hooks(bridge):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in bridge.original_model.modules()
    )


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("method", ["generate", "hf_generate"])
def test_a_padded_batch_equals_the_engines(
    bridge, deltas, engine, prompts, batch, condition, method, generate
):
    wanted = generate(engine, prompts, [from_spec(condition, ALL)] * 3, N_NEW_TOKENS)
    ids, mask = batch(engine.tokenizer, prompts)
    assert (mask == 0).any()
    options = {k: v for k, v in GREEDY.items() if method == "generate" or k != "verbose"}
    with attached(bridge, deltas, condition):
        got = getattr(bridge, method)(ids, attention_mask=mask, return_type="tokens", **options)
    assert continuations(engine.tokenizer, got, ids.shape[1]) == wanted


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_texts_equal_the_engines(
    bridge, deltas, engine, prompts, condition, use_past_kv_cache, generate
):
    """A list of texts, and each alone: one attachment serves calls with any number of rows."""
    wanted = generate(engine, prompts, [from_spec(condition, ALL)] * 3, N_NEW_TOKENS)
    options = GREEDY | {"return_type": "tokens", "use_past_kv_cache": use_past_kv_cache}
    with attached(bridge, deltas, condition) as application:
        together = bridge.generate(prompts, **options)
        alone = [bridge.generate(prompt, **options) for prompt in prompts]
    n_prompts = [len(engine.tokenizer(prompt).input_ids) for prompt in prompts]
    assert continuations(engine.tokenizer, together, max(n_prompts)) == wanted
    for ids, n_prompt, text in zip(alone, n_prompts, wanted, strict=True):
        assert continuations(engine.tokenizer, ids, n_prompt) == [text]
    assert bool(application.calls) == (condition != "raw")


def test_conditions_differ_and_after_the_block_the_model_is_itself(
    bridge, deltas, model, tokenizer, prompts, greedy
):
    before, plain = loaded_hooks(bridge), greedy(model, prompts, N_NEW_TOKENS)
    texts = {}
    for name in ("no_delta", "full"):
        with attached(bridge, deltas, name):
            assert loaded_hooks(bridge) > before
            texts[name] = greedy(bridge.original_model, prompts, N_NEW_TOKENS)
        assert loaded_hooks(bridge) == before
    assert len({tuple(t) for t in (plain, *texts.values())}) == 3
    assert greedy(bridge.original_model, prompts, N_NEW_TOKENS) == plain


def test_hooks_are_gone_after_an_error(bridge, deltas, model, tokenizer):
    before = loaded_hooks(bridge)
    ids = tokenizer("What is 7?", return_tensors="pt").input_ids
    with pytest.raises(KeyError, match="mine"), attached(bridge, deltas):
        bridge(ids)
        raise KeyError("mine")
    assert loaded_hooks(bridge) == before
    with torch.inference_mode():
        assert torch.equal(bridge.original_model(ids).logits, model(ids).logits)


def test_layers_are_those_asked_for(bridge, deltas, engine, prompts, logits, batch):
    wanted, mask = logits(engine, prompts, [from_spec("full", [1])] * 3)
    ids, padding = batch(engine.tokenizer, prompts)
    for given in ({"layers": [1]}, {"condition": from_spec("full", [1])}):
        with torch.inference_mode(), attached(bridge, deltas, **given) as application:
            got = bridge(ids, attention_mask=padding, position_ids=position_ids(padding))
        torch.testing.assert_close(got[mask], wanted[mask], atol=1e-6, rtol=0)
        assert application.replaced_LR.tolist() == [[int(mask.sum()) - 3]]
    with pytest.raises(ValueError, match=r"layers itself; layers \[0\] do not apply"):
        attached(bridge, deltas, from_spec("full", [1]), [0]).__enter__()


@pytest.mark.parametrize("side", ["left", "right"])
def test_bos_and_padding_stay_without_a_mask_too(bridge, deltas, tokenizer, prompts, side):
    rows = tokenizer(prompts, padding=True, padding_side=side, return_tensors="pt")
    ids, mask = rows.input_ids, rows.attention_mask.bool()
    outputs = []
    watch = [("blocks.0.hook_mlp_out", lambda y, hook: outputs.append(y.clone()))]
    with torch.inference_mode():
        with bridge.hooks(fwd_hooks=watch):
            bridge.original_model(ids)
        with attached(bridge, deltas, layers=[0]), bridge.hooks(fwd_hooks=watch):
            bridge.original_model(ids)
    before, after = outputs
    same_BT = (before == after).all(-1)
    kept_BT = ~mask | (ids == tokenizer.bos_token_id)
    assert torch.equal(same_BT, kept_BT)


def test_a_cache_kept_by_hand(bridge, deltas, engine, logits, prompts):
    """Later passes have no BOS and need none; nor a mask, where nothing is padded."""
    wanted, _ = logits(engine, prompts[:1], [from_spec("full", ALL)])
    ids = engine.tokenizer(prompts[0], return_tensors="pt").input_ids
    with torch.inference_mode(), attached(bridge, deltas) as application:
        first = bridge.original_model(ids[:, :4], use_cache=True)
        rest = bridge.original_model(ids[:, 4:], past_key_values=first.past_key_values)
    got = torch.cat([first.logits, rest.logits], dim=1)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert application.replaced_LR.tolist() == [[ids.shape[1] - 1]] * 3


def test_the_activations_of_a_run_with_a_cache_are_the_replaced_ones(bridge, deltas, prompts):
    name = "blocks.0.hook_mlp_out"
    with torch.inference_mode():
        _, plain = bridge.run_with_cache(prompts[0], names_filter=name)
        with attached(bridge, deltas, "full", layers=[0]):
            _, replaced = bridge.run_with_cache(prompts[0], names_filter=name)
    changed = (plain[name] != replaced[name]).any(-1)[0].tolist()
    assert changed == [False] + [True] * (len(changed) - 1)


def test_real_tokens(tokenizer):
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    ids = torch.tensor([[pad, bos, 7, pad, 8], [bos, 7, 8, pad, pad], [pad] * 5])
    expected = [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0] * 5]
    assert real_tokens(tokenizer, Gemma2.tokens, ids, None).tolist() == expected
    given = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0] * 5])
    assert torch.equal(real_tokens(tokenizer, Gemma2.tokens, ids, given), given)
    # A mask is believed: padding that it calls text is no BOS.
    with pytest.raises(ValueError, match=r"row 0 starts with '<pad>', not with BOS"):
        real_tokens(tokenizer, Gemma2.tokens, ids, torch.ones_like(ids))
    with pytest.raises(ValueError, match=r"row 1 starts with .*, not with BOS \('<bos>'\)"):
        real_tokens(tokenizer, Gemma2.tokens, torch.tensor([[bos, 7], [7, 8]]), None)


def test_a_mask_tells_bos_from_padding_where_both_are_one_token():
    """As in GPT-2, whose only special token is all of BOS, EOS and padding."""
    gpt2 = SimpleNamespace(pad_token_id=0, bos_token_id=0)
    ids = torch.tensor([[0, 0, 7, 8], [0, 7, 8, 9]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert torch.equal(real_tokens(gpt2, TokenPolicy(), ids, mask), mask)
    assert real_tokens(gpt2, TokenPolicy(), ids, None).tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]


def test_what_cannot_be_attached_is_refused(bridge, deltas, tokenizer):
    for given, message in (
        ({"condition": "fill"}, "unknown condition 'fill'"),
        ({"layers": [3]}, "there is no layer 3, the model has 3"),
        (
            {"condition": "finetuned_mlp"},
            "no source 'finetuned_mlp'; there is base, base_mlp, delta",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            attached(bridge, deltas, **given).__enter__()
    ids = torch.tensor([tokenizer("What is 7?", add_special_tokens=False).input_ids])
    with pytest.raises(ValueError, match="not with BOS"), attached(bridge, deltas):
        bridge(ids)
    embeds = torch.zeros(1, 3, 32)
    with pytest.raises(ValueError, match="without token ids"), attached(bridge, deltas):
        bridge.original_model(inputs_embeds=embeds)
    with pytest.raises(RuntimeError, match="layer 0 was to be replaced"), attached(bridge, deltas):
        pass
    with attached(bridge, deltas, RAW):
        pass
