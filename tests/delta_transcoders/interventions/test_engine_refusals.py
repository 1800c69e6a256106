"""What is refused, and that nothing is left behind."""

import pytest
import torch

from delta_transcoders.families.sites import HOOK_SITES, HookSite
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import RAW, from_spec

ALL = (0, 1, 2)


def test_mlps_are_not_put_back_at_another_site(engine, tokenizer, bank):
    with pytest.raises(
        ValueError, match="'base_mlp' is for hook site 'gemma_scope', not for 'original'"
    ):
        InterventionEngine(engine.bridge, tokenizer, bank, HOOK_SITES["original"])


def test_a_hook_that_never_fires_is_an_error(engine, tokenizer, prompts, batch, generate):
    # The model stops before the layer, so that its hooks never see it.
    ids, mask = batch(tokenizer, prompts)
    with (
        pytest.raises(RuntimeError, match=r"layer 2 .*, but blocks.2.hook_mlp_out never fired"),
        engine.applied([from_spec("full", [0, 2])] * 3),
    ):
        engine.bridge(ids, attention_mask=mask, stop_at_layer=1)
    engine.site = HookSite(
        "late", "blocks.{layer}.ln1_post.hook_scale", "blocks.{layer}.hook_in", "1"
    )
    with pytest.raises(RuntimeError, match=r"blocks.1.hook_in fired without blocks.1.ln1_post"):
        generate(engine, prompts, [from_spec("full", [1])] * 3, 2)


def test_a_row_without_replaceable_positions_is_an_error(engine, tokenizer):
    bos = torch.tensor([[tokenizer.bos_token_id]])
    with (
        pytest.raises(RuntimeError, match="row 0 was to be replaced at layer 2"),
        engine.applied([from_spec("full", [2])]),
    ):
        engine.model(input_ids=bos)


def test_a_failing_pass_leaves_no_hook_behind(engine, prompts, logits):
    plain = logits(engine, prompts, [RAW] * 3)[0]
    with pytest.raises(KeyError), engine.applied([from_spec("full", ALL)] * 3):
        raise KeyError
    assert torch.equal(logits(engine, prompts, [RAW] * 3)[0], plain)


def test_what_cannot_be_applied_is_refused_before_any_pass(engine, rows, prompts, generate):
    del engine.bank["delta"][2]
    calls = []
    engine.model.model.register_forward_hook(lambda *_: calls.append(1))
    cases = [
        ([from_spec("full", [2])] * 3, "source 'delta' has no layer 2"),
        ([from_spec("base_mlp", [3])] * 3, "there is no layer 3, the model has 3"),
        ([RAW] * 2, "3 rows, but 2 interventions"),
    ]
    for interventions, message in cases:
        with pytest.raises(ValueError, match=message):
            generate(engine, prompts, interventions, 2)
        with pytest.raises(ValueError, match=message):
            engine.teacher_forced(rows, interventions)
    assert not calls


def test_rows_and_masks_must_fit_the_interventions(engine, tokenizer, prompts, batch):
    ids, mask = batch(tokenizer, prompts)
    for kwargs, message in (
        ({"input_ids": ids[:2]}, "called with 2 rows, there are 3 interventions"),
        ({"input_ids": ids, "attention_mask": mask[:, 1:]}, "the attention mask must be"),
        ({"input_ids": ids, "attention_mask": {"full": None}}, "not dict"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            engine.applied([from_spec("full", [0])] * 3),
        ):
            engine.model(**kwargs)


def test_a_tokenizer_without_bos_is_refused(engine, bank):
    class Silent:
        name_or_path, bos_token, bos_token_id = "silent", "<bos>", 2

        def __call__(self, text):
            return type("Encoding", (), {"input_ids": []})

    with pytest.raises(ValueError, match=r"'silent' does not put BOS \(<bos>\)"):
        InterventionEngine(engine.bridge, Silent(), bank)
