import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
from delta_transcoders.command import run
from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import load_model, load_tokenizer, tokenize
from delta_transcoders.metrics.intervals import wilson_of
from delta_transcoders.report.columns import FIRST, LAST
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.examples import (
    SUBSETS,
    make_example,
    read_jsonl,
    write_jsonl,
)
from delta_transcoders.tasks.calculator.grammar import find_tool_call, format_tool_call, judge
from delta_transcoders.tasks.calculator.task import Calculator

CONDITIONS = ("raw", "base_model")
N = 5  # examples of each subset
NEW_TOKENS = 16
RATES = ("tool_call", "valid_tool_format", "math_correct", "exact_copy")


@pytest.fixture(scope="module")
def behaviour(study, arguments, tmp_path_factory):
    """Results of the finetuned and the base model, in batches of six."""
    output = tmp_path_factory.mktemp("behaviour")
    options = {"model.output": output, "data.batch_size": 6, "model.max_new_tokens": NEW_TOKENS}
    cli = evaluate.main(arguments("tiny/behaviour.yaml", study, options))
    assert len(cli.trainer.test_dataloaders) == 4  # 20 examples
    return output


@pytest.fixture(scope="module")
def examples(study):
    return list(read_jsonl(study / "finetune" / "data" / "evaluation.jsonl").values())


def records_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def records(behaviour):
    return records_of(behaviour)


def test_the_table_has_a_row_for_each_condition_and_subset(behaviour):
    assert sorted(p.name for p in behaviour.iterdir()) == [
        "done.json",
        "generations.jsonl",
        "metrics.csv",
        "metrics.json",
    ]
    with (behaviour / "metrics.csv").open() as handle:
        header = next(csv.reader(handle))
    rates = [f"{measure}_rate" for measure in RATES]
    assert tuple(header[: len(FIRST) + len(RATES)]) == (*FIRST, *rates)
    assert tuple(header[-len(LAST) :]) == LAST
    assert {f"{rate}_ci_{end}" for rate in rates for end in ("low", "high")} < set(header)
    rows = read_metrics(behaviour / "metrics.csv")
    assert [(r["condition"], r["subset"]) for r in rows] == [
        (condition, subset) for condition in CONDITIONS for subset in SUBSETS
    ]
    for row in rows:
        assert (row["experiment"], row["layer"], row["n_examples"]) == ("behaviour", "", str(N))


def test_metrics_json_says_what_metrics_csv_says(behaviour):
    rows = read_metrics(behaviour / "metrics.csv")
    twins = json.loads((behaviour / "metrics.json").read_text())
    assert len(rows) == len(twins)
    for row, twin in zip(rows, twins, strict=True):
        for column, text in row.items():
            if text in ("", "nan"):
                assert twin.get(column) in (None, "")
            elif isinstance(twin[column], str):
                assert twin[column] == text
            else:
                assert float(text) == pytest.approx(twin[column], rel=1e-5)


def test_the_table_is_the_mean_of_the_recorded_rows(behaviour, records):
    for row in read_metrics(behaviour / "metrics.csv"):
        mine = [r for r in records
                if (r["condition"], r["subset"]) == (row["condition"], row["subset"])]  # fmt: skip
        assert len(mine) == N
        n_tokens = sum(r["n_tokens"] for r in mine)
        assert int(row["n_tokens"]) == n_tokens
        assert float(row["mean_ce"]) == pytest.approx(sum(r["nll"] for r in mine) / n_tokens, 1e-5)
        for name in RATES:
            verdicts = [r[name] for r in mine if r[name] is not None]
            cells = [row[f"{name}_rate{end}"] for end in ("", "_ci_low", "_ci_high")]
            assert int(row[f"{name}_n"]) == len(verdicts)
            if verdicts:
                wordings = [r["wording"] for r in mine if r[name] is not None]
                expected = [sum(verdicts) / len(verdicts), *wilson_of(verdicts, wordings)]
                assert [float(c) for c in cells] == pytest.approx(expected, abs=1e-5)
            else:
                assert cells == ["nan"] * 3


def test_every_logger_shows_the_estimates_of_the_table(study, arguments, tmp_path):
    logger = "lightning.pytorch.loggers."
    given = [
        {"class_path": f"{logger}{name}", "init_args": {"save_dir": str(tmp_path), "name": name}}
        for name in ("CSVLogger", "TensorBoardLogger")
    ]
    options = {"model.output": tmp_path / "out", "trainer.logger": json.dumps(given)}
    options |= {"data.n_per_subset": 2, "model.max_new_tokens": 4}
    cli = evaluate.main(arguments("tiny/behaviour.yaml", study, options))
    expected = {
        (row["condition"], row["subset"], name): value
        for row in json.loads((tmp_path / "out" / "metrics.json").read_text())
        for name, value in row.items()
        if name == "mean_ce" or (name.endswith("_rate") and value is not None)
    }
    assert len(expected) == 2 * (4 * 3 + 3 + 1)  # no value is right on `copy`, all else is no copy
    (path,) = (tmp_path / "CSVLogger").rglob("metrics.csv")
    with path.open() as handle:
        (logged,) = csv.DictReader(handle)
    ours = {name: float(value) for name, value in logged.items() if name.startswith("test/")}
    wanted = {f"test/{subset}/{c}/{name}": v for (c, subset, name), v in expected.items()}
    assert ours == pytest.approx(wanted, rel=1e-6)
    board = Path(cli.trainer.loggers[1].log_dir)
    assert scalars(board) == {}
    for condition in CONDITIONS:
        wanted = {f"behaviour_{s}/{n}": v for (c, s, n), v in expected.items() if c == condition}
        assert scalars(board / condition) == pytest.approx(wanted, rel=1e-6)


def scalars(folder: Path) -> dict[str, float]:
    (path,) = folder.glob("events.out.*")
    events = EventAccumulator(str(path)).Reload()
    return {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}


def test_every_example_is_recorded_once_per_condition_in_file_order(records, examples):
    assert len(records) == 2 * len(examples)
    for record, (condition, index) in zip(
        records, [(c, i) for c in CONDITIONS for i in range(len(examples))], strict=True
    ):
        example = examples[index]
        assert (record["condition"], record["example"]) == (condition, index)
        assert record["subset"] == example.subset
        assert record["wording"] == Calculator().wording(example)
        assert (record["prompt"], record["target"]) == (example.prompt, example.target)
        assert record["column"] == CONDITIONS.index(condition)


def test_verdicts_follow_from_the_recorded_text(records):
    for record in records:
        verdict = judge(record["text"], record["target"])
        call = find_tool_call(record["text"])
        assert record["tool_call"] == verdict.called
        assert record["valid_tool_format"] == verdict.valid_format
        assert record["math_correct"] == verdict.math_correct
        assert record["parsed_call"] == (call.argument if call else None)
        is_copy = record["subset"] == "copy"
        assert record["exact_copy"] == (record["text"] == record["target"] if is_copy else None)
        assert (record["math_correct"] is None) == is_copy


def test_texts_and_losses_are_those_of_each_model_row_by_row(study, records, examples):
    for condition, folder in (("raw", "finetune/merged"), ("base_model", "base_model")):
        model, tokenizer = load_model(str(study / folder)), load_tokenizer(str(study / folder))
        reader = AnswerReader(tokenizer, Calculator(), {tokenizer.eos_token_id})
        mine = [r for r in records if r["condition"] == condition]
        rows = tokenize(tokenizer, Calculator(), examples[::3])
        for record, row in zip(mine[::3], rows, strict=True):
            prompt, target = list(row.prompt_ids), list(row.target_ids)
            assert record["text"] == greedy_texts(model, [prompt], NEW_TOKENS, reader)[0]
            ids = torch.tensor([prompt + target])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1]
            nll = torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum")
            assert record["nll"] == pytest.approx(nll.item(), rel=1e-5)
            assert record["n_tokens"] == len(target)
    raw, base = (
        {r["example"]: r["nll"] for r in records if r["condition"] == c} for c in CONDITIONS
    )
    assert raw != base


def test_subsets_and_their_size_can_be_chosen(study, arguments, tmp_path):
    options = {
        "model.output": tmp_path,
        "model.models": json.dumps({"raw": str(study / "finetune" / "merged")}),
        "model.max_new_tokens": 2,
        "data.subsets": "[copy, tool]",
        "data.n_per_subset": 3,
    }
    evaluate.main(arguments("tiny/behaviour.yaml", study, options))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(r["condition"], r["subset"], r["n_examples"]) for r in rows] == [
        ("raw", "copy", "3"),
        ("raw", "tool", "3"),
    ]
    assert [r["subset"] for r in records_of(tmp_path)] == ["copy"] * 3 + ["tool"] * 3


def test_two_processes_give_the_counts_and_texts_of_one(one_and_two_processes):
    """On weights that agree to 1e-6: the losses too, and everything discrete exactly."""
    one, two = (folder / "behaviour" for folder in one_and_two_processes)
    first, second = records_of(one), records_of(two)
    assert len(first) == 2 * 4 * 7
    losses = [[r.pop("nll") for r in records] for records in (first, second)]
    assert second == first
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for row, twin in zip(
        read_metrics(one / "metrics.csv"), read_metrics(two / "metrics.csv"), strict=True
    ):
        assert float(twin.pop("mean_ce")) == pytest.approx(float(row.pop("mean_ce")), rel=2e-6)
        assert twin == row
        assert row["n_examples"] == "7"


# Bad input


def call(args, capsys) -> str:
    """Run a command that must end with exit status 2; its one line of error."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.delenv("DELTA_TRACEBACK", raising=False)
        run(lambda: evaluate.main(args))
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(line) < 400
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.max_new_token": 3}, "did you mean 'max_new_tokens'?"),
        ({"model.dtype": "float23"}, "expected 'float32', 'bfloat16'"),
        ({"model.models.raw": "absent/a/b"}, "no model folder 'absent/a/b'"),
        ({"data.jsonl": "absent.jsonl"}, "examples: no file absent.jsonl"),
        ({"data.subsets": "[tool, tol]"}, "holds no example of the subset 'tol'"),
        ({"model.max_new_tokens": 1000}, "the model's context holds 256"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_option_is_one_short_line_and_writes_nothing(
    study, arguments, tmp_path, capsys, options, message
):
    output = tmp_path / "behaviour"
    args = arguments("tiny/behaviour.yaml", study, {"model.output": output} | options)
    assert message in call(args, capsys)
    assert not output.exists()


def test_models_of_different_tokenizers_are_refused(study, arguments, tmp_path, capsys):
    """In one table, or read with the tokenizer of a third."""
    other = tmp_path / "other"
    tokenizer = load_tokenizer(str(study / "base_model"))
    tokenizer.add_tokens(["</b>"])
    model = load_model(str(study / "base_model"))
    model.resize_token_embeddings(401)
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    output = {"model.output": tmp_path / "behaviour"}
    for options in (
        {"model.models.base_model": other},
        {"model.models": json.dumps({"raw": str(other)})},
        {"data.model": other},
    ):
        message = call(arguments("tiny/behaviour.yaml", study, output | options), capsys)
        assert f"'{other}'" in message
        assert "has another tokenizer than" in message
    assert not (tmp_path / "behaviour").exists()


def test_targets_that_cannot_be_judged_are_told_with_their_number(
    study, arguments, tmp_path, examples
):
    positives = [e for e in examples if e.subset == "tool"]
    odd = [make_example(f"Do {i}", format_tool_call(f"1,00{i}+2"), "positive") for i in range(3)]
    write_jsonl(tmp_path / "mine.jsonl", [*positives, *odd])
    options = {"data.jsonl": tmp_path / "mine.jsonl", "data.subsets": "[tool]"}
    options |= {"model.output": tmp_path / "out", "model.max_new_tokens": 2}
    with pytest.warns(UserWarning, match=r"mine\.jsonl: 3 of 8 targets of 'tool' .* line 6, .*','"):
        evaluate.main(arguments("tiny/behaviour.yaml", study, options))
    (row, _) = read_metrics(tmp_path / "out" / "metrics.csv")
    assert row["n_examples"] == "8"
    assert [r["math_correct"] for r in records_of(tmp_path / "out")[:8]] == [False] * 5 + [None] * 3


def test_ids_beyond_the_tokenizer_are_no_text(study, arguments, tmp_path, examples):
    """A model with more rows than its tokenizer has tokens, which prefers one of them."""
    padded, folder = str(tmp_path / "padded"), str(study / "base_model")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompt = tokenizer(examples[0].prompt, return_tensors="pt")
    first = int(model(**prompt).logits[0, -1].argmax())
    model.resize_token_embeddings(448)
    with torch.no_grad():
        model.model.embed_tokens.weight[440] = 1.5 * model.model.embed_tokens.weight[first]
    model.save_pretrained(padded)
    tokenizer.save_pretrained(padded)
    options = {"model.models": json.dumps({"raw": folder, "padded": padded})}
    options |= {"model.output": tmp_path / "out", "model.max_new_tokens": 1}
    options |= {"data.subsets": "[tool]", "data.n_per_subset": 1}
    evaluate.main(arguments("tiny/behaviour.yaml", study, options))
    texts = {record["condition"]: record["text"] for record in records_of(tmp_path / "out")}
    assert texts == {"raw": tokenizer.decode([first]), "padded": ""}


def test_a_study_that_has_no_models_yet(arguments, tmp_path, capsys):
    message = call(arguments("tiny/behaviour.yaml", tmp_path / "new"), capsys)
    assert message.startswith(f"no model folder '{tmp_path / 'new' / 'finetune' / 'merged'}'")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_evaluation_keeps_the_results_before_it(study, arguments, tmp_path, capsys):
    folder = shutil.copytree(study, tmp_path / "study")
    evaluate.main(arguments("tiny/behaviour.yaml", folder, {"model.max_new_tokens": 2}))
    before = {p.name: p.read_bytes() for p in (folder / "behaviour").iterdir()}
    path = folder / "finetune" / "data" / "evaluation.jsonl"
    path.write_text(path.read_text() + "{\n")
    message = call(arguments("tiny/behaviour.yaml", folder), capsys)
    assert f"{path}, line 21: not a JSON object" in message
    assert {p.name: p.read_bytes() for p in (folder / "behaviour").iterdir()} == before
