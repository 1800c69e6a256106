"""Experiments over processes and repetitions, beside the plain model, and what they refuse."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import evaluate
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.files.gemma_scope import save_base
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.loading import load_delta_sets
from delta_transcoders.language_models import load_model
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.examples import read_jsonl

OPTIONS = {
    "model.layers": "[0, all]",
    "model.conditions": "[no_delta, full, base_mlp]",
    "model.reconstruction": "true",
    "model.max_new_tokens": 8,
    "data.batch_size": 4,
}
SUBSETS = ("tool", "copy", "tool_ood")
ALONE = {"model.deltas": "[]", "model.base_transcoders": "null"}


def records_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(dictionaries, arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("one")
    options = OPTIONS | {"model.output": output}
    evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, options))
    return output


@pytest.mark.slow
def test_two_processes_give_the_texts_and_counts_of_one(
    one, dictionaries, arguments, tmp_path, pytestconfig
):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    ddp = {"trainer.devices": 2, "trainer.strategy": "ddp", "model.output": tmp_path / "two"}
    args = arguments("tiny/exp2a.yaml", dictionaries, OPTIONS | ddp)
    script = tmp_path / "two.py"  # Lightning starts it again for the second process
    script.write_text(f"import evaluate\nevaluate.main({args})\n")
    subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    first, second = records_of(one), records_of(tmp_path / "two")
    assert len(first) == (1 + 2 * 3) * 15
    for name in ("nll", "kl", "call_logprob"):
        values = [[r.pop(name) for r in records] for records in (first, second)]
        assert values[1] == pytest.approx(values[0], rel=1e-6, abs=1e-6), name
    assert second == first
    rows, twins = (json.loads((f / "metrics.json").read_text()) for f in (one, tmp_path / "two"))
    assert [list(row) for row in twins] == [list(row) for row in rows]
    for row, twin in zip(rows, twins, strict=True):
        for name, value in row.items():
            if isinstance(value, float):
                assert twin[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
            else:
                assert twin[name] == value, name


def test_answers_are_recorded_with_their_prompt_target_and_what_the_delta_was_fitted_to(
    one, dictionaries
):
    path = dictionaries / "finetune" / "data" / "evaluation.jsonl"
    examples = [e for e in read_jsonl(path).values() if e.subset in SUBSETS]
    examples.sort(key=lambda example: SUBSETS.index(example.subset))
    for line in records_of(one):
        example = examples[line["example"]]
        assert (line["prompt"], line["target"]) == (example.prompt, example.target)
        assert line["subset"] == example.subset
        assert line["fitted_to"] == (None if line["condition"] == "raw" else "residual")


def test_the_same_run_gives_the_same_table_byte_for_byte(one, dictionaries, arguments, tmp_path):
    options = OPTIONS | {"model.output": tmp_path}
    evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, options))
    for name in ("metrics.csv", "metrics.json", "generations.jsonl"):
        assert (tmp_path / name).read_bytes() == (one / name).read_bytes()


def test_raw_is_the_plain_model(one, dictionaries, arguments, tmp_path):
    options = {"model.output": tmp_path, "model.max_new_tokens": 8, "data.batch_size": 4}
    options["data.subsets"] = f"[{', '.join(SUBSETS)}]"
    evaluate.main(arguments("tiny/behaviour.yaml", dictionaries, options))
    ours, plain = (
        [r for r in records_of(folder) if r["condition"] == "raw"] for folder in (one, tmp_path)
    )
    assert [r["text"] for r in ours] == [r["text"] for r in plain]
    assert [r["nll"] for r in ours] == pytest.approx([r["nll"] for r in plain], rel=1e-6)
    ours, plain = (
        {r["subset"]: r for r in read_metrics(folder / "metrics.csv") if r["condition"] == "raw"}
        for folder in (one, tmp_path)
    )
    for subset in SUBSETS:
        for name in ("n_examples", "n_tokens", "tool_call_rate", "exact_copy_rate"):
            assert ours[subset][name] == plain[subset][name]
        expected = float(plain[subset]["mean_ce"])
        assert float(ours[subset]["mean_ce"]) == pytest.approx(expected, rel=2e-6)
        assert float(ours[subset]["dce"]) == 0


def test_nothing_warns_where_reconstruction_is_off(dictionaries, arguments, tmp_path, recwarn):
    options = OPTIONS | {"model.reconstruction": "false", "model.output": tmp_path}
    evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, options))
    assert not [w for w in recwarn if "before the ``update``" in str(w.message)]


def test_configurations_of_a_sweep_share_their_bases_and_differ_in_label(dictionaries, tmp_path):
    folders = [dictionaries / "delta"]
    for percentile in (0.25, 0.5):  # the tensors do not matter here
        folder = shutil.copytree(dictionaries / "delta", tmp_path / f"{percentile}" / "delta")
        for path in folder.glob("layer_*/config.json"):
            config = json.loads(path.read_text())
            path.write_text(json.dumps(config | {"percentile": percentile}))
        folders.append(folder)
    model = load_model(str(dictionaries / "finetune" / "merged"))
    bases = str(dictionaries / "base_transcoders")
    first, second = load_delta_sets(folders[:2], bases, model)
    assert (first.label, second.label) == ("d6_p0.5", "d6_p0.25")
    assert first.sources["base"][0] is second.sources["base"][0]
    with pytest.raises(ValueError, match=r"both hold deltas of d6_p0\.5"):
        load_delta_sets(folders[::2], bases, model)


def test_only_the_named_layers_are_loaded(dictionaries, arguments, tmp_path):
    options = OPTIONS | {"model.layers": "[1]", "model.generate": "false", "model.output": tmp_path}
    cli = evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, options))
    assert {name: list(by_layer) for name, by_layer in cli.model.bank.items()} == {
        "base@d6_p0.5": [1],
        "delta@d6_p0.5": [1],
        "random_delta@d6_p0.5": [1],
        "base_mlp": [1],
    }


def test_the_base_model_s_mlps_need_no_dictionaries(one, dictionaries, arguments, tmp_path):
    """As in a study whose finetune has not been asked about its MLPs yet."""
    more = {"model.conditions": "[base_mlp]", "model.output": tmp_path / "alone"}
    options = OPTIONS | ALONE | more
    cli = evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, options))
    assert {name: list(by_layer) for name, by_layer in cli.model.bank.items()} == {
        "base_mlp": [0, 1]
    }
    columns = ("mean_ce", "mean_kl", "tool_call_rate", "fvu", "n_tokens")
    tables = [
        {
            (row["layer"], row["subset"], row["condition"]): [float(row[name]) for name in columns]
            for row in read_metrics(folder / "metrics.csv")
        }
        for folder in (one, tmp_path / "alone")
    ]
    expected = {key: cells for key, cells in tables[0].items() if key[2] in ("raw", "base_mlp")}
    assert tables[1].keys() == expected.keys() and len(expected) == len(SUBSETS) * 3
    for key, cells in expected.items():
        assert tables[1][key] == pytest.approx(cells, rel=1e-5, abs=1e-6, nan_ok=True), key


# Bad input, refused before the first forward pass


@pytest.fixture
def no_forward_pass(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a forward pass")

    for name in ("teacher_forced", "generate", "applied"):
        monkeypatch.setattr(InterventionEngine, name, fail)


@pytest.fixture
def refused(dictionaries, arguments, tmp_path, no_forward_pass):
    """Run an experiment that must end with a message that matches and write nothing."""

    def check(options, match, error=ValueError):
        given = OPTIONS | {"model.output": tmp_path / "result"} | options
        with pytest.raises(error, match=match):
            evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, given))
        assert not (tmp_path / "result").exists()

    return check


def test_a_layer_without_a_dictionary(refused, dictionaries, tmp_path):
    shutil.copytree(dictionaries / "delta" / "layer_0", tmp_path / "delta" / "layer_0")
    message = "layers 1: no dictionary for layer 1; there is one for 0"
    refused({"model.deltas": f"[{tmp_path / 'delta'}]", "model.layers": "[0, 1]"}, message)


def test_a_delta_for_another_base(refused, dictionaries, tmp_path):
    bases = str(dictionaries / "base_transcoders")
    for layer in (0, 1):
        base, base_id = load_base(bases, layer, percentile=0.5)
        base.b_dec = base.b_dec + 1
        save_base(tmp_path / "bases", layer, base, base_id.average_l0)
    message = r"layer_0 was trained on another base dictionary: hash [0-9a-f]{12}…, .* has"
    refused({"model.base_transcoders": tmp_path / "bases"}, message)


def test_a_delta_for_another_model(refused, dictionaries):
    message = r"layer_0 was trained on another model: hash [0-9a-f]{12}…, this model has"
    base_model = dictionaries / "base_model"
    refused({"model.model": base_model, "data.model": base_model}, message)


def test_a_transplant_into_the_model_that_the_delta_is_of(refused):
    message = "'transplant' adds the deltas to the base model's MLPs: give the base model as model"
    refused({"model.conditions": "[transplant]"}, message)


def test_a_file_without_a_subset(refused, dictionaries, tmp_path):
    path = dictionaries / "finetune" / "data" / "evaluation.jsonl"
    lines = [line for line in path.read_text().splitlines() if '"negative"' not in line]
    (tmp_path / "evaluation.jsonl").write_text("\n".join(lines))
    message = "evaluation.jsonl holds no example of the subset 'copy'"
    refused({"data.jsonl": tmp_path / "evaluation.jsonl"}, message)


def test_an_example_longer_than_the_context(refused, dictionaries, tmp_path):
    path = dictionaries / "finetune" / "data" / "evaluation.jsonl"
    first, *rest = path.read_text().splitlines()
    long = json.loads(first)
    long["input"] += " 123" * 300
    (tmp_path / "evaluation.jsonl").write_text("\n".join([json.dumps(long), *rest]))
    message = r"an example takes \d+ tokens, the model's context holds \d+"
    refused({"data.jsonl": tmp_path / "evaluation.jsonl"}, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.layers": "[0+1, all]"}, "layer 'all', condition 'no_delta' is asked for twice"),
        ({"model.conditions": "[alpha_1, alpha_1.0]"}, "'alpha_1.00' is asked for twice"),
        (
            {"model.deltas": "[]"},
            "condition 'no_delta' needs base dictionaries: give model.deltas .*transcoders and None",
        ),
        (
            {"model.deltas": "[]", "model.percentile": "0.5"},
            "condition 'full' needs deltas: give model.deltas, folders or hub ids; it is empty",
        ),
        (
            {"model.deltas": "[]", "model.conditions": "[base_mlp]"},
            r"give both, or, as no condition needs them, neither \(--model.base_transcoders null\)",
        ),
        (
            {"model.conditions": "[error_kept_1]", **ALONE},
            "condition 'error_kept_1.00' needs deltas",
        ),
        (
            {"model.conditions": "[base_mlp]", "model.base_model": "null", **ALONE},
            "base MLPs are needed: give model.base_model, a folder or hub id; it is null",
        ),
        ({"model.percentile": "0.5"}, "give no percentile with them, got 0.5"),
        ({"model.layers": "[]"}, "layers is empty, expected at least one"),
        ({"model.conditions": "[]"}, "conditions is empty, expected at least one"),
        ({"model.conditions": "[fill]"}, "unknown condition 'fill'"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_options_that_make_no_table(refused, options, message):
    refused(options, message)
