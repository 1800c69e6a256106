"""The deletion matrix: numbers of a planted case, and what each kind of deletion is identical to."""

import json

import lightning
import pytest
import torch

import evaluate
from datamodules.evaluation_prompts import EvaluationPrompts
from delta_transcoders.dictionaries.delta import load_delta, save_delta
from delta_transcoders.language_models import (
    load_model,
    load_tokenizer,
    target_batch,
    token_nll,
    tokenize,
)
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.examples import make_example
from delta_transcoders.tasks.calculator.grammar import format_tool_call
from delta_transcoders.tasks.calculator.rules import RULES, PlantedRules
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.wordings import half_of, wording
from lightning_modules.deletion_matrix import DeletionMatrix

N_RULES = len(RULES)


class Planted(DeletionMatrix):
    """Unit u carries rule u mod 4; any of a rule's three units gone, the rule is lost, and `leak` others."""

    n_units = 3 * N_RULES
    leak = False

    def unit_name(self, unit):
        return f"unit_{unit}"

    def attributed(self, rows):
        assert {half_of(wording(row.example)) for row in rows} == {"A"}
        (rule,) = {row.example.subset for row in rows}
        own = torch.arange(self.n_units) % N_RULES == list(RULES).index(rule)
        return own.double().repeat(len(rows), 1) * torch.arange(self.n_units, 0, -1)

    def answers(self, rows, deleted):
        lost = {list(RULES)[unit % N_RULES] for unit in deleted}
        if self.leak and lost:
            lost |= {"price"}
        texts = ["?" if r.example.subset in lost else r.example.target for r in rows]
        return texts, [1.0] * len(rows)


@pytest.fixture(scope="module")
def rules_file(tmp_path_factory):
    path, task = tmp_path_factory.mktemp("rules") / "evaluation.jsonl", PlantedRules()
    task.write(path, task.generate(32, 16, 36, seed=0)["evaluation"])
    return path


def run_planted(kind, rules_file, model_folder, output, **options):
    given = {"rules": list(RULES), "measure": "exact", "n_deleted": 3, "max_new_tokens": 48}
    module = kind(output=str(output), **(given | options))
    data = EvaluationPrompts(str(rules_file), model_folder, PlantedRules(), batch_size=16)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.test(module, data, verbose=False)
    (summary,) = read_metrics(output / "selectivity.csv")
    return {name: float(value) for name, value in summary.items()}


def losses(output, deleted):
    rows = [r for r in read_metrics(output / "matrix.csv") if r["deleted"] == deleted]
    return {row["subset"]: float(row["loss"]) for row in rows}


def test_a_planted_case(rules_file, model_folder, tmp_path):
    found = run_planted(Planted, rules_file, model_folder, tmp_path / "out")
    for rule in RULES:
        expected = dict.fromkeys((*RULES, "copy"), 0.0) | {rule: 1.0}
        assert losses(tmp_path / "out", rule) == expected
    assert found["n_units"], found["n_deleted"] == (12, 3)
    assert [found[f"selectivity{end}"] for end in ("", "_ci_low", "_ci_high")] == [1, 1, 1]
    assert (found["own_loss"], found["other_loss"]) == (1, 0)
    assert found["random_low"] < 0 < found["random_high"] < 1
    names = {row["condition"] for row in read_metrics(tmp_path / "out" / "metrics.csv")}
    assert names == {"kept", *RULES} | {f"random_{i}" for i in range(20)}
    units = read_metrics(tmp_path / "out" / "units.csv")
    assert [row["unit"] for row in units if row["deleted"] == "size"] == [
        "unit_1",
        "unit_5",
        "unit_9",
    ]
    assert [row["attribution"] for row in units[:3]] == ["12", "8", "4"]
    # What chose the units is not what they are tested on.
    lines = [json.loads(x) for x in (tmp_path / "out" / "generations.jsonl").open()]
    task = PlantedRules()
    halves = {e.prompt: half_of(task.wording(e)) for e in task.read(rules_file).values()}
    assert {halves[line["prompt"]] for line in lines} == {"B"}


def test_deletions_that_always_take_one_rule_too(rules_file, model_folder, tmp_path):
    class Leaking(Planted):
        leak = True

    found = run_planted(Leaking, rules_file, model_folder, tmp_path / "out")
    # Of 12 losses off the diagonal the three of `price` are 1.
    assert found["selectivity"] == pytest.approx(1 - 3 / 12)
    assert losses(tmp_path / "out", "sum") == dict.fromkeys(RULES, 0.0) | {
        "price": 1,
        "sum": 1,
        "copy": 0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": ["size"]}, "expected at least two different ones"),
        ({"rules": ["size", "volume"]}, "no subset 'volume'; there are price, size"),
        ({"measure": "x"}, "measure is 'x'; of price the judge gives tool_call, right_tool, exact"),
        (
            {"rules": ["size", "copy"], "measure": "right_tool"},
            "measure is 'right_tool'; of copy the judge gives tool_call, exact",
        ),
        ({"n_deleted": 13}, "n_deleted is 13, there are 12 units in all"),
        ({"n_random": 3}, "n_random is 3, expected one for each of 4 rules"),
    ],
)
def test_refusals(rules_file, model_folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_planted(Planted, rules_file, model_folder, tmp_path / "out", **options)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """16 wordings of two subsets of the calculator's."""
    path = tmp_path_factory.mktemp("prompts") / "evaluation.jsonl"
    rows = [
        make_example(f"{start} {'x' * i} {i} + 1?", format_tool_call(f"{i}+1"), label)
        for label, start in (("positive", "What is"), ("tool_ood", "How much is"))
        for i in range(1, 9)
    ]
    Calculator().write(path, rows)
    return path


@pytest.fixture(scope="module")
def delete(dictionaries, prompts, arguments):
    def run(kind, output, **options):
        given = {
            "task": "delta_transcoders.tasks.calculator.task.Calculator",
            "data.jsonl": prompts,
            "model.rules": "[tool, tool_ood]",
            "model.measure": "tool_call",
            "model.max_new_tokens": 3,
            "model.n_random": 2,
            "model.output": output,
        }
        given |= {k.replace("__", "."): v for k, v in options.items()}
        evaluate.main(arguments(f"tiny/deletion_{kind}.yaml", dictionaries, given))
        lines = [json.loads(x) for x in (output / "generations.jsonl").open()]
        return {(x["condition"], x["prompt"]): x["nll"] for x in lines}

    return run


def nlls(model, tokenizer, path):
    """By prompt of half B."""
    examples = [
        e for e in Calculator().read(path).values() if half_of(Calculator().wording(e)) == "B"
    ]
    rows = tokenize(tokenizer, Calculator(), examples)
    tokens = {f"{k}_BT": v for k, v in target_batch(rows, tokenizer.pad_token_id).items()}
    with torch.no_grad():
        parts = token_nll(model, **tokens).split([len(row.target_ids) for row in rows])
    return {e.prompt: part.sum().item() for e, part in zip(examples, parts, strict=True)}


def test_no_component_gone_is_the_finetuned_model_and_all_gone_the_base(
    dictionaries, prompts, delete, tmp_path
):
    n_components = 2 * 3 * 2  # layers, matrices, rank
    found = delete("components", tmp_path / "out", model__n_deleted=n_components)
    tokenizer = load_tokenizer(str(dictionaries / "base_model"))
    for name, folder in (("kept", "finetune/merged"), ("tool", "base_model")):
        model = load_model(str(dictionaries / folder))
        for prompt, nll in nlls(model, tokenizer, prompts).items():
            assert found[name, prompt] == pytest.approx(nll, abs=1e-3)
            assert found["random_0", prompt] == pytest.approx(found["tool", prompt], abs=1e-6)


def test_all_features_gone_is_the_base_dictionary_alone(
    dictionaries, delete, arguments, tmp_path, prompts
):
    found = delete("features", tmp_path / "out", model__n_deleted=12)
    exp1 = {"data.jsonl": prompts, "data.subsets": "[tool, tool_ood]", "model.layers": "[all]"}
    exp1 |= {"model.output": tmp_path / "exp1", "model.generate": "true", "model.max_new_tokens": 3}
    evaluate.main(arguments("tiny/exp1.yaml", dictionaries, exp1))
    lines = [json.loads(x) for x in (tmp_path / "exp1" / "generations.jsonl").open()]
    expected = {(x["condition"], x["prompt"]): x["nll"] for x in lines}
    assert found
    for (name, prompt), nll in found.items():
        condition = "full" if name == "kept" else "no_delta"
        assert nll == pytest.approx(expected[condition, prompt], abs=1e-4)


def test_a_transplant_runs_the_base_model(dictionaries, delete, prompts, tmp_path):
    """Without features it is the base model; a residual delta is refused."""
    with pytest.raises(ValueError, match="has the target 'residual'"):
        delete("features", tmp_path / "out", model__n_deleted=12, model__transplant="true")
    from delta_transcoders.fingerprints import model_fingerprint

    base = load_model(str(dictionaries / "base_model"))
    for layer in (0, 1):
        delta, config = load_delta(dictionaries / "delta" / f"layer_{layer}")
        values = vars(config) | {
            "target": "mlp_difference",
            "base_hash": model_fingerprint(base),
            "percentile": None,
        }
        save_delta(tmp_path / "delta" / f"layer_{layer}", delta, type(config)(**values))
    options = {"model__n_deleted": 12, "model__transplant": "true"}
    found = delete("features", tmp_path / "out", **options, model__delta=tmp_path / "delta")
    expected = nlls(base, load_tokenizer(str(dictionaries / "base_model")), prompts)
    for prompt, nll in expected.items():
        assert found["tool", prompt] == pytest.approx(nll, abs=1e-4)
        assert abs(found["kept", prompt] - nll) > 1e-3
