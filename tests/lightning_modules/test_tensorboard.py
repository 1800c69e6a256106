"""What TensorBoard shows of a delta's training, of experiments and of a sweep, read from its own files."""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

import evaluate
import train
from delta_transcoders.console import StudyWarning
from delta_transcoders.dictionaries.delta import load_delta
from delta_transcoders.interventions.intervention import RAW, from_spec
from lightning_modules.curve_places import Place, places_of
from lightning_modules.intervention_evaluation import _texts
from lightning_modules.loggers import run_within

GENERATED = {"data.n_per_subset": 3, "model.max_new_tokens": 4}
FEW = {"data.n_per_subset": 3, "model.generate": "false"}


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(folder)
    return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"]}


def texts(folder: Path) -> dict[str, str]:
    events = read(folder)
    tags = [tag for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")]
    found = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags}
    return {tag.removesuffix("/text_summary"): text for tag, text in found.items()}


def charts(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The custom scalars: tags of each chart by category."""
    (event,) = read(folder).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    return {c.title: {h.title: list(h.multiline.tag) for h in c.chart} for c in layout.category}


def settings(folder: Path) -> dict[str, float | str]:
    """What a run says in HPARAMS; it may describe no experiment, whose columns would be those of all."""
    contents = read(folder).PluginTagToContent(metadata.PLUGIN_NAME)
    assert contents.keys() == {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


@pytest.fixture(scope="module")
def experiment(dictionaries, arguments, tmp_path_factory):
    """`experiment("exp2a", options)`: the folders of its results and of its logs."""
    folder = tmp_path_factory.mktemp("experiments")

    def run(name: str, options: dict) -> tuple[Path, Path]:
        given = {"model.output": folder / name, "trainer.logger.save_dir": folder / "logs"}
        evaluate.main(arguments(f"tiny/{name}.yaml", dictionaries, given | options))
        return folder / name, folder / "logs" / name

    return run


@pytest.fixture(scope="module")
def by_layer(experiment):
    return experiment("exp2a", GENERATED | {"model.layers": "[0, 1, all]"})


@pytest.fixture(scope="module")
def by_alpha(experiment):
    conditions = "[alpha_-0.5, alpha_0, alpha_1, alpha_1.5]"
    return experiment(
        "exp2b", GENERATED | {"model.layers": "[1, all]", "model.conditions": conditions}
    )


def shown(row: dict) -> list[str]:
    """The measures that are drawn of a row."""
    return [n for n, v in row.items() if (n.endswith("_rate") or n == "dce") and v is not None]


def test_conditions_are_curves_over_the_layers(by_layer):
    output, logs = by_layer
    steps = {"": (0, 1), "0": (0,), "1": (1,), "all": (0, 1)}
    expected = {"": defaultdict(dict), "all": defaultdict(dict)}
    for row in json.loads((output / "metrics.json").read_text()):
        for name in shown(row):
            tag = f"exp2a_{row['subset']}_by_layer/{row['condition']}/{name}"
            run = "all" if row["layer"] == "all" else ""
            expected[run][tag] |= dict.fromkeys(steps[row["layer"]], row[name])
    for run, of_run in expected.items():
        found = curves(logs / run)
        assert found.keys() == of_run.keys()
        for tag, points in of_run.items():
            assert [step for step, _ in found[tag]] == [0, 1]
            assert dict(found[tag]) == pytest.approx(points, rel=1e-6)
    folders = sorted(p.name for p in logs.iterdir() if p.is_dir())
    assert folders == ["all", "result"]


def test_a_layout_brings_conditions_together(by_layer):
    found = charts(by_layer[1])
    assert sorted(found) == [f"exp2a_{s}_by_layer" for s in ("copy", "tool", "tool_ood")]
    assert found["exp2a_tool_by_layer"]["dce"] == ["exp2a_tool_by_layer/.+/dce$"]


def test_alphas_are_steps_negative_ones_too(by_alpha):
    output, logs = by_alpha
    rows = json.loads((output / "metrics.json").read_text())
    assert curves(logs) == {}
    for subset in ("tool", "copy", "tool_ood"):
        expected = defaultdict(dict)
        for row in rows:
            if row["subset"] == subset and row["alpha"] is not None:
                layers = {"1": "layer_1", "all": "all_layers"}[row["layer"]]
                for name in shown(row):
                    tag = f"exp2b_{layers}_by_100_alpha/{name}"
                    expected[tag][round(100 * row["alpha"])] = row[name]
        found = curves(logs / subset)
        assert found.keys() == expected.keys()
        for tag, points in expected.items():
            assert [step for step, _ in found[tag]] == [-50, 0, 100, 150]
            assert dict(found[tag]) == pytest.approx(points, rel=1e-6)


@pytest.mark.parametrize(("name", "label"), [("by_layer", "full"), ("by_alpha", "alpha_1.00")])
def test_results_of_the_whole_model_are_hyperparameters_results(request, name, label):
    output, logs = request.getfixturevalue(name)
    assert settings(logs / "result") == {
        "experiment": output.name, "d_new": 6, "percentile": 0.5, "target": "residual"
    }  # fmt: skip
    rows = [
        row
        for row in json.loads((output / "metrics.json").read_text())
        if (row["layer"], row["condition"]) == ("all", label)
    ]
    expected = {"hp/l0": rows[0]["l0_delta"], "hp/dce_full": rows[0]["dce"]}
    for rate in ("tool_call_rate", "valid_tool_format_rate", "math_correct_rate"):
        expected[f"hp/{rate}_full"] = rows[0][rate]  # of tool
    expected["hp/exact_copy_rate_full"] = rows[1]["exact_copy_rate"]  # of copy
    found = {tag: value for tag, ((_, value),) in curves(logs / "result").items()}
    assert found == pytest.approx(expected, rel=1e-6)


def test_answers_are_code_side_by_side(by_layer):
    output, logs = by_layer
    text = texts(logs)["samples/side_by_side"]
    records = [json.loads(line) for line in (output / "generations.jsonl").open()]
    whole = [r for r in records if r["layer"] in ("", "all")]
    for record in whole:
        answer = record["text"].rstrip("\n").replace("\n", "⏎")
        assert f"    {record['condition']:16}  {answer}" in text
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    assert len(lines) == 9 * (1 + 5)  # prompts: themselves, raw and four conditions
    assert not any("tool_call>" in line for line in set(text.splitlines()) - set(lines))


def test_the_base_model_answers_beside_them_where_it_was_asked(dictionaries, arguments, tmp_path):
    options = {"model.output": tmp_path / "behaviour", "trainer.logger": "false"}
    evaluate.main(arguments("tiny/behaviour.yaml", dictionaries, GENERATED | options))
    options = {"model.output": tmp_path / "exp2a", "model.layers": "[all]"}
    options |= {"trainer.logger.save_dir": tmp_path / "logs"}
    evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, GENERATED | options))
    asked = [json.loads(line) for line in (tmp_path / "behaviour/generations.jsonl").open()]
    text = texts(tmp_path / "logs" / "exp2a")["samples/side_by_side"]
    for record in asked:
        if record["condition"] == "base_model" and record["subset"] != "tool_ood_numbers":
            answer = record["text"].rstrip("\n").replace("\n", "⏎")
            assert f"    base_model        {answer}" in text


@pytest.mark.parametrize(
    "content",
    [
        b'{"condition": "raw", "prompt": "a", "target": "b", "text"',
        b"[1, 2]\n",
        b"null\n",
        b'{"prompt": "a", "text": "b"}\n',
        b'{"condition": "raw", "prompt": "a", "target": [1], "text": "b"}\n',
        b"\xff\xfe\n",
    ],
    ids=["cut", "list", "null", "without", "other", "bytes"],
)
def test_a_damaged_file_beside_them_is_left_out(tmp_path, content):
    path = tmp_path / "generations.jsonl"
    path.write_bytes(content)
    with pytest.warns(StudyWarning, match=r"generations.jsonl is not one of `behaviour`'s"):
        assert _texts(path) == {}


def test_a_stage_ends_beside_another_programs_behaviour(dictionaries, arguments, tmp_path):
    beside = tmp_path / "behaviour" / "generations.jsonl"
    beside.parent.mkdir()
    for name, content in (("damaged", "{"), ("foreign", '{"id": 3, "completion": "a"}\n')):
        beside.write_text(content)
        options = {"model.output": tmp_path / name, "model.layers": "[all]"}
        options |= {"trainer.logger.save_dir": tmp_path / "logs" / name}
        with pytest.warns(StudyWarning, match="the base model's answers are not shown"):
            evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, GENERATED | options))
        assert (tmp_path / name / "metrics.csv").is_file()


def test_the_table_is_a_text(by_layer, by_alpha):
    for (output, logs), layers in ((by_layer, ("0", "1", "all")), (by_alpha, ("1", "all"))):
        found = texts(logs)
        assert {"results", "how_to_read", "samples/side_by_side"} == found.keys()
        rows = json.loads((output / "metrics.json").read_text())
        for row in rows:
            value = f"{row['tool_call_rate']:.{2 if row['tool_call_rate'] == 1 else 3}f}"
            assert f"| {row['condition']} | {row['layer']} | {value} [" in found["results"]
        assert {row["layer"] for row in rows} == {"", *layers}


def test_figures_have_the_names_of_their_files(by_layer):
    output, logs = by_layer
    names = {f"figures/{path.stem}" for path in (output / "plots").iterdir()}
    assert names == set(read(logs).Tags()["images"]) != set()


def test_a_second_run_leaves_no_old_points(experiment):
    first = FEW | {"model.layers": "[0, 1, all]", "model.conditions": "[no_delta, full]"}
    _, logs = experiment("exp1", first)
    assert (logs / "result").is_dir()
    (logs / "all" / "mine.txt").touch()
    (logs / "notes").mkdir()
    (logs / "notes" / "events.out.tfevents.1.mine").touch()
    experiment("exp1", first | {"model.layers": "[1]", "model.conditions": "[no_delta]"})
    assert not (logs / "result").exists()
    assert [path.name for path in (logs / "all").iterdir()] == ["mine.txt"]
    assert (logs / "notes" / "events.out.tfevents.1.mine").exists()
    assert len(list(logs.glob("events.*"))) == 1
    for points in curves(logs).values():
        assert [step for step, _ in points] == [1]


def test_a_delta_has_layouts_and_results(dictionaries):
    logs = dictionaries / "logs/delta"
    found = charts(logs)
    assert found["FVU by layer: base, full"] == {
        f"layer {n}": [f"fvu_base/layer_{n}$", f"fvu/layer_{n}$"] for n in (0, 1)
    }
    assert found["all layers"]["L0"] == ["l0/layer_"]
    assert settings(logs / "result") == {
        "d_new": 6, "percentile": 0.5, "target": "residual", "sparsity": "batch_topk",
        "l0_aim": 2, "lr": 5e-3, "seed": 0,
    }  # fmt: skip
    measured = [load_delta(dictionaries / "delta" / f"layer_{n}")[1].measured for n in (0, 1)]
    means = {
        "hp/fvu": sum(m["fvu_full"] for m in measured) / 2,
        "hp/l0": sum(m["l0_delta"] for m in measured) / 2,
    }
    points = {tag: value for tag, ((_, value),) in curves(logs / "result").items()}
    assert points == pytest.approx(means, rel=1e-6)


@pytest.fixture(scope="module")
def sweep(dictionaries, arguments, delta_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    classes = {
        name: f"lightning.pytorch.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger")
    }
    loggers = [
        {"class_path": path, "init_args": {"save_dir": str(folder), "name": name}}
        for name, path in classes.items()
    ]
    options = {"model.d_new": "[4, 6]", "model.output": folder / "sweep", "trainer.callbacks": "[]"}
    options |= {"trainer.logger": json.dumps(loggers)}
    cli = train.main(arguments("tiny/delta.yaml", dictionaries, delta_options | options))
    return folder, *(Path(logger.log_dir) for logger in cli.trainer.loggers)


def test_a_sweep_has_a_run_for_each_configuration(sweep):
    folder, _, logs = sweep
    for name, d_new in (("d4_p0.5", 4), ("d6_p0.5", 6)):
        of_run = curves(logs / name)
        assert {"fvu/layer_0", "fvu/layer_1", "train/loss/layer_0", "l0_base/layer_1"} <= set(
            of_run
        )
        assert settings(logs / f"{name}_result")["d_new"] == d_new
        best = [load_delta(folder / "sweep" / name / f"layer_{n}")[1].measured for n in (0, 1)]
        for n in (0, 1):
            lowest = min(value for _, value in of_run[f"fvu/layer_{n}"])
            assert lowest == pytest.approx(best[n]["fvu_full"], rel=0.01)
        result = dict(curves(logs / f"{name}_result"))
        mean = sum(m["fvu_full"] for m in best) / 2
        assert result["hp/fvu"] == [(0, pytest.approx(mean, rel=1e-6))]
    assert not any("layer" in tag for tag in curves(logs))
    assert "val/fvu" in curves(logs)


def test_other_loggers_have_the_run_in_the_name(sweep):
    header = (sweep[1] / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"d4_p0.5/fvu/layer_0", "d6_p0.5/train/loss/layer_1"} <= set(header)


def column(condition: str, layers: tuple[int, ...], label: str = "one"):
    intervention = from_spec(condition, layers) if layers else RAW
    dictionaries = SimpleNamespace(label=label) if layers else None
    return SimpleNamespace(
        intervention=intervention, dictionaries=dictionaries, layer=intervention.layer_label(4)
    )


def test_places_of_groups_and_of_several_sets():
    columns = [
        column("raw", ()),
        column("full", (2,)),
        column("full", (0, 3)),
        column("full", (0, 1, 2, 3)),
    ]
    group = "e_s_by_layer"
    assert places_of("e", columns, "s") == [
        [Place("", group, "raw", (0, 1, 2, 3))],
        [Place("", group, "full", (2,))],
        [Place("0+3", group, "full", (0, 3))],
        [Place("all", group, "full", (0, 1, 2, 3))],
    ]  # fmt: skip
    columns = [column("no_delta", (2,)), column("full", (0, 1), "other")]
    assert places_of("e", columns, "s") == [
        [Place("one", group, "no_delta", (2,))],
        [Place("other_0+1", group, "full", (0, 1))],
    ]


def test_places_of_other_sweeps_than_alpha():
    columns = [column("raw", ()), column("alpha_-0.5", (1, 2)), column("error_kept_0.25", (1, 2))]
    group = "e_layers_1+2_by_100_alpha"
    assert places_of("e", columns, "s") == [
        [],
        [Place("s", group, "", (-50,))],
        [Place("s_error_kept", group, "", (25,))],
    ]


@pytest.mark.parametrize(
    ("name", "folder"), [("a/b c", "a_b_c"), ("../up", "__up"), ("0+1", "0+1"), ("größe", "größe")]
)
def test_a_run_s_folder_is_below_the_logger_s(tmp_path, name, folder):
    with run_within(SimpleNamespace(log_dir=str(tmp_path)), name) as writer:
        writer.add_scalar("a", 1.0, 0)
    assert [path.name for path in tmp_path.iterdir()] == [folder]
