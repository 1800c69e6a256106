"""Where drawn units fire, against fresh passes of the model; and half B, closed until rules are committed."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

import evaluate
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.delta import load_deltas
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import GEMMA_SCOPE
from delta_transcoders.features.rules import __main__ as command
from delta_transcoders.features.rules.attribution import attributed, neurons_read
from delta_transcoders.features.rules.firing import read_firing
from delta_transcoders.features.texts import shown_tokens
from delta_transcoders.language_models import (
    load_model,
    load_tokenizer,
    target_batch,
    token_nll,
    tokenize,
)
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.wordings import half_of

TASK = Calculator()


@pytest.fixture(scope="module")
def run(dictionaries, arguments):
    def run(output, **options):
        given = {"model.n": 2, "model.output": output, "data.batch_size": 3}
        given |= {k.replace("__", "."): v for k, v in options.items()}
        evaluate.main(arguments("tiny/unit_firing.yaml", dictionaries, given))
        return read_firing(output)

    return run


@pytest.fixture(scope="module")
def folder_a(tmp_path_factory):
    return tmp_path_factory.mktemp("unit_firing") / "a"


@pytest.fixture(scope="module")
def half_a(run, folder_a):
    return run(folder_a, model__rows_per_pass=5)


@pytest.fixture(scope="module")
def examples(dictionaries):
    """By number, as the evaluation counts them."""
    rows = list(TASK.read(dictionaries / "finetune/data/evaluation.jsonl").values())
    order = list(dict.fromkeys(example.subset for example in rows))
    return dict(enumerate(sorted(rows, key=lambda example: order.index(example.subset))))


@pytest.fixture(scope="module")
def fresh(dictionaries):
    """`fresh(example)`: its tokens, and its activations of the features and neurons of both layers [T, F],
    NaN where features read nothing. The neurons are of the model without a bridge."""
    folder = str(dictionaries / "finetune/merged")
    tokenizer, plain, bridged = (load_tokenizer(folder), load_model(folder), load_model(folder))
    bridge = boot_bridge(bridged, tokenizer)
    family = family_of(plain.config)
    downs = {layer: family.down(plain, layer) for layer in (0, 1)}
    deltas = load_deltas(dictionaries / "delta")

    @torch.inference_mode()
    def of(example):
        (tokens,) = tokenize(tokenizer, TASK, [example])
        batch = target_batch([tokens], tokenizer.pad_token_id)
        captured = capture(bridge, batch["input_ids"], batch["attention_mask"], [0, 1], GEMMA_SCOPE)
        with neurons_read(downs) as neurons:
            plain(batch["input_ids"])
        found = {}
        for layer in (0, 1):
            features_TF = torch.full((len(tokens), deltas[layer][1].n_features), torch.nan)
            features_TF[captured.positions] = deltas[layer][1].encode(
                captured.activations[layer][0]
            )
            found["feature", layer], found["neuron", layer] = features_TF, neurons[layer][0]
        return tuple(shown_tokens(tokenizer, batch["input_ids"][0].tolist())), found

    return of


def check_fresh(firing, examples, fresh):
    """That all margins are activations above thresholds, on all tokens of all texts of a half."""
    of_half = {n for n, e in examples.items() if half_of(TASK.wording(e)) == firing.half}
    assert [text.example for text in firing.texts] == sorted(of_half)
    for text, start in zip(firing.texts, firing.starts_E, strict=True):
        example = examples[text.example]
        tokens, activations = fresh(example)
        assert (text.subset, text.wording) == (example.subset, TASK.wording(example))
        assert text.tokens == tokens
        margins_TU = firing.margins_PU[start : start + len(tokens)]
        read_T = ~activations["feature", 0][:, 0].isnan().numpy()
        assert (np.isnan(margins_TU).any(1) == ~read_T).all()
        for u, unit in enumerate(firing.units):
            values_T = activations[unit.kind, unit.layer][:, unit.number].numpy()
            expected = unit.sign * values_T - unit.threshold
            assert margins_TU[read_T, u] == pytest.approx(expected[read_T], rel=1e-4, abs=1e-4)


def test_half_a_is_that_of_a_fresh_pass(half_a, examples, fresh):
    assert half_a.half == "A" and half_a.opened_for is None
    check_fresh(half_a, examples, fresh)
    fires_U = (half_a.margins_PU > 0).sum(0)
    by_pair = {}
    for unit, n_fires in zip(half_a.units, fires_U.tolist(), strict=True):
        assert unit.rate == n_fires / half_a.read_P.sum()
        assert n_fires > 0 and (unit.kind == "neuron" or (unit.sign, unit.threshold) == (1, 0))
        by_pair.setdefault(unit.pair, []).append(unit)
    for pair in by_pair.values():
        assert {unit.kind for unit in pair} == {"feature", "neuron"}
        assert len({unit.rate for unit in pair}) == len({unit.drawn_by for unit in pair}) == 1


def test_attributions_are_the_first_order_of_a_change(dictionaries, examples):
    """By finite differences: features' writing, and neurons' change, taken out a little."""
    folders = (str(dictionaries / name) for name in ("finetune/merged", "base_model"))
    model, base = (load_model(folder).double() for folder in folders)
    tokenizer = load_tokenizer(str(dictionaries / "finetune/merged"))
    rows = tokenize(tokenizer, TASK, [examples[0], examples[len(examples) - 1]])
    family = family_of(model.config)
    downs = {layer: family.down(model, layer) for layer in (0, 1)}
    deltas = {layer: delta for layer, (_, delta, _) in load_deltas(dictionaries / "delta").items()}
    bridge = boot_bridge(model, tokenizer)
    found = attributed(bridge, downs, base, deltas, GEMMA_SCOPE, rows)
    step = 0.02  # of a middle difference, as logits are float32

    def measured(hooks=(), change=None) -> torch.Tensor:
        """log p(target) of the first row."""
        batch = target_batch(rows[:1], tokenizer.pad_token_id)
        ids = {f"{name}_BT": tensor for name, tensor in batch.items()}
        handles = [downs[1].register_forward_pre_hook(change)] if change else []
        with torch.no_grad(), bridge.hooks(fwd_hooks=list(hooks)):
            total = -token_nll(model, **ids).double().sum()
        for handle in handles:
            handle.remove()
        return total

    batch = target_batch(rows[:1], tokenizer.pad_token_id)
    captured = capture(bridge, batch["input_ids"], batch["attention_mask"], [1], GEMMA_SCOPE)
    positions, a_NF = captured.positions, deltas[1].encode(captured.activations[1][0])
    base_downs = {1: family.down(base, 1)}
    with torch.no_grad(), neurons_read(base_downs) as before, neurons_read({1: downs[1]}) as after:
        base(batch["input_ids"])
        measured()
    changed_TF = (after[1] - before[1])[0]

    def with_more_of_feature(k, share):
        def change(y_BTD, hook):
            y_BTD = y_BTD.clone()
            y_BTD[0, positions] += share * (a_NF[:, k, None] * deltas[1].W_dec[k]).double()
            return y_BTD

        return measured([("blocks.1.hook_mlp_out", change)])

    def with_more_of_neuron(k, share):
        def change(module, args):
            read_BTF = args[0].clone()
            read_BTF[0, positions, k] += share * changed_TF[positions, k]
            return (read_BTF,)

        return measured(change=change)

    for attributions_F, with_more in (
        (found[1].features[0], with_more_of_feature),
        (found[1].neurons[0], with_more_of_neuron),
    ):
        for k in attributions_F.abs().topk(3).indices.tolist():
            slope = (with_more(k, step / 2) - with_more(k, -step / 2)) / step
            assert float(attributions_F[k]) == pytest.approx(float(slope), rel=1e-2)
    assert found[1].fires[0].tolist() == (a_NF > 0).sum(0).tolist()
    # A row's do not depend on those beside it.
    alone = attributed(bridge, downs, base, deltas, GEMMA_SCOPE, rows[1:])
    torch.testing.assert_close(alone[0].neurons[0], found[0].neurons[1], rtol=1e-4, atol=1e-6)


@pytest.fixture
def rules(half_a, folder_a, tmp_path, monkeypatch):
    """A repository with the units of half A and rules for them, not committed."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    out = tmp_path / "rules"
    command.draw(folder_a, out)
    lines = [f"{unit.name}: {{says: nothing, where: []}}\n" for unit in half_a.units]
    (out / "rules.yaml").write_text("".join(lines))
    return out


def commit():
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", *identity, "commit", "--quiet", "-m", "Rules"], check=True)


def test_half_b_is_opened_for_committed_rules_alone(half_a, run, rules, examples, fresh, tmp_path):
    with pytest.raises(ValueError, match=r"rules.yaml is not committed, and half B is opened"):
        run(tmp_path / "b", model__rules=rules)
    assert not (tmp_path / "b").exists()
    commit()
    half_b = run(tmp_path / "b", model__rules=rules)
    assert half_b.half == "B" and half_b.units == half_a.units
    check_fresh(half_b, examples, fresh)
    assert "feature by effect" in command.score(rules, tmp_path / "b")


def test_what_does_not_belong_together_is_refused(run, rules, dictionaries, tmp_path):
    path = rules / "units.json"
    path.write_text(
        path.read_text().replace('"delta_fingerprints": {', '"delta_fingerprints": {"9": "",')
    )
    commit()
    with pytest.raises(
        ValueError, match=r"were drawn from another delta than .*/delta: give that one"
    ):
        run(tmp_path / "b", model__rules=rules)
    with pytest.raises(ValueError, match=r"n is 30, so that 60 features .*: give --model.n"):
        run(tmp_path / "a", model__n=30)
    with pytest.raises(ValueError, match="U1: says is ''"):
        names = [unit["name"] for unit in json.loads(path.read_text())["units"]]
        lines = [f"{name}: {{says: '', where: []}}\n" for name in names]
        (rules / "rules.yaml").write_text("".join(lines))
        run(tmp_path / "b", model__rules=rules)
    only = shutil.copy(dictionaries / "finetune/data/evaluation.jsonl", tmp_path / "one.jsonl")
    rows = TASK.read(only)
    wanted = next(e for e in rows.values() if half_of(TASK.wording(e)) == "B")
    TASK.write(only, [wanted])
    with pytest.raises(
        ValueError, match=r"no prompt of .* is in half A of the wordings: give more"
    ):
        run(tmp_path / "a", data__jsonl=only)
