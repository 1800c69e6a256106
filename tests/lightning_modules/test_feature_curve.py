"""Curves of features, transplants and removals: identities on a random model, and what is refused."""

import json
import shutil

import pytest

import evaluate
import train
from delta_transcoders.dictionaries.delta import load_delta, save_delta
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.report.feature_curve import main
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.examples import read_jsonl
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.wordings import half_of

N_FEATURES = 12
CURVE = {
    "model.grid": "[2, 5]",
    "model.correct": "{tool: tool_call}",
    "model.n_random": 2,
    "model.steps": 2,
    "model.max_new_tokens": 4,
    "data.batch_size": 4,
    "data.subsets": "[tool, copy, tool_ood]",
}


@pytest.fixture(scope="module")
def changed(dictionaries, arguments, delta_options, tmp_path_factory):
    """A copy of the study with deltas of the MLPs' change, 6 features in each of 2 layers."""
    study = shutil.copytree(dictionaries, tmp_path_factory.mktemp("changed") / "study")
    options = {k: v for k, v in delta_options.items() if k != "data.n_check_examples"}
    train.main(arguments("tiny/mlp_difference.yaml", study, options))
    return study


@pytest.fixture(scope="module")
def run(changed, arguments):
    """`run(name, output, options)`: what an experiment wrote."""

    def evaluated(name, output, options):
        delta = changed / "mlp_difference"
        ours = {"removal": {"model.delta": delta}}.get(name, {"model.deltas": f"[{delta}]"})
        given = {"model.output": output} | ours | options
        evaluate.main(arguments(f"tiny/{name}.yaml", changed, given))
        return output

    return evaluated


@pytest.fixture(scope="module")
def curve(run, tmp_path_factory):
    return run("feature_curve", tmp_path_factory.mktemp("curve"), CURVE)


@pytest.fixture(scope="module")
def refits(changed, arguments):
    """End-to-end deltas of 8, 5 and 2 features."""
    options = {"model.d_new": 4, "model.budgets": "[5, 2]", "model.attribution_examples": 6}
    options |= {"data.batch_size": 8, "data.n_train": 32, "data.n_validation": 8}
    options |= {"trainer.max_steps": 12, "trainer.val_check_interval": 2}
    options |= {"trainer.default_root_dir": changed / "logs", "model.attribution_steps": 2}
    train.main(arguments("tiny/delta_end_to_end.yaml", changed, options))
    return changed / "delta_end_to_end"


@pytest.fixture(scope="module")
def curve_of_refits(run, refits, tmp_path_factory):
    options = CURVE | {"model.deltas": "[]", "model.refits": refits}
    return run("feature_curve", tmp_path_factory.mktemp("refits"), options)


@pytest.fixture(scope="module")
def half_b(changed, tmp_path_factory):
    """The evaluation examples of half B in a file of their own."""
    path = changed / "finetune" / "data" / "evaluation.jsonl"
    lines = path.read_text().splitlines()
    kept = [
        lines[n - 1] for n, e in read_jsonl(path).items() if half_of(Calculator().wording(e)) == "B"
    ]
    file = tmp_path_factory.mktemp("half") / "b.jsonl"
    file.write_text("".join(line + "\n" for line in kept))
    return file


def rows_of(path, **where) -> list[dict[str, str]]:
    return [row for row in read_metrics(path) if all(row[k] == str(v) for k, v in where.items())]


def test_the_curve_has_every_number_and_its_random_sets(curve):
    rows = rows_of(curve / "curve.csv", subset="tool")
    assert [(int(row["n"]), row["draw"]) for row in rows] == [
        (0, ""), (2, ""), (2, "0"), (2, "1"), (5, ""), (5, "0"), (5, "1"), (12, ""),
    ]  # fmt: skip
    features = json.loads((curve / "features.json").read_text())["d6_mlp_difference"]
    sets = {
        int(n): {(layer, f) for layer, of in by_layer.items() for f in of}
        for n, by_layer in features.items()
    }
    assert {n: len(chosen) for n, chosen in sets.items()} == {0: 0, 2: 2, 5: 5, 12: 12}
    assert sets[2] < sets[5] < sets[12]


def test_only_half_b_is_scored(curve, half_b):
    examples = read_jsonl(half_b).values()
    for subset in ("tool", "copy", "tool_ood"):
        n = sum(example.subset == subset for example in examples)
        assert 0 < n < 5
        assert {row["n_examples"] for row in rows_of(curve / "curve.csv", subset=subset)} == {
            str(n)
        }


def test_all_features_are_the_transplant_and_none_its_bias(curve, run, half_b, tmp_path):
    conditions = (
        "[transplant, {condition: bias, keep: 1, terms: [{source: delta, keep_features: []}]}]"
    )
    options = {"data.jsonl": half_b, "model.conditions": conditions, "data.batch_size": 4}
    run("transplant", tmp_path, options | {"model.max_new_tokens": 4})
    for n, condition in ((N_FEATURES, "transplant"), (0, "bias")):
        for subset in ("tool", "copy", "tool_ood"):
            (ours,) = rows_of(curve / "curve.csv", n=n, subset=subset)
            (theirs,) = rows_of(tmp_path / "metrics.csv", condition=condition, subset=subset)
            for name in ("mean_ce", "tool_call_rate", "exact_copy_rate"):
                expected = pytest.approx(float(theirs[name]), rel=2e-5, nan_ok=True)
                assert float(ours[name]) == expected
            assert float(ours["mean_kl"]) != pytest.approx(float(theirs["mean_kl"]), abs=1e-6)


def test_a_delta_put_on_base_mlps_in_the_base_model_is_its_transplant(
    curve, run, changed, tmp_path
):
    """Where the finetune is the base model itself, the two students are one, and KL at no delta is 0."""
    study = changed
    for layer in (0, 1):
        delta, config = load_delta(study / "mlp_difference" / f"layer_{layer}")
        delta.b_dec.zero_()
        fields = vars(config) | {"model_fingerprint": config.base_hash}
        save_delta(tmp_path / "delta" / f"layer_{layer}", delta, type(config)(**fields))
    tables = []
    for student in ("transplant", "base_mlp"):
        options = CURVE | {
            "model.model": study / "base_model",
            "data.model": study / "base_model",
            "model.deltas": f"[{tmp_path / 'delta'}]",
            "model.student": student,
        }
        tables.append(read_metrics(run("feature_curve", tmp_path / student, options) / "curve.csv"))
    for ours, theirs in zip(*tables, strict=True):
        for name in ("mean_ce", "mean_kl"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4, abs=1e-6)
        if ours["n"] == "0":
            assert float(ours["mean_kl"]) == pytest.approx(0, abs=1e-6)


def test_refits_are_one_curve(curve_of_refits):
    rows = rows_of(curve_of_refits / "curve.csv", subset="tool")
    assert [(int(row["n"]), row["draw"]) for row in rows] == [
        (0, ""), (2, ""), (2, "0"), (2, "1"), (5, ""), (5, "0"), (5, "1"), (8, ""),
    ]  # fmt: skip
    (n90,) = read_metrics(curve_of_refits / "n90.csv")
    assert (n90["delta"], n90["n90"], n90["n_features"]) == ("n8_end_to_end_transplant", ">8", "8")
    assert {n90[name] for name in ("cos", "unexplained", "norm_ratio")} == {"nan"}
    fidelity = read_metrics(curve_of_refits / "fidelity.csv")
    assert [(int(row["n"]), int(row["layer"])) for row in fidelity] == [
        (n, layer) for n in (0, 2, 5, 8) for layer in (0, 1)
    ]
    assert not (curve_of_refits / "features.json").exists()  # nothing was chosen


@pytest.mark.parametrize("n", [2, 5, 8])
def test_each_number_is_the_transplant_of_its_own_refit(
    curve_of_refits, refits, run, half_b, tmp_path, n
):
    options = {"model.deltas": f"[{refits / f'n{n}'}]", "data.jsonl": half_b}
    options |= {"model.generate": "false", "model.conditions": "[transplant]"}
    run("transplant", tmp_path, options | {"data.batch_size": 4})
    for subset in ("tool", "copy", "tool_ood"):
        (ours,) = rows_of(curve_of_refits / "curve.csv", n=n, draw="", subset=subset)
        (theirs,) = rows_of(tmp_path / "metrics.csv", condition="transplant", subset=subset)
        assert float(ours["mean_ce"]) == pytest.approx(float(theirs["mean_ce"]), rel=2e-5)


def test_fidelity_is_there_for_every_number_and_layer(curve):
    rows = read_metrics(curve / "fidelity.csv")
    assert [(row["n"], row["layer"]) for row in rows] == [
        (str(n), str(layer)) for n in (0, 2, 5, N_FEATURES) for layer in (0, 1)
    ]
    for row in rows:
        cos, unexplained, ratio = (float(row[k]) for k in ("cos", "unexplained", "norm_ratio"))
        along = cos * ratio if ratio else 0  # nothing is written, and has no direction
        assert unexplained == pytest.approx(1 - 2 * along + ratio**2, rel=1e-3)


def test_the_curve_is_printed_with_its_fidelity(curve, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["feature_curve", str(curve)])
    main()
    printed = capsys.readouterr().out
    assert "d6_mlp_difference  transplant  >12" in printed  # a random model calls nothing
    assert "cos by layer" in printed


def test_a_dictionary_s_delta_has_its_curve_too(run, changed, tmp_path):
    options = CURVE | {
        "model.deltas": f"[{changed / 'delta'}]",
        "model.student": "dictionary",
        "model.base_transcoders": changed / "base_transcoders",
        "model.grid": "[3]",
        "data.subsets": "[tool, copy]",
    }
    rows = rows_of(run("feature_curve", tmp_path, options) / "curve.csv", subset="tool")
    assert {row["student"] for row in rows} == {"dictionary"}
    assert len({row["mean_kl"] for row in rows}) == len(rows)


def test_removal_beside_its_controls(run, curve, tmp_path):
    options = {"model.n_draws": 3, "model.max_new_tokens": 4, "data.batch_size": 4}
    run("removal", tmp_path / "all", options)
    rows = rows_of(tmp_path / "all" / "metrics.csv", subset="tool")
    assert [row["condition"] for row in rows] == [
        "raw", "removed", "random_00", "random_01", "random_02",
        "permuted_00", "permuted_01", "permuted_02",
    ]  # fmt: skip
    assert len({row["mean_ce"] for row in rows}) == len(rows)
    l0 = {row["condition"]: row["l0_delta"] for row in rows}
    assert float(l0["removed"]) > 0
    kl = {row["condition"]: float(row["mean_kl"]) for row in rows}
    (row,) = rows_of(tmp_path / "all" / "removal.csv", subset="tool", measure="mean_kl")
    assert float(row["removed"]) == pytest.approx(kl["removed"], rel=1e-5)
    for kind in ("random", "permuted"):
        values = [kl[f"{kind}_0{i}"] for i in range(3)]
        assert float(row[f"{kind}_mean"]) == pytest.approx(sum(values) / 3, rel=1e-4)
        assert float(row[f"{kind}_min"]) == pytest.approx(min(values), rel=1e-4)
        assert float(row[f"{kind}_max"]) == pytest.approx(max(values), rel=1e-4)
        assert int(row[f"{kind}_as_far"]) == sum(value >= kl["removed"] for value in values)
        beyond = sum(values) / 3 - kl["removed"]
        assert float(row[f"beyond_{kind}"]) == pytest.approx(beyond, rel=1e-3)


def test_removing_all_features_of_a_curve_is_removing_the_delta(run, curve, tmp_path):
    options = {"model.n_draws": 1, "model.generate": "false", "data.batch_size": 4}
    chosen = {"model.features": curve / "features.json"}
    whole = rows_of(run("removal", tmp_path / "whole", options) / "metrics.csv")
    same = run("removal", tmp_path / "same", options | chosen | {"model.n": N_FEATURES})
    few = run("removal", tmp_path / "few", options | chosen | {"model.n": 2})
    names = ("condition", "subset", "mean_ce", "mean_kl")
    of_whole, of_same, of_few = (
        [tuple(row[name] for name in names) for row in rows]
        for rows in (whole, rows_of(same / "metrics.csv"), rows_of(few / "metrics.csv"))
    )
    assert of_same == of_whole
    assert of_few != of_whole


# Bad input, refused before the first forward pass


@pytest.fixture
def refused(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a forward pass")

    for name in ("teacher_forced", "generate", "applied", "logprobs"):
        monkeypatch.setattr(InterventionEngine, name, fail)

    def check(name, options, match):
        with pytest.raises(ValueError, match=match):
            run(name, tmp_path / "result", options)
        assert not (tmp_path / "result").exists()

    return check


RESIDUAL = "has the target 'residual': it also repairs what a dictionary gets wrong"


@pytest.mark.parametrize("name", ["transplant", "feature_curve"])
def test_a_transplant_of_a_residual_delta(refused, changed, name):
    refused(name, {"model.deltas": f"[{changed / 'delta'}]"}, RESIDUAL)


def test_a_transplant_into_another_model_than_the_base(refused, changed):
    merged = changed / "finetune" / "merged"
    options = {"model.model": merged, "data.model": merged}
    refused("transplant", options, "trained with another base model: hash .* the base model has")
    options = {"model.finetuned_model": changed / "base_model"}
    refused("transplant", options, "trained with another finetuned model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.grid": "[13]"}, "grid asks for 13 features, the delta d6_mlp_difference has 12"),
        ({"model.grid": "[2, 2]"}, "grid names a number twice"),
        ({"model.grid": "[]"}, "grid is empty"),
        ({"model.refits": "x"}, "give deltas whose features are to be chosen, or the folder of an"),
        ({"model.deltas": "[]"}, "deltas are \\[\\] and refits None: give deltas"),
        ({"model.student": "dictionary"}, "the student 'dictionary' needs them"),
        ({"model.correct": "{poems: tool_call}"}, "correct: there is no subset 'poems' among"),
        ({"model.side": "{copy: rhymes}"}, "side: the subset 'copy' has no measure 'rhymes', but"),
        ({"model.side": "{tool: exact_copy}"}, "the subset 'tool' has no measure 'exact_copy'"),
    ],
)
def test_curves_that_cannot_be_drawn(refused, options, message):
    refused("feature_curve", CURVE | options, message)


def test_a_number_that_no_refit_was_trained_with(refused, refits):
    options = {"model.deltas": "[]", "model.refits": refits, "model.grid": "[2, 3]"}
    refused(
        "feature_curve", CURVE | options, "grid asks for 3 features, .* was trained with 8, 5, 2"
    )


def test_no_refits(run, changed, tmp_path):
    options = {"model.deltas": "[]", "model.refits": changed / "mlp_difference"}
    with pytest.raises(FileNotFoundError, match="mlp_difference holds no n128, n64 or the like"):
        run("feature_curve", tmp_path / "result", CURVE | options)


def test_a_dictionary_student_of_a_delta_without_one(refused, changed):
    options = {"model.student": "dictionary"}
    options["model.base_transcoders"] = changed / "base_transcoders"
    refused("feature_curve", CURVE | options, "which no dictionary has a part in")


def test_features_that_a_curve_does_not_name(refused, curve):
    message = "give both, to take some features out, or neither"
    refused("removal", {"model.n": 2}, message)
    options = {"model.features": curve / "features.json", "model.n": 3}
    refused("removal", options, "holds features for 12, 5, 2, 0 of the delta d6_mlp_difference")
