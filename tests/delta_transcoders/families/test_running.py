"""Every family run by the engine: as Hugging Face runs it, and nothing is changed that is spared."""

import itertools
import subprocess
import sys

import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.corrections import AffineCorrection
from delta_transcoders.families.tokens import special_ids
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.generation import AnswerReader
from delta_transcoders.interventions.attachment import attached
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import RAW, from_spec
from delta_transcoders.interventions.loading import DictionarySet
from delta_transcoders.interventions.sources import AffineSource, mlp_sources
from delta_transcoders.language_models import (
    end_ids,
    load_model,
    load_tokenizer,
    pad,
    position_ids,
    tokenize,
)
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.tasks.task import Example

LAYERS = (0, 1, 2)
PROMPTS = ["What is 12+34?\n", "Anna sold 5 lamps.\n", "Now 7*8, and be quick, please.\n"]
N_NEW_TOKENS = 12


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tokenizer(text).input_ids for text in PROMPTS]


@pytest.fixture(scope="module")
def reader(folder, tokenizer):
    return AnswerReader(tokenizer, Examples("absent", "exact"), end_ids(folder, tokenizer))


@pytest.fixture(scope="module")
def bridge(folder, tokenizer):
    bridge = boot_bridge(load_model(folder), tokenizer)
    bridge(PROMPTS[0])  # it adds hooks of its own at its first pass
    return bridge


@pytest.fixture(scope="module")
def engine(folder, tokenizer, bridge):
    """At the family's site, with the model's own MLPs as `base_mlp` and noise as `base`."""
    noise = torch.Generator().manual_seed(0)
    bank = {
        "base_mlp": mlp_sources(load_model(folder), LAYERS),
        "base": {
            layer: AffineSource(
                AffineCorrection(W=torch.randn(32, 32, generator=noise), b=torch.zeros(32))
            )
            for layer in LAYERS
        },
    }
    return InterventionEngine(bridge, tokenizer, bank)


def test_no_package_is_installed(folder, tokenizer, monkeypatch):
    """TransformerLens would install torchvision, and another torch with it, for a model that takes images."""
    started = []
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(subprocess, "check_call", started.append)
    boot_bridge(load_model(folder), tokenizer)
    assert not started


def padded(tokenizer, rows, side):
    return pad(rows, tokenizer.pad_token_id, side), pad([[1] * len(row) for row in rows], 0, side)


@torch.inference_mode()
def logits(model, ids, mask):
    return model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits[
        mask.bool()
    ]


def test_the_bridge_leaves_the_weights_fingerprint_as_it_is(model, bridge):
    assert model_fingerprint(bridge.original_model) == model_fingerprint(model)


def test_the_bridge_leaves_the_tokenizer_as_it_is(case, folder, tokenizer, bridge):
    fresh = load_tokenizer(folder)
    assert bridge.tokenizer is tokenizer
    assert tokenizer.special_tokens_map == fresh.special_tokens_map
    assert tokenizer.padding_side == "left"
    bos = [tokenizer.bos_token_id] if case.adds_bos else []
    assert tokenizer("").input_ids == bos
    ids = fresh("What?").input_ids
    assert ids[: len(bos)] == bos and tokenizer("What?").input_ids == ids
    assert bridge.to_tokens("What?").tolist() == [ids]
    expected = case.names.get("pad_token", case.names["eos_token"])
    assert tokenizer.pad_token == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_hugging_faces(model, tokenizer, engine, prompts, side):
    ids, mask = padded(tokenizer, prompts, side)
    expected = logits(model, ids, mask)
    assert expected.std() > 0.1
    with engine.applied([RAW] * 3):
        torch.testing.assert_close(logits(engine.model, ids, mask), expected, atol=1e-5, rtol=0)
    # Padding changes nothing either.
    alone = [logits(model, *padded(tokenizer, [row], side)) for row in prompts]
    torch.testing.assert_close(expected, torch.cat(alone), atol=1e-5, rtol=0)


def read(reader, ids, n_prompt):
    """Texts of rows [B, n_prompt + new], each up to its end."""
    rows = [row[n_prompt:] for row in ids.tolist()]
    ends = [next((n for n, i in enumerate(row) if i in reader.end_ids), len(row)) for row in rows]
    return [reader.text(row[:end]) for row, end in zip(rows, ends, strict=True)]


def hugging_faces(model, reader, prompts, **options):
    """Texts of `generate` on one left-padded batch."""
    ids, mask = padded(reader.tokenizer, prompts, "left")
    pad_id = reader.tokenizer.pad_token_id
    options |= {"do_sample": False, "max_new_tokens": N_NEW_TOKENS, "pad_token_id": pad_id}
    return read(reader, model.generate(ids, attention_mask=mask, **options), ids.shape[1])


@pytest.mark.parametrize("use_cache", [True, False])
def test_texts_are_hugging_faces(model, engine, prompts, reader, use_cache):
    expected = hugging_faces(model, reader, prompts, use_cache=use_cache)
    assert any(expected)
    assert engine.generate(prompts, [RAW] * 3, N_NEW_TOKENS, reader) == expected


def test_an_answer_ends_at_each_of_the_models_ends(case, folder, tokenizer, prompts, reader):
    """A model that writes one of them at its third step, whichever it is."""
    assert reader.end_ids == {tokenizer.eos_token_id} | {
        tokenizer.convert_tokens_to_ids(end) for end in case.ends
    }
    for end in reader.end_ids:
        model = load_model(folder)
        head = model.get_output_embeddings()
        steps = []

        def loud(module, args, output, end=end, steps=steps):
            steps.append(output.shape)
            if len(steps) % N_NEW_TOKENS == 3:
                output[..., end] = 1e4
            return output

        head.register_forward_hook(loud)
        expected = hugging_faces(model, reader, prompts)
        assert len(steps) == 3
        steps.clear()
        bridge = boot_bridge(model, tokenizer)
        engine = InterventionEngine(bridge, tokenizer, {})
        assert engine.generate(prompts, [RAW] * 3, N_NEW_TOKENS, reader) == expected
        assert len(steps) == 3


def plain_hooks(model, family, layer, ids, mask):
    """A block's tensors, [n, d] over all real tokens, by hooks on the model that no bridge wraps."""
    block = model.get_submodule(f"{family.blocks_path}.{layer}")
    names = ["pre_feedforward_layernorm", "ln_2", "post_attention_layernorm"]
    norm = next(getattr(block, name) for name in names if hasattr(block, name))
    last = getattr(block, "post_feedforward_layernorm", block.mlp)
    seen = {}

    def before(module, args):
        seen["residual"] = args[0].float()

    handles = [
        norm.register_forward_pre_hook(before),
        norm.register_forward_hook(lambda m, args, output: seen.update(after_gain=output)),
        last.register_forward_hook(lambda m, args, output: seen.update(y=output)),
    ]
    logits(model, ids, mask)
    for handle in handles:
        handle.remove()
    x = seen["residual"]
    if isinstance(norm, torch.nn.LayerNorm):
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=norm.eps)
    else:
        eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return seen | {"gemma_scope": x}


@pytest.mark.parametrize("side", ["left", "right"])
def test_captured_are_the_tensors_of_plain_hooks(case, model, tokenizer, bridge, prompts, side):
    rows = [[*row, tokenizer.eos_token_id] for row in prompts]
    ids, mask = padded(tokenizer, rows, side)
    keep = mask.bool() & (mask.cumsum(-1) > 1) & (ids != tokenizer.eos_token_id)
    assert keep.sum() == sum(map(len, prompts)) - 3
    expected = [plain_hooks(model, case.family, layer, ids, mask) for layer in LAYERS]
    for site in case.family.mlps:
        got = capture(bridge, ids, mask, LAYERS, site)
        for layer, (x, y) in got.activations.items():
            want = expected[layer]
            torch.testing.assert_close(x, want[site.name][keep], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(y, want["y"][keep], atol=1e-5, rtol=1e-5)
        assert torch.equal(got.token_ids, ids[keep])
    inputs = [expected[1][site.name] for site in case.family.mlps]
    assert all((a - b).abs().max() > 0.1 for a, b in itertools.pairwise(inputs))


def test_the_models_own_mlps_change_nothing(case, folder, tokenizer, bridge, reader, prompts):
    examples = [Example(text, "One 2 three.", "subset") for text in PROMPTS]
    rows = tokenize(tokenizer, Examples("absent", "exact"), examples)
    own = from_spec("base_mlp", LAYERS)
    for site in case.family.mlps:
        bank = {"base_mlp": mlp_sources(load_model(folder), LAYERS, site)}
        engine = InterventionEngine(bridge, tokenizer, bank, site)
        ids, mask = padded(tokenizer, prompts, "left")
        with engine.applied([own] * 3) as application:
            replaced = logits(engine.model, ids, mask)
        torch.testing.assert_close(replaced, logits(engine.model, ids, mask), atol=1e-5, rtol=0)
        assert application.replaced_LR.tolist() == [[len(row) - 1 for row in prompts]] * 3
        scores = engine.teacher_forced(rows, [own] * 3)
        for row, score, raw in zip(
            rows, scores, engine.teacher_forced(rows, [RAW] * 3), strict=True
        ):
            assert score.nll == pytest.approx(raw.nll, abs=1e-4) and abs(score.kl) < 1e-4
            assert score.n_replaced == 3 * (len(row) - 2)  # but the first, and EOS is never read
        assert engine.generate(prompts, [own] * 3, N_NEW_TOKENS, reader) == engine.generate(
            prompts, [RAW] * 3, N_NEW_TOKENS, reader
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_spared_positions_keep_the_models_output_bit_for_bit(
    case, tokenizer, engine, prompts, side
):
    """The first token, padding, and each special token in the middle of a text, also in a later pass."""
    special = special_ids(tokenizer).tolist()
    assert set(special) == set(tokenizer.convert_tokens_to_ids(list(case.special)))
    rows = [[*prompts[0], *special, *prompts[1]], prompts[2], [*prompts[1], special[-1]]]
    ids, mask = padded(tokenizer, rows, side)
    spared = ~mask.bool() | (mask.cumsum(-1) == 1) | torch.isin(ids, torch.tensor(special))
    outputs = []

    def watch(y, hook):
        outputs.append(y.clone())

    name = engine.site.hook_points(0)[1]
    for intervention in (RAW, from_spec("no_delta", [0])):
        with (
            torch.inference_mode(),
            engine.applied([intervention] * 3, count_features=True) as application,
            engine.bridge.hooks(fwd_hooks=[(name, watch)]),
        ):
            first = engine.model(
                input_ids=ids[:, :-4],
                attention_mask=mask[:, :-4],
                position_ids=position_ids(mask)[:, :-4],
                use_cache=True,
            )
            engine.model(
                input_ids=ids[:, -4:],
                attention_mask=mask,
                position_ids=position_ids(mask)[:, -4:],
                past_key_values=first.past_key_values,
            )
    before, after = torch.cat(outputs[:2], 1), torch.cat(outputs[2:], 1)
    assert torch.equal((before == after).all(-1), spared)
    assert application.replaced_LR.tolist() == [(~spared).sum(1).tolist()]
    captured = capture(engine.bridge, ids, mask, [0], engine.site)
    assert torch.equal(captured.token_ids, ids[~spared])
    assert torch.equal(captured.rows, (~spared).nonzero()[:, 0])


def test_more_of_the_first_tokens_are_spared_where_a_dictionary_says_so(tokenizer, engine, prompts):
    ids, mask = padded(tokenizer, prompts, "left")
    patient = InterventionEngine(engine.bridge, tokenizer, engine.bank, leading=4)
    with torch.inference_mode(), patient.applied([from_spec("no_delta", [1])] * 3) as application:
        patient.model(input_ids=ids, attention_mask=mask)
    assert application.replaced_LR.tolist() == [[len(row) - 4 for row in prompts]]
    captured = capture(engine.bridge, ids, mask, [1], engine.site, leading=4)
    assert captured.positions.min() == 4 and len(captured.rows) == sum(map(len, prompts)) - 12


def test_embeddings_without_ids_are_refused(engine, prompts):
    embedded = engine.model.get_input_embeddings()(torch.tensor([prompts[0]]))
    deltas = DictionarySet("none", engine.site, engine.bank, LAYERS)
    for attaching in (
        engine.applied([from_spec("no_delta", [0])]),
        attached(engine.bridge, deltas, from_spec("no_delta", [0])),
    ):
        with pytest.raises(ValueError, match="called without token ids"), attaching:
            engine.model(inputs_embeds=embedded)


def test_attached_to_a_bridge_it_writes_what_the_engine_writes(
    tokenizer, bridge, engine, prompts, reader
):
    condition = from_spec("no_delta", LAYERS)
    wanted = engine.generate(prompts, [condition] * 3, N_NEW_TOKENS, reader)
    deltas = DictionarySet("none", engine.site, engine.bank, LAYERS)
    ids, mask = padded(tokenizer, prompts, "left")
    options = {"do_sample": False, "max_new_tokens": N_NEW_TOKENS, "return_type": "tokens"}
    options["eos_token_id"] = sorted(reader.end_ids)
    with attached(bridge, deltas, condition):
        together = bridge.hf_generate(ids, attention_mask=mask, **options)
        alone = [bridge.hf_generate(text, **options) for text in PROMPTS]
    assert read(reader, together, ids.shape[1]) == wanted
    assert [read(reader, a, len(p))[0] for a, p in zip(alone, prompts, strict=True)] == wanted
