import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.families.tokens import special_ids
from delta_transcoders.fingerprints import model_fingerprint, tokenizer_fingerprint
from delta_transcoders.language_models import load_model, load_tokenizer, pad, position_ids

TEXTS = ["What is 12+34?\n<tool_call>calculator(12+34)</tool_call>", "Hi\nHi", "A few words."]


@pytest.fixture
def batch(tokenizer):
    """Right-padded ids and mask [3, T]; the rows end in EOS, inside the mask."""
    rows = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in TEXTS]
    ids = pad(rows, tokenizer.pad_token_id, "right")
    return ids, pad([[1] * len(row) for row in rows], 0, "right")


@torch.inference_mode()
def plain_hooks(model, layer, ids_BT, mask_BT):
    """What one layer's MLP reads and writes, [B, T, d] each, by hooks on the unwrapped model."""
    seen = {}
    block = model.model.layers[layer]

    def before(module, args):
        x = args[0].float()
        seen["residual"] = x
        seen["x"] = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.eps)

    handles = [
        block.pre_feedforward_layernorm.register_forward_pre_hook(before),
        block.post_feedforward_layernorm.register_forward_hook(
            lambda module, args, output: seen.update(y=output)
        ),
    ]
    model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=position_ids(mask_BT))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("site", ["gemma_scope", "original"])
def test_captured_tensors_are_those_of_plain_hooks(model, model_folder, tokenizer, batch, site):
    ids, mask = batch
    keep = Gemma2.tokens.used(special_ids(tokenizer), ids, mask)
    expected = [plain_hooks(model, layer, ids, mask) for layer in range(3)]
    bridge = boot_bridge(load_model(model_folder), tokenizer)

    got = capture(bridge, ids, mask, [0, 1, 2], HOOK_SITES[site])

    name, scale = ("x", 1.0) if site == "gemma_scope" else ("residual", 32**-0.5)
    for layer, (x, y) in got.activations.items():
        torch.testing.assert_close(x, expected[layer][name][keep] * scale, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(y, expected[layer]["y"][keep] * scale, atol=1e-6, rtol=1e-6)


def test_bos_eos_and_padding_are_left_out(model, tokenizer, batch):
    ids, mask = batch
    got = capture(boot_bridge(model, tokenizer), ids, mask, [1], HOOK_SITES["gemma_scope"])
    expected = [
        (row, position, token)
        for row, text in enumerate(TEXTS)
        for position, token in enumerate(
            tokenizer(text, add_special_tokens=False).input_ids, start=1
        )
    ]
    assert expected == list(
        zip(got.rows.tolist(), got.positions.tolist(), got.token_ids.tolist(), strict=True)
    )
    assert len(got.activations[1][0]) == len(expected)


def test_padding_side_does_not_matter(model, tokenizer, batch):
    bridge = boot_bridge(model, tokenizer)
    rows = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in TEXTS]
    left = [pad(rows, tokenizer.pad_token_id, "left"), pad([[1] * len(r) for r in rows], 0, "left")]
    a, b = (capture(bridge, *ids, [2], HOOK_SITES["gemma_scope"]) for ids in (batch, left))
    assert torch.equal(a.positions, b.positions)
    torch.testing.assert_close(a.activations, b.activations, atol=1e-5, rtol=1e-5)


def test_all_layers_come_from_one_pass_without_the_vocabulary(model, tokenizer, batch):
    calls = {"embed": 0, "layer 2": 0, "logits": []}

    def count(name):
        return lambda *_: calls.update({name: calls[name] + 1})

    model.model.embed_tokens.register_forward_hook(count("embed"))
    model.model.layers[2].register_forward_hook(count("layer 2"))
    model.lm_head.register_forward_hook(lambda m, a, out: calls["logits"].append(out.shape[1]))
    bridge = boot_bridge(model, tokenizer)

    capture(bridge, *batch, [0, 1], HOOK_SITES["gemma_scope"])
    assert calls == {"embed": 1, "layer 2": 0, "logits": []}

    got = capture(bridge, *batch, [0, 1, 2], HOOK_SITES["gemma_scope"])
    assert list(got.activations) == [0, 1, 2]
    assert calls == {"embed": 2, "layer 2": 1, "logits": [1]}


def test_unknown_layer(model, tokenizer, batch):
    with pytest.raises(ValueError, match="no layer 3: the model has 3"):
        capture(boot_bridge(model, tokenizer), *batch, [0, 3], HOOK_SITES["gemma_scope"])


def test_bfloat16_model_stays_so(model_folder, tokenizer, batch):
    bridge = boot_bridge(load_model(model_folder, dtype="bfloat16"), tokenizer)
    got = capture(bridge, *batch, [1], HOOK_SITES["gemma_scope"])
    assert [tensor.dtype for tensor in got.activations[1]] == [torch.float32, torch.bfloat16]


def test_model_fingerprint_survives_the_bridge_and_sees_a_weight(model, model_folder, tokenizer):
    before = model_fingerprint(model)
    boot_bridge(model, tokenizer)
    assert model_fingerprint(model) == before == model_fingerprint(load_model(model_folder))
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    assert model_fingerprint(model) != before


def test_tokenizer_fingerprint(model, model_folder, tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "b c"], padding=True)
    boot_bridge(model, tokenizer)
    assert tokenizer_fingerprint(tokenizer) == before
    other = load_tokenizer(model_folder)
    assert tokenizer_fingerprint(other) == before
    other.add_tokens(["<new>"])
    assert tokenizer_fingerprint(other) != before
