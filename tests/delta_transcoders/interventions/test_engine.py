"""Identities: what must come out the same, and what each number is."""

from dataclasses import replace

import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.generation import AnswerReader
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import RAW, Intervention, Term, Write, from_spec
from delta_transcoders.interventions.sources import Source, mlp_sources
from delta_transcoders.language_models import (
    load_model,
    load_tokenizer,
    position_ids,
    target_batch,
    token_nll,
    tokenize,
)
from delta_transcoders.tasks.calculator.examples import make_example
from delta_transcoders.tasks.calculator.task import Calculator

ALL = (0, 1, 2)
N_NEW_TOKENS = 10
MIXED = [
    RAW,
    from_spec("no_delta", [0]),
    from_spec("full", [0, 2]),
    from_spec("alpha_0.5", ALL),
    from_spec("alpha_-1", [1]),
    from_spec("error_kept_0.5", [0, 2]),
    from_spec("dictionary_error", [1]),
    from_spec("base_mlp", ALL),
]


def nll(model, tokenizer, rows):
    batch = target_batch(rows, tokenizer.pad_token_id)
    tokens = {f"{k}_BT": v for k, v in batch.items()}
    labels = (tokens["labels_BT"] != -100).sum(1).tolist()
    with torch.inference_mode():
        return [part.double().sum().item() for part in token_nll(model, **tokens).split(labels)]


def test_raw_is_the_plain_model(
    engine, model, tokenizer, rows, prompts, batch, logits, generate, greedy
):
    raw = [RAW] * len(prompts)
    assert generate(engine, prompts, raw, N_NEW_TOKENS) == greedy(model, prompts, N_NEW_TOKENS)
    ids, mask = batch(tokenizer, prompts)
    with torch.inference_mode():
        plain = model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    assert torch.equal(logits(engine, prompts, raw)[0], plain)
    scores = engine.teacher_forced(rows, raw)
    assert [s.nll for s in scores] == pytest.approx(nll(model, tokenizer, rows), rel=1e-6)
    assert [(s.kl, s.n_replaced, s.activation_sums) for s in scores] == [(0, 0, {})] * 3


def test_the_opening_is_all_that_makes_a_call_as_the_target_spells_it(
    model, model_folder, examples
):
    """In some spellings the tag is one token with what follows; a line to copy has the usual one."""
    tokenizer = load_tokenizer(model_folder)
    tokenizer.add_tokens(["<tool_call>\n"])
    model.resize_token_embeddings(401)
    hermes = make_example("What is 1+2?", "<tool_call>\ncalculator(1+2)\n</tool_call>", "positive")
    usual = "<tool_call>calculator("
    expected = []
    for example, opening in zip(
        [*examples, hermes], [usual] * 3 + ["<tool_call>\ncalculator("], strict=True
    ):
        prompt = tokenizer(example.prompt).input_ids
        ids = tokenizer(opening, add_special_tokens=False).input_ids
        with torch.inference_mode():
            logits_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logprobs_TV = logits_TV.log_softmax(-1)
        expected.append(logprobs_TV.gather(1, torch.tensor(ids)[:, None]).sum().item())
    assert {e.subset for e in examples} >= {"tool", "copy"}
    engine = InterventionEngine(boot_bridge(model, tokenizer), tokenizer, {})
    rows = tokenize(tokenizer, Calculator(), [*examples, hermes])
    scores = engine.teacher_forced(rows, [RAW] * 4)
    assert [score.opening_logprob for score in scores] == pytest.approx(expected, rel=1e-4)


def test_a_zero_delta_is_the_base(engine, prompts, logits):
    for source in engine.bank["delta"].values():
        source.transcoder.W_dec.zero_()
    full, base = ([from_spec(name, ALL)] * 3 for name in ("full", "no_delta"))
    assert torch.equal(logits(engine, prompts, full)[0], logits(engine, prompts, base)[0])


@pytest.mark.parametrize(("alpha", "name"), [("alpha_1.00", "full"), ("alpha_0", "no_delta")])
def test_alpha_one_is_full_and_alpha_zero_no_delta(
    engine, prompts, rows, alpha, name, logits, generate
):
    a, b = ([from_spec(spec, group) for group in ([0], [1, 2], ALL)] for spec in (alpha, name))
    assert torch.equal(logits(engine, prompts, a)[0], logits(engine, prompts, b)[0])
    assert generate(engine, prompts, a, N_NEW_TOKENS) == generate(engine, prompts, b, N_NEW_TOKENS)
    assert engine.teacher_forced(rows, a) == engine.teacher_forced(rows, b)


def test_a_perfect_source_leaves_the_model_as_it_is(engine, prompts, logits):
    plain, mask = logits(engine, prompts, [RAW] * 3)
    put_back, _ = logits(engine, prompts, [from_spec("base_mlp", ALL)] * 3)
    torch.testing.assert_close(put_back[mask], plain[mask], atol=1e-5, rtol=0)


def test_another_models_mlps_are_put_back(model_folder, tokenizer, engine, prompts, batch, logits):
    other = load_model(model_folder)
    for layer in other.model.layers:
        layer.mlp.down_proj.weight.data.mul_(-1)
    engine.bank["base_mlp"] = mlp_sources(other, ALL)
    got, mask = logits(engine, prompts, [from_spec("base_mlp", ALL)] * 3)

    # The whole model with those MLPs differs at BOS alone, whose MLPs stay the engine's model's own.
    expected = load_model(model_folder)
    for layer, changed in zip(expected.model.layers, other.model.layers, strict=True):
        layer.mlp.register_forward_hook(
            lambda module, args, y, mlp=changed.mlp: torch.where(
                (mask.cumsum(-1) > 1)[:, :, None], mlp(*args), y
            )
        )
    ids, padding = batch(tokenizer, prompts)
    with torch.inference_mode():
        want = expected(
            input_ids=ids, attention_mask=padding, position_ids=position_ids(padding)
        ).logits
    torch.testing.assert_close(got[mask], want[mask], atol=1e-5, rtol=0)
    assert (got - logits(engine, prompts, [RAW] * 3)[0])[mask].abs().max() > 0.1


def test_a_mixed_batch_equals_its_rows_alone(engine, prompts, rows, logits, generate):
    tokens_of = dict(zip(prompts, rows, strict=True))
    crossed = [(p, c) for p in prompts for c in MIXED]
    texts, conditions = [p for p, _ in crossed], [c for _, c in crossed]
    chosen = [tokens_of[p] for p in texts]
    alone = [generate(engine, [p], [c], 6)[0] for p, c in zip(texts, conditions, strict=True)]
    assert len(set(alone)) > len(crossed) / 3
    assert generate(engine, texts, conditions, 6) == alone
    engine.rows_per_pass = 5
    assert generate(engine, texts, conditions, 6) == alone

    together, mask = logits(engine, texts, conditions)
    scores = engine.teacher_forced(chosen, conditions)
    for row, (prompt, condition) in enumerate(crossed):
        single = logits(engine, [prompt], [condition])[0][0]
        torch.testing.assert_close(together[row][mask[row]], single, atol=1e-4, rtol=0)
        (score,) = engine.teacher_forced([tokens_of[prompt]], [condition])
        for name in ("nll", "kl", "opening_logprob"):
            assert getattr(scores[row], name) == pytest.approx(getattr(score, name), abs=1e-4)
        assert scores[row].n_replaced == score.n_replaced
        assert scores[row].activation_sums == pytest.approx(score.activation_sums, rel=1e-4)


def test_a_stream_grows_to_the_generated_texts(engine, prompts, rows, generate):
    crossed = [(row, c) for row in rows for c in MIXED]
    ids, conditions = [row.prompt_ids for row, _ in crossed], [c for _, c in crossed]
    reader = AnswerReader(engine.tokenizer, Calculator(), {engine.tokenizer.eos_token_id})
    lengths = []
    for written in engine.stream(ids, conditions, 6, reader):
        lengths.append(max(map(len, written)))
    assert lengths == [1, 2, 3, 4, 5, 6]
    texts = [prompt for prompt in prompts for _ in MIXED]
    assert [reader.text(row) for row in written] == generate(engine, texts, conditions, 6)


def test_scores_against_whole_logits(engine, examples, rows):
    """nll, KL to raw, the opening's log-probability and activation sums from full forward passes."""
    condition = from_spec("alpha_-0.5", [0, 2])
    (score,) = engine.teacher_forced(rows[1:2], [condition])
    tokenizer, example = engine.tokenizer, examples[1]
    prompt = tokenizer(example.prompt).input_ids
    target = tokenizer(example.target, add_special_tokens=False).input_ids
    ids = torch.tensor([prompt + target])

    def logprobs(intervention, ids=ids):
        with torch.inference_mode(), engine.applied([intervention], count_features=True) as counts:
            out = engine.model(input_ids=ids, use_cache=False).logits
        return out[0, len(prompt) - 1 :].log_softmax(-1), counts

    (raw, _), (replaced, counts) = logprobs(RAW), logprobs(condition)
    labels = torch.tensor([*target, tokenizer.eos_token_id])
    assert score.nll == pytest.approx(-replaced.gather(1, labels[:, None]).sum().item(), rel=1e-5)
    kl = torch.nn.functional.kl_div(replaced, raw, reduction="sum", log_target=True)
    assert score.kl == pytest.approx(kl.item(), rel=1e-4) and score.kl > 0.01
    call = tokenizer("<tool_call>calculator(", add_special_tokens=False).input_ids
    called, _ = logprobs(condition, torch.tensor([prompt + call]))
    logprob = sum(called[i, token].item() for i, token in enumerate(call))
    assert score.opening_logprob == pytest.approx(logprob, rel=1e-5)
    assert score.n_replaced == 2 * (ids.shape[1] - 1)
    assert set(score.activation_sums) == {"base", "delta"}
    assert score.activation_sums["delta"] == pytest.approx(counts.activation_sums["delta"].item())
    assert 0 < score.active_sums["delta"] <= 6 * score.n_replaced


def test_the_original_site_scales_input_and_output(
    model_folder, tokenizer, bank, prompts, batch, logits
):
    """Dictionaries read the raw residual over √d_model and write √d_model times their output."""
    del bank["base_mlp"]
    engine = InterventionEngine(
        boot_bridge(load_model(model_folder), tokenizer), tokenizer, bank, HOOK_SITES["original"]
    )
    got, mask = logits(engine, prompts, [from_spec("no_delta", [1])] * 3)

    model = load_model(model_folder)
    residual = {}
    block = model.model.layers[1]
    block.pre_feedforward_layernorm.register_forward_pre_hook(
        lambda module, args: residual.update(x=args[0])
    )
    root = 32**0.5
    replaced = (mask & (mask.cumsum(-1) > 1))[:, :, None]
    block.post_feedforward_layernorm.register_forward_hook(
        lambda module, args, y: torch.where(
            replaced, bank["base"][1].transcoder(residual["x"] / root) * root, y
        )
    )
    ids, padding = batch(tokenizer, prompts)
    with torch.inference_mode():
        want = model(
            input_ids=ids, attention_mask=padding, position_ids=position_ids(padding)
        ).logits
    torch.testing.assert_close(got[mask], want[mask], atol=1e-4, rtol=0)


def test_a_bfloat16_model_stays_so(model_folder, tokenizer, bank, prompts, logits):
    bridge = boot_bridge(load_model(model_folder, dtype="bfloat16"), tokenizer)
    engine = InterventionEngine(bridge, tokenizer, bank)
    out, mask = logits(engine, prompts, [from_spec("full", ALL)] * 3)
    assert out.dtype == torch.bfloat16 and out[mask].isfinite().all()


def test_a_row_without_a_target_has_no_scores_and_leaves_the_others_as_they_are(engine, rows):
    """Its prompt is read, and replaced, to the end."""
    untargeted = replace(rows[0], target_ids=(), opening_ids=())
    full = from_spec("full", [1])
    with_it = engine.teacher_forced([rows[1], untargeted], [full] * 2)
    (alone,) = engine.teacher_forced([rows[1]], [full])
    assert with_it[0].nll == pytest.approx(alone.nll, rel=1e-5)
    score = with_it[1]
    assert (score.nll, score.kl, score.n_tokens, score.opening_logprob) == (0, 0, 0, None)
    assert score.n_replaced == len(untargeted.prompt_ids) - 1


class OfOneShape(Source):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, x_ND, feature_mask_NF=None):
        return torch.zeros([len(x_ND) if n == "N" else n for n in self.shape]), None


@pytest.mark.parametrize("shape", [("N", 1), (32,), (1, 32), ("N", 31), ()])
def test_a_source_that_writes_another_shape_is_refused(engine, bank, rows, shape):
    engine.bank = bank | {"mine": {0: OfOneShape(shape)}}
    write = Intervention("x", {0: Write(0.0, (Term("mine"),))})
    with pytest.raises(
        ValueError, match=r"source 'mine', layer 0: writes .*, expected \[tokens, d"
    ):
        engine.teacher_forced(rows, [write] * len(rows))
