"""`check` on shipped studies, whole, with tiny random models and planted dictionaries in their place."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.random_dictionaries import fitted_dictionary
from delta_transcoders import files, smollm2
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.files.gemma_scope import save_base
from delta_transcoders.dictionaries.transcoder import Activation, Transcoder
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.language_models import load_model, load_tokenizer, pad, tokenize
from delta_transcoders.study.check.__main__ import main
from delta_transcoders.study.check.sites import token_rows
from delta_transcoders.tasks.calculator.task import Calculator
from interop import published_sets
from tests.delta_transcoders.families.conftest import CASES, make_model, make_tokenizer

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """An empty folder to work in as if it were the checkout."""
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    free = shutil.disk_usage(tmp_path)._replace(free=10**12)  # caches of real models are guessed
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    return tmp_path


def tiny_model(family: str, folder: str, n_layers: int) -> None:
    (case,) = (case for case in CASES if case.name == family)
    tokenizer = make_tokenizer(case)
    sizes = {"num_hidden_layers": n_layers, "max_position_embeddings": 256}
    make_model(case, tokenizer, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plant(
    model: str,
    site: str,
    layers: Sequence[int],
    write: Callable[[int, Transcoder], None],
    activation: Activation = "jumprelu",
) -> None:
    """Dictionaries that fit on ordinary text and on the calculator's prompts."""
    tokenizer = load_tokenizer(model)
    examples = Calculator().generate(40, 2, 1, seed=1)["train"]
    rows = [row.prompt_ids for row in tokenize(tokenizer, Calculator(), examples)]
    rows = [list(row) for row in rows] + token_rows(tokenizer, 256)
    ids = pad(rows, tokenizer.pad_token_id, "right")
    mask = pad([[1] * len(row) for row in rows], 0, "right")
    bridge = boot_bridge(load_model(model), tokenizer)
    found = capture(bridge, ids, mask, layers, HOOK_SITES[site]).activations
    for layer, (x_ND, y_ND) in found.items():
        write(layer, fitted_dictionary(x_ND, y_ND, 1024, 32, layer, activation))


def checked(capsys, *args: str) -> dict[str, str]:
    """Lines by what they begin with; all have ✓."""
    status = main([*args])
    shown = capsys.readouterr().out
    assert status == 0, shown
    return dict(re.findall(r"  ✓ ([^:\n]+): (.*)", shown))


CPU = ["--all.trainer.accelerator", "cpu"]
STAGES = ("finetune", "behaviour", "activations", "delta", "features", "exp2a", "exp2b", "report")


@pytest.mark.checks
def test_the_tiny_study(capsys):
    lines = checked(capsys, "configs/tiny/study.yaml")
    assert {"base_model", "base_activations", "base_transcoders", *STAGES} <= lines.keys()
    assert not Path("runs").exists()
    assert "s a batch" in lines["finetune"] and "memory" in lines["exp2a"]
    assert "GB of memory" in lines["this machine"]


@pytest.mark.checks
def test_smollm2(capsys):
    with files.new_output("models/SmolLM2-135M-Instruct", smollm2.OUTPUT_KIND) as folder:
        tiny_model("smollm2", str(folder), 30)
        files.write_json(folder / smollm2.SOURCE, {"source": smollm2.PACKAGE})
        files.finish_output("models/SmolLM2-135M-Instruct")
    lines = checked(capsys, "configs/smollm2/quick.yaml")
    assert set(STAGES) <= lines.keys() and "base_model" not in lines
    assert "with chat template; sha256 " in lines["model models/SmolLM2-135M-Instruct"]


@pytest.mark.checks
def test_gemma_2_2b(capsys):
    tiny_model("gemma2", "base", 26)
    plant("base", "gemma_scope", range(26), lambda layer, base: save_base("set", layer, base, 32))
    used = {
        "model.model": ["finetune"],
        "data.model": ["finetune"],
        "model.models.base_model": ["behaviour"],
        "data.base_model": ["delta"],
        "model.base_model": ["exp1", "exp2a", "exp2b"],
    }
    options = [(f"--{stage}.{key}", "base") for key, stages in used.items() for stage in stages]
    sets = {"model": ["exp1", "exp2a", "exp2b", "effects"], "data": ["delta"]}
    for part, stages in sets.items():
        options += [(f"--{stage}.{part}.base_transcoders", "set") for stage in stages]
    options += [("--delta.data.width", "1024"), ("--finetune.task.copy_source", "synthetic")]
    args = [word for option in options for word in option]
    lines = checked(capsys, "configs/gemma2_2b/study.yaml", *args, *CPU)
    assert set(STAGES) <= lines.keys()
    for layer in (0, 13, 25):
        assert re.search(
            r"FVU 0\.\d+, .* at gemma_scope .*name says 32", lines[f"set, layer {layer}"]
        )
    assert lines["dictionaries set"].startswith("layers 0-25, ")


@pytest.mark.slow
def test_a_public_model(capsys):
    tiny_model("qwen3", "base", 28)
    tensors = {}

    def keep(layer: int, base: Transcoder) -> None:
        tensors[layer] = {name: t.float().numpy() for name, t in base.state_dict().items()}

    plant("base", "after_gain", (7, 14, 21), keep, "relu")
    published_sets.circuit_tracer(
        Path("set"), tensors=tensors, model_name="Qwen/Qwen3-0.6B", dtype=torch.float32
    )
    options = ["--all.base.model", "base", "--all.base.transcoders", "set"]
    options += ["--finetune.task.copy_source", "synthetic"]
    lines = checked(capsys, "configs/qwen3_0.6b/study.yaml", *options, *CPU)
    assert set(STAGES) <= lines.keys()
    assert {"set, layer 7", "set, layer 14", "set, layer 21"} <= lines.keys()


@pytest.mark.slow
def test_what_is_wrong_is_found_before_the_stages(capsys):
    tiny_model("qwen3", "base", 28)
    weights = Path("base/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree("base", "set")
    options = ["--all.base.model", "base", "--all.base.transcoders", "set"]
    assert main(["configs/qwen3_0.6b/study.yaml", *options, "--until", "site"]) == 1
    shown = capsys.readouterr().out
    assert "✗ model base: base/model.safetensors has " in shown
    assert "✗ dictionaries set: set holds no dictionaries" in shown
    assert "✗ dataset allenai/c4: " in shown
