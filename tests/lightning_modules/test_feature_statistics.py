"""The statistics of a delta's features, against a fresh pass of the model over the same texts."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.delta import load_delta, save_delta
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.features.contexts import N_TOP
from delta_transcoders.features.files import read_features
from delta_transcoders.features.texts import shown_tokens
from delta_transcoders.language_models import load_model, load_tokenizer, target_batch, tokenize
from delta_transcoders.tasks.calculator.task import Calculator
from lightning_modules.feature_statistics import FeatureStatistics

D_NEW, PLANTED, SILENT = 6, 3, 5


@pytest.fixture(scope="module")
def known(dictionaries, arguments, tmp_path_factory):
    """The study with a delta of random features, one of which is always 2 and one never fires, and with a
    float32 cache in shards of 64 tokens, which cut texts in two."""
    folder = shutil.copytree(dictionaries, tmp_path_factory.mktemp("features") / "study")
    for layer in (0, 1):
        like, config = load_delta(folder / "delta" / f"layer_{layer}")
        generator = torch.Generator().manual_seed(layer)
        tensors = {
            k: torch.randn(t.shape, generator=generator) for k, t in like.state_dict().items()
        }
        tensors["threshold"] = torch.zeros(D_NEW)  # rounding moves no activation across a jump
        tensors["W_enc"][:, PLANTED] = 0
        tensors["b_enc"][[PLANTED, SILENT]] = torch.tensor([2.0, -1e6])
        save_delta(folder / "delta" / f"layer_{layer}", Transcoder(**tensors), config)
    shards = {"trainer.callbacks.dtype": "float32", "trainer.callbacks.shard_rows": 64}
    exact = {"trainer.callbacks.output": folder / "exact"}
    evaluate.main(arguments("tiny/activations.yaml", folder, shards | exact))
    return folder


@pytest.fixture(scope="module")
def run(known, arguments):
    def run(output: str, **options):
        given = {"model.output": known / output, "data.batch_size": 4}
        given |= {k.replace("__", "."): v for k, v in options.items()}
        evaluate.main(arguments("tiny/features.yaml", known, given))
        return read_features(known / output)

    return run


@pytest.fixture(scope="module")
def half(run, known):
    """Of the float16 cache."""
    return run("features", model__others=json.dumps([str(known / "delta")]))


@pytest.fixture(scope="module")
def exact(run, known):
    return run("features_exact", data__cache=known / "exact")


@pytest.fixture(scope="module")
def fresh(known):
    """Of every text its subset, tokens, length of the prompt, and activations by layer [T, F], NaN where
    features read nothing; by (held out, number)."""
    model, tokenizer = (f(str(known / "finetune" / "merged")) for f in (load_model, load_tokenizer))
    bridge, site = boot_bridge(model, tokenizer), HOOK_SITES["gemma_scope"]
    deltas = [load_delta(known / "delta" / f"layer_{layer}")[0] for layer in (0, 1)]
    found = {}
    for held_out, name in ((False, "train"), (True, "evaluation")):
        examples = list(Calculator().read(known / "finetune/data" / f"{name}.jsonl").values())
        if held_out:
            order = list(dict.fromkeys(e.subset for e in examples))
            examples.sort(key=lambda e: order.index(e.subset))
        for number, example in enumerate(examples):
            (tokens,) = tokenize(tokenizer, Calculator(), [example])
            batch = target_batch([tokens], tokenizer.pad_token_id)
            captured = capture(bridge, batch["input_ids"], batch["attention_mask"], [0, 1], site)
            acts = torch.full((2, len(tokens), D_NEW), math.nan)
            for layer in (0, 1):
                a_NF = deltas[layer].encode(captured.activations[layer][0])
                acts[layer, captured.positions] = a_NF
            shown = shown_tokens(tokenizer, batch["input_ids"][0].tolist())
            found[held_out, str(number)] = example.subset, shown, len(tokens.prompt_ids), acts
    return found


@pytest.mark.parametrize(("name", "within"), [("exact", 1e-4), ("half", 1e-2)])
def test_contexts_are_those_of_a_fresh_pass(request, fresh, name, within):
    features = request.getfixturevalue(name)
    held_out = {s["name"]: s["held_out"] for s in features.info["subsets"]}
    n_contexts = 0
    for feature in features:
        for context in feature.contexts:
            n_contexts += 1
            out = held_out[context.subset]
            subset, tokens, n_prompt, acts = fresh[out, context.example]
            assert context.subset.removesuffix(" (held out)") == subset
            n, length = len(context.tokens), len(tokens)
            (start,) = {
                i
                for i in range(length - n + 1)
                if tuple(tokens[i : i + n]) == context.tokens
                and (i > 0, i + n < length) == (context.cut_left, context.cut_right)
            }
            assert context.target_from == max(0, n_prompt - start)
            assert context.special == tuple(t in ("<bos>", "<eos>") for t in context.tokens)
            whole = acts[feature.layer, :, feature.number]
            expected = whole[start : start + n]
            small = within / 10 * max(1, feature.maximum)
            near = pytest.approx(expected.numpy(), rel=within, abs=small, nan_ok=True)
            assert np.array(context.activations) == near
            if context.kind == "silent":
                assert not whole.nan_to_num().any()
            elif context.kind != "top":
                fifth = math.ceil(5 * context.activations[context.peak] / feature.maximum)
                assert context.kind == f"fifth_{fifth}"
            elif name == "exact":
                assert context.activations[context.peak] == pytest.approx(
                    float(whole.nan_to_num().max())
                )
    assert n_contexts > 100


def test_counts_are_those_of_a_fresh_pass(exact, fresh):
    for feature in exact:
        for subset, activity in feature.activity.items():
            texts = [
                acts[feature.layer, :, feature.number]
                for (out, _), (name, _, _, acts) in fresh.items()
                if (out, name) == (activity.held_out, subset.removesuffix(" (held out)"))
            ]
            values = torch.cat([text[~text.isnan()] for text in texts])
            firing = values[values > 0]
            assert (activity.n_tokens, activity.n_examples) == (len(values), len(texts))
            assert activity.density == len(firing) / len(values)
            assert activity.example_density == np.mean([bool((t > 0).any()) for t in texts])
            assert sum(activity.histogram) == len(firing)
            assert activity.maximum == pytest.approx(float(values.max()), rel=1e-5)
            if len(firing):
                assert activity.mean == pytest.approx(float(firing.mean()), rel=1e-5)
            # The strongest texts come first.
            tops = [c for c in feature.contexts if (c.subset, c.kind) == (subset, "top")]
            if tops:
                assert tops[0].activations[tops[0].peak] == pytest.approx(
                    activity.maximum, rel=1e-5
                )
            assert len(tops) <= N_TOP


def test_what_is_known_of_the_planted_feature(half):
    for layer in (0, 1):
        planted, silent = half.feature(layer, PLANTED), half.feature(layer, SILENT)
        assert {a.density for a in planted.activity.values()} == {1}
        assert planted.maximum == 2
        assert all(t.fires == 1 and t.mean == 2 for t in planted.tokens)
        assert silent.maximum == 0
        assert {c.kind for c in silent.contexts} == {"silent"}
        assert silent.together == silent.tokens == ()
        ((other, number, cosine),) = planted.matches
        assert (number, cosine) == (PLANTED, pytest.approx(1))
        assert other.endswith("/delta")
    assert half.feature(0, PLANTED).together[0] == (1, PLANTED, 1)
    info = half.info
    together = info["together"]
    assert together["n_looked_at"] == together["n_places"] > 100
    assert (info["target"], info["n_layers"], info["hook_site"]) == ("residual", 2, "gemma_scope")
    assert [s["name"] for s in info["subsets"] if not s["held_out"]] == ["copy", "tool"]
    assert {s["name"] for s in info["subsets"] if s["held_out"]} == {
        *("tool (held out)", "copy (held out)", "tool_ood", "tool_ood_numbers"),
    }


def test_logits_are_the_row_through_final_norm_and_unembedding(half, known):
    model, tokenizer = (f(str(known / "finetune" / "merged")) for f in (load_model, load_tokenizer))
    delta, _ = load_delta(known / "delta" / "layer_1")
    gain_D = 1 + model.model.norm.weight.detach()  # Gemma's
    logits_FV = (delta.W_dec * gain_D) @ model.lm_head.weight[: len(tokenizer)].T.detach()
    for number in range(D_NEW):
        feature = half.feature(1, number)
        values, ids = logits_FV[number].topk(10)
        assert [v for _, v in feature.promotes] == pytest.approx(values.tolist(), rel=1e-4)
        assert [t for t, _ in feature.promotes] == shown_tokens(tokenizer, ids.tolist())
        assert feature.suppresses[0][1] == pytest.approx(float(logits_FV[number].min()), rel=1e-4)


def test_what_does_not_belong_together_is_refused(run, known, tmp_path):
    def other_delta(**changes):
        folder = tmp_path / "other"
        shutil.copytree(known / "delta", folder, dirs_exist_ok=True)
        for layer in (0, 1):
            path = folder / f"layer_{layer}" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    with pytest.raises(ValueError, match="was trained on another model"):
        run("bad", model__delta=other_delta(model_fingerprint="0" * 64))
    with pytest.raises(ValueError, match="is of hook site 'residual', the cache"):
        run("bad", model__delta=other_delta(hook_site="residual"))
    with pytest.raises(ValueError, match="has model_fingerprint ="):
        run("bad", model__model=known / "base_model", data__model=known / "base_model")
    examples = shutil.copytree(known / "finetune/data", tmp_path / "examples")
    lines = (examples / "train.jsonl").read_text().splitlines()
    (examples / "train.jsonl").write_text("\n".join([*lines[1:], lines[0]]))
    with pytest.raises(ValueError, match="was made of other texts: hash"):
        run("bad", data__examples=examples)
    with pytest.raises(ValueError, match="no finished activation cache there; make it with"):
        run("bad", data__cache=tmp_path)
    assert not (known / "bad").exists()
    module = FeatureStatistics(str(known / "finetune" / "merged"), "delta", "output")
    module._trainer = SimpleNamespace(world_size=2, datamodule=None)
    with pytest.raises(ValueError, match="counted by one process, not 2"):
        module.setup("test")
