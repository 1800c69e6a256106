"""The causal ranking of features, on a delta of which one feature is known to make the call likely."""

import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch

import evaluate
import train
from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.delta import load_delta, save_delta
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.report.ranking import PLACE, across, halves, main, read_effects
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.wordings import half_of

D_NEW, PLANTED, SILENT = 6, 3, 5
LAYER = 1
"""Where the planted feature is."""


def call_direction(folder) -> torch.Tensor:
    """What raises the logits of all that makes a call above the others', of norm 1."""
    embedding_VD = load_model(str(folder)).model.embed_tokens.weight.data
    tokens = load_tokenizer(str(folder))(Calculator.opening, add_special_tokens=False).input_ids
    direction_D = embedding_VD[tokens].mean(0) - embedding_VD.mean(0)
    return direction_D / direction_D.norm()


def planted_delta(like: Transcoder, direction_D: torch.Tensor | None) -> Transcoder:
    """Small random features, one of them silent, and one (where there is a direction) always active."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in like.state_dict().items()
    }
    tensors["threshold"] = torch.zeros(D_NEW)
    tensors["b_enc"][SILENT] = -100
    if direction_D is not None:
        tensors["W_enc"][:, PLANTED] = 0
        tensors["b_enc"][PLANTED] = 2
        tensors["W_dec"][PLANTED] = 3 * direction_D
    return Transcoder(**tensors)


@pytest.fixture(scope="module")
def planted(dictionaries, tmp_path_factory):
    """A folder of deltas like the study's, with the planted tensors."""
    folder = tmp_path_factory.mktemp("planted")
    direction_D = call_direction(dictionaries / "finetune" / "merged")
    for layer in (0, 1):
        delta, config = load_delta(dictionaries / "delta" / f"layer_{layer}")
        direction = direction_D if layer == LAYER else None
        save_delta(folder / f"layer_{layer}", planted_delta(delta, direction), config)
    return folder


@pytest.fixture(scope="module")
def rank(dictionaries, arguments):
    def run(delta, output, **options):
        given = {"model.delta": delta, "model.output": output, "model.layers": "[0, 1]"}
        given |= {"data.batch_size": 4} | {k.replace("__", "."): v for k, v in options.items()}
        evaluate.main(arguments("tiny/ranking.yaml", dictionaries, given))
        return output

    return run


@pytest.fixture(scope="module")
def ranking(planted, rank, tmp_path_factory):
    options = {"model__generate": "true", "model__max_new_tokens": 4}
    return rank(planted, tmp_path_factory.mktemp("ranking"), **options)


def rows_of(folder, **where) -> list[dict[str, str]]:
    rows = read_metrics(folder / "ranking.csv")
    return [row for row in rows if all(row[k] == str(v) for k, v in where.items())]


@pytest.mark.slow
def test_two_processes_rank_as_one(
    ranking, planted, dictionaries, arguments, tmp_path, pytestconfig
):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    options = {"model.delta": planted, "model.output": tmp_path / "two", "model.layers": "[0, 1]"}
    options |= {"data.batch_size": 4, "model.generate": "true", "model.max_new_tokens": 4}
    options |= {"trainer.devices": 2, "trainer.strategy": "ddp"}
    script = tmp_path / "two.py"  # Lightning starts it again for the second process
    args = arguments("tiny/ranking.yaml", dictionaries, options)
    script.write_text(f"import evaluate\nevaluate.main({args})\n")
    environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, check=True, timeout=300
    )
    for name in ("metrics.csv", "ranking.csv"):
        ours, theirs = (read_metrics(folder / name) for folder in (tmp_path / "two", ranking))
        assert len(ours) == len(theirs)
        for row, twin in zip(ours, theirs, strict=True):
            assert row.keys() == twin.keys()
            for column, text in twin.items():
                if column == "rank":  # of effects that are the same but for rounding
                    continue
                try:
                    expected = pytest.approx(float(text), rel=1e-4, abs=1e-5, nan_ok=True)
                except ValueError:
                    assert row[column] == text
                else:
                    assert float(row[column]) == expected, column


def test_the_planted_feature_comes_first_dropped_and_kept(ranking):
    for subset in ("tool", "copy"):
        for ablation, sign in (("dropped", -1), ("kept", 1)):
            rows = rows_of(ranking, layer=LAYER, ablation=ablation, subset=subset)
            assert sorted(int(row["rank"]) for row in rows) == list(range(1, D_NEW + 1))
            (first,) = (row for row in rows if row["rank"] == "1")
            assert int(first["feature"]) == PLANTED
            low, high = (float(first[f"d_call_logprob_ci_{end}"]) for end in ("low", "high"))
            assert sign * low > 0.5
            assert sign * high > 0.5
            assert first["d_call_logprob_distinct"] == "true"
            assert float(first["mean_activation"]) == 2
            assert float(first["density"]) == 1
            others = [abs(float(r["d_call_logprob"])) for r in rows if r is not first]
            assert max(others) < 0.2 * abs(float(first["d_call_logprob"]))


def test_a_silent_feature_changes_nothing_exactly(ranking):
    rows = rows_of(ranking, feature=SILENT)
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        for measure in ("d_call_logprob", "dce", "d_tool_call_rate"):
            value, low, high = (float(row[measure + end]) for end in ("", "_ci_low", "_ci_high"))
            assert value == 0
            if measure.endswith(
                "_rate"
            ):  # that no answer changed is no certainty: Newcombe's interval
                assert low == -high < 0
            else:
                assert low == high == 0
            assert row[f"{measure}_distinct"] == "false"
        assert float(row["density"]) == float(row["mean_activation"]) == 0
    for (layer, *_), effects_FE in read_effects(ranking).items():
        assert (effects_FE[SILENT] == 0).all()
        assert layer != LAYER or (effects_FE[PLANTED] != 0).all()


def test_scores_are_differences_of_the_conditions(ranking):
    conditions = {
        (row["condition"], row["subset"]): row for row in read_metrics(ranking / "metrics.csv")
    }
    assert len(conditions) == (1 + 1 + 2 * (2 + 2 * D_NEW)) * 2
    for row in rows_of(ranking):
        layer, ablation, feature, subset = (
            row[k] for k in ("layer", "ablation", "feature", "subset")
        )
        ablated = conditions[f"layer_{layer}_{ablation}_{feature}", subset]
        name = "full" if ablation == "dropped" else f"layer_{layer}_no_features"
        reference = conditions[name, subset]
        for measure, of in (("d_call_logprob", "call_logprob"), ("dce", "mean_ce")):
            difference = float(ablated[of]) - float(reference[of])
            assert float(row[measure]) == pytest.approx(difference, abs=1e-4)
        assert ablated["layer"] == "all"
        assert int(row["n_examples"]) == 5


def test_the_planted_feature_has_the_largest_attributions(ranking):
    """By every measure, among the features of all layers; a silent one has none."""
    rows = rows_of(ranking, ablation="dropped", subset="tool")
    for name in ("ig_target", "ig_prefix", "ig_kl"):
        largest = max(rows, key=lambda row: abs(float(row[name])))
        assert (int(largest["layer"]), int(largest["feature"])) == (LAYER, PLANTED)
        assert largest[f"rank_{name}"] == "1"
        assert all(float(row[name]) == 0 for row in rows if int(row["feature"]) == SILENT)


def test_every_measure_ranks_the_features(ranking):
    for layer in (0, 1):
        rows = rows_of(ranking, layer=layer, ablation="kept", subset="tool")
        for name in ("dce", "d_tool_call_rate", "ig_target"):
            rows.sort(key=lambda row, name=name: int(row[f"rank_{name}"]))
            sizes = [abs(float(row[name])) for row in rows]
            assert sizes == sorted(sizes, reverse=True)
    # What a measure does not apply to has no rank.
    assert {row["rank_d_exact_copy_rate"] for row in rows} == {""}


def test_only_the_first_by_attribution_are_ablated(ranking, planted, rank, tmp_path):
    """On the wordings of half B; what is attributed is of half A, as without `first`."""
    folder = rank(planted, tmp_path, model__first="2", model__layers="null")
    few = rows_of(folder)
    means = {}
    for row in rows_of(ranking, ablation="dropped"):
        place = int(row["layer"]), int(row["feature"])
        means[place] = means.get(place, 0.0) + abs(float(row["ig_target"]))
    expected = sorted(means, key=lambda place: -means[place])[:2]
    assert {(int(row["layer"]), int(row["feature"])) for row in few} == set(expected)
    assert len(few) == 2 * 2 * 2
    changes, all_changes = read_effects(folder), read_effects(ranking)
    lines = (ranking / "generations.jsonl").read_text().splitlines()
    raw = [r for r in map(json.loads, lines) if r["condition"] == "raw"]
    for row in few:
        where = {name: row[name] for name in ("layer", "feature", "ablation", "subset")}
        (twin,) = rows_of(ranking, **where)
        for name in ("ig_target", "ig_prefix"):
            assert float(row[name]) == pytest.approx(float(twin[name]), rel=1e-4, abs=1e-5)
        in_b = [half_of(r["wording"]) == "B" for r in raw if r["subset"] == row["subset"]]
        assert int(row["n_examples"]) == sum(in_b) < len(in_b)
        place = int(row["layer"]), row["ablation"], row["subset"]
        ours = [int(r["feature"]) for r in few if all(r[k] == row[k] for k in PLACE)]
        found = changes[place][sorted(ours).index(int(row["feature"]))]
        expected = all_changes[place][int(row["feature"])][in_b]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_one_feature_kept_among_silent_ones_is_full_and_dropped_is_none(
    dictionaries, planted, rank, tmp_path
):
    for layer in (0, 1):
        delta, config = load_delta(planted / f"layer_{layer}")
        tensors = delta.state_dict()
        tensors["b_enc"] = torch.full((D_NEW,), -100.0)
        tensors["b_enc"][PLANTED] = 2
        save_delta(tmp_path / "delta" / f"layer_{layer}", Transcoder(**tensors), config)
    effects = read_effects(rank(tmp_path / "delta", tmp_path / "ranking", data__subsets="[tool]"))
    for layer in (0, 1):
        dropped, kept = (effects[layer, ablation, "tool"] for ablation in ("dropped", "kept"))
        assert kept[PLANTED] == pytest.approx(-dropped[PLANTED], abs=1e-5)
        for others in (dropped, kept):
            assert others.any(1).tolist() == [k == PLANTED for k in range(D_NEW)]


def test_without_generated_texts_there_are_no_rates(planted, rank, tmp_path):
    folder = rank(planted, tmp_path, model__layers="[1]", data__subsets="[tool]")
    first = min(rows_of(folder, ablation="dropped"), key=lambda row: int(row["rank"]))
    assert int(first["feature"]) == PLANTED
    assert "d_tool_call_rate" not in first
    assert not (folder / "generations.jsonl").exists()


def test_a_task_without_an_opening_is_ranked_by_cross_entropy(
    planted, rank, ranking, tmp_path, monkeypatch
):
    """The same examples: the same cross-entropies, but no log-probability."""
    monkeypatch.setattr(Calculator, "opening", None)
    options = {"model__layers": f"[{LAYER}]", "data__subsets": "[tool]"}
    with pytest.warns(StudyWarning, match="Calculator: no `opening`"):
        folder = rank(planted, tmp_path, **options)
    rows = rows_of(folder)
    watched = rows_of(ranking, layer=LAYER, subset="tool")
    expected = [float(row["dce"]) for row in watched]
    assert [float(row["dce"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    assert not [name for name in rows[0] if "logprob" in name or name == "ig_prefix"]
    assert [float(row["ig_target"]) for row in rows] == pytest.approx(
        [float(row["ig_target"]) for row in watched], rel=1e-4, abs=1e-5
    )
    for ablation in ("dropped", "kept"):
        members = [row for row in rows if row["ablation"] == ablation]
        members.sort(key=lambda row: int(row["rank"]))
        sizes = [abs(float(row["dce"])) for row in members]
        assert sizes == sorted(sizes, reverse=True)


def test_the_report_prints_the_lists_and_writes_their_stability(ranking, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ranking", str(ranking), str(ranking), "--top", "1"])
    main()
    printed = capsys.readouterr().out
    assert sum(line.startswith(("tool ", "copy ")) for line in printed.splitlines()) == 2 * 2 * 2
    rows = read_metrics(ranking / "stability.csv")
    assert len(rows) == 2 * 8
    for row in rows[:8]:
        assert row["comparison"] == "halves"
        low, mean, high = (float(row[f"spearman{end}"]) for end in ("_low", "", "_high"))
        assert -1 <= low <= mean <= high <= 1
    for row in rows[8:]:
        assert row["comparison"] == str(ranking)
        assert float(row["spearman"]) == pytest.approx(1)
        assert float(row["cosine"]) == pytest.approx(1)
        assert float(row["cosine_random"]) < 0.6


def test_features_in_another_order_are_found_again(ranking, planted, tmp_path, monkeypatch):
    """The other ranking's deltas lie on the hub."""
    order = [4, 0, 5, 1, 3, 2]
    other = tmp_path / "other"
    for layer in (0, 1):
        delta, config = load_delta(planted / f"layer_{layer}")
        tensors = delta.state_dict()
        for name in ("b_enc", "W_dec", "threshold"):
            tensors[name] = tensors[name][order]
        tensors["W_enc"] = tensors["W_enc"][:, order]
        save_delta(other / "delta" / f"layer_{layer}", Transcoder(**tensors), config)
    lines = [json.loads(line) for line in (ranking / "effects.jsonl").read_text().splitlines()]
    for line in lines:
        line["feature"] = order.index(line["feature"])
    (other / "effects.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (other / "ranking.json").write_text(json.dumps({"delta": "user/reseeded"}))
    hub = {"user/reseeded": str(other / "delta")}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: hub[name]
    )
    for row in across(ranking, other):
        assert row["cosine"] == pytest.approx(1, abs=1e-6)
        assert row["spearman"] == pytest.approx(1)
    assert all(row["n_features"] == 5 for row in halves(ranking) if row["layer"] == LAYER)


def test_a_ranking_names_the_tensors_of_its_delta(ranking, planted):
    info = json.loads((ranking / "ranking.json").read_text())
    assert info["delta_fingerprints"] == {
        str(layer): load_delta(planted / f"layer_{layer}")[0].fingerprint() for layer in (0, 1)
    }


def test_deltas_of_different_models_are_not_matched(ranking, planted, tmp_path):
    other = shutil.copytree(ranking, tmp_path / "other")
    shutil.copytree(planted, other / "delta")
    for path in (other / "delta").glob("layer_*/config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"model_fingerprint": "0" * 64}))
    (other / "ranking.json").write_text(json.dumps({"delta": str(other / "delta")}))
    with pytest.raises(ValueError, match="are deltas of different models"):
        across(ranking, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__layers": "[]"}, "layers is empty"),
        ({"model__layers": "[1, 1]"}, "'layer_1_no_delta' is asked for twice"),
        ({"model__layers": "[7]"}, "there is no layer 7"),
        ({"model__first": "13"}, r"first is 13, but layers \[0, 1\] have 12 features together"),
    ],
)
def test_bad_options_are_named(planted, rank, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        rank(planted, tmp_path / "result", **options)
    assert not (tmp_path / "result").exists()


def test_a_finetune_of_one_known_direction_is_what_the_ranking_finds_first(
    dictionaries, arguments, delta_options, tmp_path
):
    """From the finetune to the list: one MLP writes a little more of the call's direction."""
    study = shutil.copytree(dictionaries, tmp_path / "study")
    model = load_model(str(study / "base_model"))
    direction_D = call_direction(study / "base_model")
    weight_DM = model.model.layers[LAYER].mlp.down_proj.weight.data
    reads_M = torch.randn(weight_DM.shape[1], generator=torch.Generator().manual_seed(0))
    weight_DM += 0.5 * weight_DM.norm() * direction_D[:, None] * (reads_M / reads_M.norm())
    model.save_pretrained(study / "finetune" / "merged")

    evaluate.main(arguments("tiny/activations.yaml", study))
    options = {k: v for k, v in delta_options.items() if k != "data.n_check_examples"}
    options |= {"model.d_new": "[4]", "data.layers": f"[{LAYER}]", "data.passes": 40}
    train.main(arguments("tiny/mlp_difference.yaml", study, options))
    given = {"model.delta": study / "mlp_difference", "model.base_model": study / "base_model"}
    given |= {"model.layers": f"[{LAYER}]", "data.batch_size": 4}
    evaluate.main(arguments("tiny/ranking.yaml", study, given))

    delta, _ = load_delta(study / "mlp_difference" / f"layer_{LAYER}")
    # Directions drawn at random have a cosine of about .18 with it.
    cosine_F = torch.cosine_similarity(delta.W_dec, direction_D[None], dim=1).abs()
    for subset in ("tool", "copy"):
        effects = []
        for ablation in ("dropped", "kept"):
            rows = rows_of(study / "ranking", ablation=ablation, subset=subset)
            (first,) = (row for row in rows if row["rank"] == "1")
            assert cosine_F[int(first["feature"])] > 0.9
            assert first["d_call_logprob_distinct"] == "true"
            effects.append(float(first["d_call_logprob"]))
        # The MLP writes along the direction or against it, by what it reads: a token's worth of both.
        assert min(map(abs, effects)) > 0.1
        assert effects[0] * effects[1] < 0
