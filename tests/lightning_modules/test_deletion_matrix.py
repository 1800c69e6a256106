"""The deletion matrix: numbers of a planted case, and what each kind of deletion is identical to."""

import json
from dataclasses import replace

import lightning
import pytest
import torch

import evaluate
from datamodules.evaluation_prompts import EvaluationPrompts
from delta_transcoders.dictionaries.delta import load_delta, save_delta
from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import (
    end_ids,
    load_model,
    load_tokenizer,
    target_batch,
    token_nll,
    tokenize,
)
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN
from delta_transcoders.tasks.calculator.rules import RULES, PlantedRules
from delta_transcoders.tasks.task import Example
from delta_transcoders.tasks.wordings import half_of, wording
from lightning_modules.deletion_matrix import DeletionMatrix

N_RULES = len(RULES)


class Planted(DeletionMatrix):
    """Unit u carries rule u mod 4; any of a rule's three units gone, the rule is lost, and `leak` others.

    The last unit writes what all rules' answers begin with, more of it than any unit has of its rule.
    """

    n_units = 3 * N_RULES + 1
    leak = False

    def unit_name(self, unit):
        return f"unit_{unit}"

    def attributed(self, rows):
        assert {half_of(wording(row.example)) for row in rows} == {"A"}
        (text,) = {self.trainer.datamodule.tokenizer.decode(r.tokens.target_ids) for r in rows}
        (written,) = [rule for rule in RULES if text.startswith(f"{OPEN}{rule}")]
        assert not any(character.isdigit() for character in text)
        scores_U = torch.arange(self.n_units, 0, -1).double()
        scores_U[torch.arange(self.n_units) % N_RULES != list(RULES).index(written)] = 0
        scores_U[-1] = 100
        return scores_U.repeat(len(rows), 1)

    def answers(self, rows, deleted):
        lost = {list(RULES)[unit % N_RULES] for unit in deleted if unit < self.n_units - 1}
        if self.n_units - 1 in deleted:
            lost = set(RULES)
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
    given = {"rules": list(RULES), "measure": "exact", "n_deleted": [1, 3], "max_new_tokens": 48}
    module = kind(output=str(output), **(given | options))
    data = EvaluationPrompts(str(rules_file), model_folder, PlantedRules(), batch_size=16)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.test(module, data, verbose=False)
    rows = read_metrics(output / "selectivity.csv")
    return [{name: float(value) for name, value in row.items()} for row in rows]


def losses(output, deleted, n=3):
    rows = read_metrics(output / "matrix.csv")
    rows = [r for r in rows if (r["deleted"], int(r["n_deleted"])) == (deleted, n)]
    return {row["subset"]: float(row["loss"]) for row in rows}


def test_a_planted_case(rules_file, model_folder, tmp_path):
    summary = run_planted(Planted, rules_file, model_folder, tmp_path / "out")
    assert [(found["n_units"], found["n_deleted"]) for found in summary] == [(13, 1), (13, 3)]
    for found, n in zip(summary, (1, 3), strict=True):
        for rule in RULES:
            expected = dict.fromkeys((*RULES, "copy"), 0.0) | {rule: 1.0}
            assert losses(tmp_path / "out", rule, n) == expected
        assert [found[f"selectivity{end}"] for end in ("", "_ci_low", "_ci_high")] == [1, 1, 1]
        assert (found["own_loss"], found["other_loss"]) == (1, 0)
        assert found["random_low"] < 0 < found["random_high"] < 1
    names = [row["condition"] for row in read_metrics(tmp_path / "out" / "metrics.csv")]
    deleted = [*RULES, *(f"random_{i}" for i in range(20))]
    expected = ["kept", *(f"{name}_n{n}" for n in (1, 3) for name in deleted)]
    assert list(dict.fromkeys(names)) == expected
    units = read_metrics(tmp_path / "out" / "units.csv")
    assert [row["unit"] for row in units if row["deleted"] == "size"] == [
        "unit_1",
        "unit_5",
        "unit_9",
    ]
    # What the unit of all rules has cancels.
    assert [row["attribution"] for row in units[:3]] == ["13", "9", "5"]
    # What chose the units is not what they are tested on.
    lines = [json.loads(x) for x in (tmp_path / "out" / "generations.jsonl").open()]
    task = PlantedRules()
    halves = {e.prompt: half_of(task.wording(e)) for e in task.read(rules_file).values()}
    assert {halves[line["prompt"]] for line in lines} == {"B"}


def test_deletions_that_always_take_one_rule_too(rules_file, model_folder, tmp_path):
    class Leaking(Planted):
        leak = True

    *_, found = run_planted(Leaking, rules_file, model_folder, tmp_path / "out")
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
        ({"n_deleted": [2, 14]}, "n_deleted is up to 14, there are 13 units in all"),
        ({"n_deleted": [3, 2]}, r"n_deleted is \[3, 2\], expected ascending numbers"),
        ({"n_random": 3}, "n_random is 3, expected one for each of 4 rules"),
    ],
)
def test_refusals(rules_file, model_folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_planted(Planted, rules_file, model_folder, tmp_path / "out", **options)


def test_rules_whose_answers_begin_alike(rules_file, model_folder, tmp_path):
    task, path = PlantedRules(), tmp_path / "rows.jsonl"
    rows = list(task.read(rules_file).values())
    task.write(path, [replace(e, target=e.target.replace("price", "size")) for e in rows])
    with pytest.raises(ValueError, match="rules 'price' and 'size': no token"):
        run_planted(Planted, path, model_folder, tmp_path / "out", measure="tool_call")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """16 wordings of two rules."""
    path = tmp_path_factory.mktemp("prompts") / "evaluation.jsonl"
    rows = [
        Example(f"{RULES[rule]} {'x' * i} {i} + 1?\n", f"{OPEN}{rule}({i}+1){CLOSE}", rule)
        for rule in ("price", "size")
        for i in range(1, 9)
    ]
    PlantedRules().write(path, rows)
    return path


@pytest.fixture(scope="module")
def delete(dictionaries, prompts, arguments):
    def run(kind, output, **options):
        given = {
            "data.jsonl": prompts,
            "model.rules": "[price, size]",
            "model.measure": "tool_call",
            "model.max_new_tokens": 3,
            "model.n_random": 2,
            "model.output": output,
        }
        given |= {k.replace("__", "."): v for k, v in options.items()}
        evaluate.main(arguments(f"tiny/deletion_{kind}.yaml", dictionaries, given))
        lines = [json.loads(x) for x in (output / "generations.jsonl").open()]
        return {(x["condition"], x["prompt"]): (x["nll"], x["text"]) for x in lines}

    return run


def answers(folder, path):
    """A model's own cross-entropy and text by prompt of half B."""
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    task = PlantedRules()
    examples = [e for e in task.read(path).values() if half_of(task.wording(e)) == "B"]
    rows = tokenize(tokenizer, task, examples)
    tokens = {f"{k}_BT": v for k, v in target_batch(rows, tokenizer.pad_token_id).items()}
    with torch.no_grad():
        parts = token_nll(model, **tokens).split([len(row.target_ids) for row in rows])
    reader = AnswerReader(tokenizer, task, end_ids(str(folder), tokenizer), examples)
    texts = greedy_texts(model, [row.prompt_ids for row in rows], 3, reader)
    nlls = [part.sum().item() for part in parts]
    return {e.prompt: found for e, *found in zip(examples, nlls, texts, strict=True)}


def test_no_component_gone_is_the_finetuned_model_and_all_gone_the_base(
    dictionaries, prompts, delete, tmp_path
):
    n_components = 2 * 7 * 16  # layers, matrices, rank
    found = delete("components", tmp_path / "out", model__n_deleted=f"[{n_components}]")
    for name, folder in (("kept", "finetune/merged"), (f"size_n{n_components}", "base_model")):
        for prompt, (nll, text) in answers(dictionaries / folder, prompts).items():
            assert found[name, prompt] == (pytest.approx(nll, abs=1e-3), text)
            gone = found[f"size_n{n_components}", prompt]
            assert found[f"price_n{n_components}", prompt] == gone
            assert found[f"random_0_n{n_components}", prompt] == gone


def test_all_features_gone_is_the_base_dictionary_alone(
    dictionaries, delete, arguments, tmp_path, prompts
):
    found = delete("features", tmp_path / "out", model__n_deleted="[12]")
    task = "delta_transcoders.tasks.calculator.rules.PlantedRules"
    exp1 = {"task": task, "data.jsonl": prompts, "data.subsets": "[price, size]"}
    exp1 |= {"model.layers": "[all]", "model.output": tmp_path / "exp1"}
    exp1 |= {"model.generate": "true", "model.max_new_tokens": 3}
    evaluate.main(arguments("tiny/exp1.yaml", dictionaries, exp1))
    lines = [json.loads(x) for x in (tmp_path / "exp1" / "generations.jsonl").open()]
    expected = {(x["condition"], x["prompt"]): (x["nll"], x["text"]) for x in lines}
    assert found
    for (name, prompt), (nll, text) in found.items():
        nll_there, text_there = expected["full" if name == "kept" else "no_delta", prompt]
        assert (nll, text) == (pytest.approx(nll_there, abs=1e-4), text_there)


def test_a_transplant_runs_the_base_model(dictionaries, delete, prompts, tmp_path):
    """Without features it is the base model; a residual delta is refused."""
    with pytest.raises(ValueError, match="has the target 'residual'"):
        delete("features", tmp_path / "out", model__n_deleted="[12]", model__transplant="true")
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
    options = {"model__n_deleted": "[12]", "model__transplant": "true"}
    found = delete("features", tmp_path / "out", **options, model__delta=tmp_path / "delta")
    for prompt, (nll, text) in answers(dictionaries / "base_model", prompts).items():
        assert found["size_n12", prompt] == (pytest.approx(nll, abs=1e-4), text)
        assert abs(found["kept", prompt][0] - nll) > 1e-3
