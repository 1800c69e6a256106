"""Which tokens are replaced, with and without a cache."""

import pytest
import torch

from delta_transcoders.interventions.intervention import RAW, from_spec
from delta_transcoders.language_models import (
    load_tokenizer,
    position_ids,
)

ALL = (0, 1, 2)
N_NEW_TOKENS = 10
CONDITIONS = [
    from_spec(name, layers)
    for name in ("no_delta", "full", "alpha_0.5", "alpha_-1", "alpha_2", "error_kept_0.5")
    for layers in ([0], [0, 2], ALL)
] + [RAW, from_spec("dictionary_error", [1]), from_spec("base_mlp", ALL)]


@torch.inference_mode()
def uncached(engine, prompt, intervention):
    """Greedy ids, EOS included, with the whole sequence recomputed for every token."""
    ids = engine.tokenizer(prompt).input_ids
    written = []
    for _ in range(N_NEW_TOKENS):
        with engine.applied([intervention]):
            out = engine.model(input_ids=torch.tensor([ids + written]), use_cache=False).logits
        written.append(int(out[0, -1].argmax()))
        if written[-1] == engine.tokenizer.eos_token_id:
            break
    return written


@pytest.mark.parametrize("index", range(len(CONDITIONS)))
def test_generation_with_the_cache_equals_generation_without(engine, prompts, index, generate):
    condition = CONDITIONS[index]
    expected = [uncached(engine, prompt, condition) for prompt in prompts]
    texts = engine.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert generate(engine, prompts, [condition] * 3, N_NEW_TOKENS) == texts


def test_rows_that_end_leave_the_batch(engine, model_folder, prompts, generate, greedy):
    engine.tokenizer = tokenizer = load_tokenizer(model_folder)
    interventions = [from_spec("full", [1]), RAW, from_spec("no_delta", ALL)]
    rows = list(zip(prompts, interventions, strict=True))
    free = [uncached(engine, *row) for row in rows]
    eos = next(token for token in free[0][:-1] if token not in free[2])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    expected = [uncached(engine, *row) for row in rows]
    assert len(expected[0]) < len(expected[2])

    with engine.applied(interventions) as application:
        texts = greedy(engine.model, prompts, N_NEW_TOKENS, tokenizer, rows_kept=application.select)
    assert texts == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert texts == generate(engine, prompts, interventions, N_NEW_TOKENS)
    # All tokens that were read: the prompt without BOS, and all written ones but the last.
    read = [
        len(tokenizer(p).input_ids) - 1 + len(ids) - 1
        for p, ids in zip(prompts, expected, strict=True)
    ]
    assert application.replaced_LR.tolist() == [
        [0, 0, read[2]],
        [read[0], 0, read[2]],
        [0, 0, read[2]],
    ]


def test_every_token_but_bos_and_padding_is_replaced(engine, prompts, batch):
    interventions = [from_spec("full", [1]), RAW, from_spec("no_delta", ALL)]
    seen = {}

    def watch(name):
        return lambda y, hook: seen.setdefault(name, []).append(y.clone())

    ids, padding = batch(engine.tokenizer, prompts)
    mask = padding.bool()
    first = mask & (padding.cumsum(-1) == 1)
    with torch.inference_mode():
        for name, rows in (("raw", [RAW] * 3), ("replaced", interventions)):
            with (
                engine.applied(rows),
                engine.bridge.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", watch(name))]),
            ):
                engine.model(
                    input_ids=ids, attention_mask=padding, position_ids=position_ids(padding)
                )
    (before,), (after,) = seen["raw"], seen["replaced"]
    same = (before == after).all(-1)
    assert same[first].all() and same[1].all()
    assert not same[0][mask[0] & ~first[0]].any() and not same[2][mask[2] & ~first[2]].any()
    # Layer 0 was replaced in row 2 alone, so elsewhere padding too has the same input to layer 1.
    assert same[0][~mask[0]].all()


def test_generated_tokens_are_replaced_one_by_one(engine, prompts, batch):
    interventions = [from_spec("full", [1]), RAW, from_spec("no_delta", [0, 1])]
    ids, mask = batch(engine.tokenizer, prompts)
    with engine.applied(interventions) as application:
        engine.bridge.hf_generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=5, min_new_tokens=5
        )
    # The last of the five is never read.
    expected = [len(engine.tokenizer(prompt).input_ids) - 1 + 4 for prompt in prompts]
    assert application.calls == {0: 5, 1: 5}
    assert application.replaced_LR.tolist() == [[0, 0, expected[2]], [expected[0], 0, expected[2]]]


def test_hugging_face_generation_inside_applied_equals_the_engines(
    engine, prompts, generate, greedy
):
    interventions = [from_spec("full", [1]), RAW, from_spec("no_delta", ALL)]
    with engine.applied(interventions):
        texts = greedy(engine.model, prompts, N_NEW_TOKENS)
    assert texts == generate(engine, prompts, interventions, N_NEW_TOKENS)


def test_teacher_forcing_sees_what_generation_sees(engine, examples, rows, generate):
    """Prompt ids are the same; target tokens but EOS are read, and so are replaced."""
    seen = []
    handle = engine.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["input_ids"], kwargs["attention_mask"])),
        with_kwargs=True,
    )
    full = from_spec("full", [0])
    for example, row in zip(examples, rows, strict=True):
        seen.clear()
        generate(engine, [example.prompt], [full], 1)
        (generation_ids, _) = seen.pop()
        (score,) = engine.teacher_forced([row], [full])
        n_prompt = generation_ids.shape[1]
        target = engine.tokenizer(example.target, add_special_tokens=False).input_ids
        # Raw and full; then, where the target is no call, what begins one, its last token alone unread.
        other = (
            [] if row.target_ids[: len(row.opening_ids)] == row.opening_ids else [row.opening_ids]
        )
        after = [target, target, *(list(opening[:-1]) for opening in other)]
        for (ids, mask), expected in zip(seen, after, strict=True):
            read = ids[mask.bool()].tolist()
            assert read[:n_prompt] == generation_ids[0].tolist()
            assert read[n_prompt:] == expected
        assert score.n_tokens == len(target) + 1
        assert score.n_replaced == n_prompt + len(target) - 1
    handle.remove()
