"""What a stranger adds takes one file: a measure, a source. (A task: tests/test_tasks.py.)"""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
from delta_transcoders.report.tables import read_metrics

MEASURE = """
from delta_transcoders.tasks.calculator.task import Calculator

class Counted(Calculator):
    def judge(self, text, example):
        return super().judge(text, example) | {"short": len(text) < 10 if "1" in text else None}
"""
SOURCE = """
import torch
from delta_transcoders.interventions.sources import LayerSources, Source

class Constant(Source):
    def __init__(self, d_model, value):
        super().__init__()
        self.register_buffer("row_D", torch.full((d_model,), value))

    def forward(self, x_ND, feature_mask_NF=None):
        return self.row_D.expand(len(x_ND), -1), None

class Constants(LayerSources):
    def __init__(self, value: float = 0.0):
        self.value = value

    def load(self, layers, site, d_model):
        return {layer: Constant(d_model, self.value) for layer in layers}
"""


def event_scalars(folder) -> dict[str, float]:
    found = {}
    for file in folder.rglob("events.out*"):
        events = EventAccumulator(str(file)).Reload()
        found |= {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    return found


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A module of a stranger's, which can be imported."""

    def write(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))

    return write


def test_a_new_measure_is_in_every_table_and_curve(copied_study, arguments, written):
    written("counted", MEASURE)
    options = {"data.task": "counted.Counted", "data.n_per_subset": 3, "model.max_new_tokens": 4}
    evaluate.main(arguments("tiny/behaviour.yaml", copied_study, options))
    rows = read_metrics(copied_study / "behaviour" / "metrics.csv")
    answers = (copied_study / "behaviour" / "generations.jsonl").read_text().splitlines()
    for row in rows:
        mine = [
            record
            for record in map(json.loads, answers)
            if (record["condition"], record["subset"]) == (row["condition"], row["subset"])
        ]
        judged = [record["short"] for record in mine if record["short"] is not None]
        assert int(row["short_n"]) == len(judged)
        assert all(
            record["short"] == (len(record["text"]) < 10)
            for record in mine
            if "1" in record["text"]
        )
        if judged:
            assert float(row["short_rate"]) == pytest.approx(sum(judged) / len(judged), abs=1e-5)
    curves = event_scalars(copied_study / "logs" / "behaviour")
    assert any(int(row["short_n"]) for row in rows) == any(
        tag.endswith("/short_rate") for tag in curves
    )


def test_a_new_source_takes_the_mlp_s_place(dictionaries, arguments, written, tmp_path):
    written("constants", SOURCE)
    condition = "{condition: gone, terms: [{source: constant}]}"
    options = {
        "model.controls": "{constant: {class_path: constants.Constants, init_args: {value: 0.0}}}",
        "model.conditions": f"[no_delta, {condition}, {{condition: nothing, keep: 0.0, terms: []}}]",
        "model.layers": "[0]",
        "model.output": tmp_path / "out",
        "model.generate": "false",
        "data.n_per_subset": 3,
        "trainer.logger": "false",
    }
    evaluate.main(arguments("tiny/exp2a.yaml", dictionaries, options))
    rows = read_metrics(tmp_path / "out" / "metrics.csv")
    ce = {(row["condition"], row["subset"]): row["mean_ce"] for row in rows}
    for subset in ("tool", "copy", "tool_ood"):
        assert ce["gone", subset] == ce["nothing", subset] != ce["no_delta", subset]
