"""How stages are made small, and how much more the real ones are."""

from dataclasses import replace
from pathlib import Path

import pytest

from delta_transcoders.study.check.small import small
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.stage_config import StageConfig
from delta_transcoders.study.study_file import SCRIPTS, read_study

ROOT = Path(__file__).parents[4]
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.glob("configs/*/*.yaml")
    if f"study.py --config {path.relative_to(ROOT)}" in path.read_text()
)


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def smalls(file: str) -> dict:
    graph = Graph(read_study(file))
    return {label: small(graph.steps[label], graph) for label in graph.steps}


@pytest.mark.parametrize("file", FILES)
def test_every_shipped_stage_takes_the_options(file):
    graph = Graph(read_study(file))
    for step in graph.steps.values():
        if step.stage.run in SCRIPTS:
            made = small(step, graph)
            options = {**step.stage.options, **made.options}
            values = StageConfig(replace(step.stage, options=options), graph.study.texts).values
            assert {name: values[name] for name in made.options} == made.options, step.stage.label
            assert made.factor >= 1


def test_the_tiny_study():
    found = smalls("configs/tiny/study.yaml")
    finetune = found["finetune"]
    assert finetune.kind == "training"
    assert (finetune.batches, finetune.validations, finetune.held_out) == (400, 4, 256 / 32)
    assert finetune.options == {
        "data.n_train": 256,  # four steps of 64
        "data.n_validation": 32,
        "data.n_evaluation": 24,
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 4,
        "trainer.check_val_every_n_epoch": None,
    }
    assert found["base_model"].options["data.n_documents"] == 600
    # 6,000 and 256 texts are the defaults of the finetune's data.
    assert found["activations"].factor == (6000 + 256) / (64 + 32)
    assert found["base_activations"].factor == 8300 / 96
    assert found["exp2a"].options == {"model.max_new_tokens": 16, "data.n_per_subset": 5}
    assert found["exp2a"].factor == 300 / 5
    assert found["effects"].factor == 50 / 8  # half of the wordings choose
    delta = found["delta"]
    assert (delta.kind, delta.tokens_per_batch, delta.buffer_tokens) == ("from_cache", 1024, 65536)
    assert delta.validations == pytest.approx(10)


def test_batches_that_accumulate():
    finetune = smalls("configs/gemma2_2b/study.yaml")["finetune"]
    assert finetune.batches == 5 * 9000 / 2
    assert finetune.options["trainer.max_steps"] == 2
    assert finetune.options["trainer.val_check_interval"] == 2 * 8
    assert finetune.validations == 5
    assert finetune.options["data.n_train"] == 64


def test_phases_and_draws():
    found = smalls("configs/tiny/study_features.yaml")
    assert found["delta_kl"].options["trainer.max_steps"] == 3 * 7  # all features and six budgets
    assert (found["delta_kl"].batches, found["delta_kl"].held_out) == (2100, 256 / 32)
    assert found["removal"].options["model.n_draws"] == 2
    assert found["removal"].factor == (300 / 8) * (21 / 3)
    rules = smalls("configs/tiny/study_rules.yaml")["rules/deletion_kl"]
    assert rules.options["model.n_random"] == 4
    # Its own file has 150 texts of each of two subsets.
    assert found["spillover_transplant"].factor == 150 / 5
