"""Kept and dropped features, and sources of one's own."""

import torch

from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.interventions.intervention import RAW, Intervention, Term, Write, from_spec
from delta_transcoders.interventions.sources import DictionarySource

ALL = (0, 1, 2)


def with_features(**features):
    write = Write(0.0, (Term("base"), Term("delta", 1.0, **features)))
    return Intervention("ablation", dict.fromkeys(ALL, write))


def test_keeping_all_features_is_full_and_dropping_all_is_base(engine, prompts, logits):
    every = tuple(range(6))
    for features, name in (
        ({"keep_features": every}, "full"),
        ({"drop_features": every}, "no_delta"),
        ({"keep_features": ()}, "no_delta"),
    ):
        got = logits(engine, prompts, [with_features(**features)] * 3)[0]
        want = logits(engine, prompts, [from_spec(name, ALL)] * 3)[0]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_each_ablation_in_a_mixed_batch_equals_that_ablation_alone(engine, prompts, logits):
    ablations = [from_spec("full", ALL)]
    ablations += [with_features(drop_features=(i,)) for i in range(6)]
    ablations += [with_features(keep_features=(i,)) for i in range(6)]
    prompt = prompts[0]
    together = logits(engine, [prompt] * len(ablations), ablations)[0]
    for row, ablation in enumerate(ablations):
        alone = logits(engine, [prompt], [ablation])[0][0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)
    changed = (together[1:] - together[0]).abs().amax((1, 2)) > 1e-3
    assert changed.all()


def test_a_source_runs_once_per_layer_on_the_tokens_that_need_it(engine, prompts, logits):
    n_tokens = {"base": [], "delta": []}
    for name, sizes in n_tokens.items():
        engine.bank[name][1].register_forward_hook(
            lambda module, args, out, sizes=sizes: sizes.append(len(args[0]))
        )
    lengths = [len(engine.tokenizer(prompt).input_ids) - 1 for prompt in prompts]
    logits(engine, prompts, [from_spec(n, [1]) for n in ("alpha_0", "full", "alpha_2")])
    assert n_tokens == {"base": [sum(lengths)], "delta": [lengths[1] + lengths[2]]}


def test_a_new_source_needs_no_other_code(engine, prompts, logits):
    """A constant vector: a dictionary without features, under a name of its own."""
    steering = Transcoder(
        W_enc=torch.zeros(32, 1),
        b_enc=torch.zeros(1),
        W_dec=torch.zeros(1, 32),
        b_dec=torch.ones(32),
        threshold=torch.ones(1),
    )
    engine.bank["steering"] = {1: DictionarySource(steering)}
    spec = {
        "condition": "steered",
        "keep": 1.0,
        "terms": [{"source": "steering", "coefficient": 0}],
    }
    plain = logits(engine, prompts, [RAW] * 3)[0]
    assert torch.equal(logits(engine, prompts, [from_spec(spec, [1])] * 3)[0], plain)
    spec["terms"][0]["coefficient"] = 0.5
    steered, mask = logits(engine, prompts, [from_spec(spec, [1])] * 3)
    assert (steered - plain)[mask].abs().max() > 0.1
