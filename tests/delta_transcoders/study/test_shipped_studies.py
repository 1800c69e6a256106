"""The study files in `configs/`, and that a plan sees in a configuration what the stage itself does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from delta_transcoders.report.findings import figure_names, read_conditions
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.running import command_of
from delta_transcoders.study.stage_config import StageConfig
from delta_transcoders.study.study_file import SCRIPTS, read_study
from lightning_modules.cli import StudyCLI

ROOT = Path(__file__).parents[3]
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.glob("configs/*/*.yaml")
    if f"study.py --config {path.relative_to(ROOT)}" in path.read_text()
)
DEMO = {
    "base_model": [],
    "finetune": ["base_model"],
    "behaviour": ["base_model", "finetune"],
    "base_activations": ["base_model"],
    "base_transcoders": ["base_activations", "base_model"],
    "activations": ["finetune"],
    "delta": ["activations", "base_model", "base_transcoders", "finetune"],
    "features": ["activations", "delta", "finetune"],
    "exp1": ["base_model", "base_transcoders", "delta", "finetune"],
    "exp2a": ["base_model", "base_transcoders", "delta", "finetune"],
    "exp2b": ["base_model", "base_transcoders", "delta", "finetune"],
    "effects": ["base_transcoders", "delta", "finetune"],
    "feature_pages": ["effects", "features"],
    "comparisons": ["exp2a"],
    "report": [
        *("behaviour", "comparisons", "delta", "effects", "exp1", "exp2a", "exp2b", "features"),
    ],
}


class ParseOnly(StudyCLI):
    def instantiate_classes(self) -> None:
        pass


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def graph(file: str, **kwargs) -> Graph:
    return Graph(read_study(file, **kwargs))


@pytest.mark.parametrize("file", FILES)
def test_every_study_file_has_an_order(file):
    steps = graph(file).steps
    seen = set()
    for label, step in steps.items():
        assert {writer for writer in step.inputs.values() if writer} <= seen
        seen.add(label)
        # The comment at the head of a stage's file says which script runs it.
        if step.stage.run in SCRIPTS:
            assert f"{step.stage.run}.py --config" in Path(step.stage.config).read_text()


def test_what_the_tiny_study_s_stages_read():
    steps = graph("configs/tiny/study.yaml").steps
    found = {k: sorted(writer for writer in s.inputs.values() if writer) for k, s in steps.items()}
    assert found == DEMO
    assert list(found) == list(DEMO)


def test_what_the_controls_read():
    steps = graph("configs/tiny/study_controls.yaml").steps
    reads = {label: set(step.inputs.values()) for label, step in steps.items()}
    assert reads["base_model_on_examples"] == {"base_model", "finetune"}  # its examples
    assert "base_model_on_examples" in reads["base_model_delta"]
    assert {"corrections", "dense", "base_model_delta", "delta"} <= reads["controls"]
    assert {"mlp_difference", "delta"} <= reads["targets"]
    assert reads["visible_change"] == {"base_model", "base_transcoders", "finetune"}
    assert reads["report"] == {*DEMO["report"], "controls"}


@pytest.mark.parametrize("model", ["tiny", "gemma2_2b"])
def test_with_a_ranking_pages_and_report_show_it(model):
    steps = graph(f"configs/{model}/study_ranking.yaml").steps
    reads = {label: set(step.inputs.values()) for label, step in steps.items()}
    assert reads["features"] == {*DEMO["features"], "delta_reseeded"}
    assert reads["feature_pages"] == {"features", "effects", "ranking"}
    assert reads["report"] >= {"features", "effects", "ranking"}


def test_planted_finetunes_share_the_base():
    planted = graph("configs/tiny/study_planted.yaml")
    assert planted.steps["planted/none/finetune"].inputs == {"runs/tiny/base_model": "base_model"}
    assert "planted/none/base_model" not in planted.steps
    assert "planted/none/exp2b" not in planted.steps
    assert set(planted.steps["planted/none/report"].inputs.values()) == {
        f"planted/none/{name}" for name in ("behaviour", "comparisons", "delta", "exp1", "exp2a")
    }


def test_the_real_model_s_planted_finetunes_differ_in_what_is_adapted_alone():
    task = "configs/tasks/three_tools.yaml"
    own = graph("configs/smollm2/study_seed.yaml", folder="runs/smollm2_planted/own", task=task)
    planted = graph("configs/smollm2/study_planted.yaml")
    adapts = {
        "none": "model.lr",
        "attention": "model.target_modules",
        "mlps": "model.target_modules",
    }
    for name, option in adapts.items():
        stages = {k.split("/")[1]: v for k, v in planted.steps.items() if k.startswith(name)}
        own_values, values = own.steps["finetune"].config.values, stages["finetune"].config.values
        differ = {key for key in values | own_values if values.get(key) != own_values.get(key)}
        assert {key for key in differ if name not in str(values[key])} == {option}
        learned = {"activations", "mlp_difference"} if name == "mlps" else set()
        assert set(stages) == {"finetune", "behaviour", "exp2a"} | learned
        deltas = stages["exp2a"].config.values["model.deltas"]
        assert deltas == (["runs/smollm2_planted/mlps/mlp_difference"] if name == "mlps" else [])
    base = {label for label in planted.steps if label.startswith("base/")}
    assert base == {"base/base_model", "base/replies"}


def test_the_planted_rules_are_another_task_on_the_same_base():
    study = graph("configs/tiny/study_rules.yaml")
    tasks = {label: list(step.stage.more_configs) for label, step in study.steps.items()}
    for label, files in tasks.items():
        assert files == (["configs/tasks/rules.yaml"] if label.startswith("rules/") else []), label
    reads = {label: set(step.inputs.values()) for label, step in study.steps.items()}
    assert reads["rules/finetune"] == {"base_model"}
    assert "rules/delta" in reads["rules/deletion_local"]
    assert reads["rules/deletion_kl"] == {"base_model", "rules/delta_kl", "rules/finetune"}
    assert reads["rules/deletion_components"] == {"base_model", "rules/finetune"}
    assert "rules/weight_refit" in reads["rules/deletion_refit"]


def test_findings_read_all_of_every_seed():
    findings = graph("configs/tiny/study_findings.yaml", seeds=[4, 7])
    inner = {label for label in findings.steps if label[0] in "47"}
    assert {label.split("/", 1)[1] for label in inner if label[0] == "4"} == {
        label.split("/", 1)[1] for label in inner if label[0] == "7"
    }
    assert findings.needed("findings") == inner | {"findings"}
    assert findings.study.stages["7/delta_reseeded"].seed == 1007
    assert "runs/seeds/7/planted/none" in findings.study.files


def test_every_figure_of_the_findings_is_of_a_table_that_a_stage_writes():
    findings = graph("configs/tiny/study_findings.yaml", seeds=[4])
    written = {path for step in findings.steps.values() for path in step.config.outputs}
    docs = ROOT / "docs"
    for name in figure_names(docs, read_conditions(docs)):
        folder = name.split()[0].removesuffix(".csv")
        folder = folder if folder == name.split()[0] else folder.rpartition("/")[0]
        assert f"runs/seeds/4/{folder}" in written, name


def test_what_the_feature_curves_read():
    steps = graph("configs/tiny/study_features.yaml").steps
    reads = {label: set(step.inputs.values()) for label, step in steps.items()}
    models = {"base_model", "finetune"}
    for family in ("kl", "kl_nmse", "kl_nmse_small"):
        assert reads[f"feature_curve_{family}"] == models | {f"delta_{family}"}
        assert reads[f"delta_{family}"] == models
    assert reads["feature_curve"] == models | {"mlp_difference"}
    assert reads["removal_kl_nmse"] == {"finetune", "delta_kl_nmse"}
    assert reads["transplant_kl_nmse"] == models | {"delta_kl_nmse"}
    assert reads["weight_baselines"] == models | {"weight_refit"}
    assert reads["overlap"] == {"feature_curve_kl_nmse", "delta_kl_nmse", "delta_kl_nmse_seed_2"}
    assert steps["delta_kl_nmse_seed_2"].stage.seed == 1000


@pytest.mark.parametrize(
    "file",
    [
        "configs/tiny/study_controls.yaml",
        "configs/tiny/study_faults.yaml",
        "configs/tiny/study_features.yaml",
        "configs/gemma2_2b/study_controls.yaml",
        "configs/llama3.2_1b/study.yaml",
        "configs/gemma3_1b/study.yaml",
    ],
)
def test_a_plan_sees_the_options_that_the_stage_gets(file):
    given = {"all": {"trainer.callbacks+": "callbacks.peak_memory.PeakMemory"}}
    for stage in read_study(file, folder="runs/mine", seed=5, options=given).stages.values():
        if stage.run not in SCRIPTS:
            continue
        _, _, *args = command_of(stage)
        parsed = json.loads(json.dumps(ParseOnly(args).config.as_dict(), default=str))
        config = StageConfig(stage, {})
        assert config.outputs
        for name, value in config.values.items():
            if name != "trainer.callbacks":
                assert value == looked_up(parsed, name), (stage.label, name)
        callbacks = [c.get("init_args", {}) for c in parsed["trainer"]["callbacks"]]
        outputs = {c["output"] for c in callbacks if "output" in c}
        outputs |= {parsed["model"]["init_args"].get("output")} - {None}
        assert set(config.outputs) == outputs
        assert len(callbacks) == len(config.values["trainer.callbacks"])


def looked_up(parsed, name):
    for part in name.split("."):
        if part not in parsed:
            parsed = parsed["init_args"]
        parsed = parsed[part]
    if isinstance(parsed, dict) and set(parsed) == {"class_path", "init_args"}:
        return parsed["class_path"]  # written as a name alone
    return parsed


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--config", "configs/tiny/study.yaml", "--dry-run"],
        ["--config", "configs/qwen3_0.6b/study.yaml", "--dry-run"],
        ["--confg", "x"],
    ],
)
def test_help_plans_and_refusals_import_nothing_slow(args):
    check = (
        f"import sys, study\ntry: study.main({args})\nexcept (SystemExit, ValueError): pass\n"
        "slow = {'torch', 'lightning', 'transformers', 'jsonargparse', 'pandas', 'peft'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"
