"""A model of one's own through the whole study: whole, as an adapter, with dictionaries and without."""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import evaluate
import train
from delta_transcoders.export import export
from delta_transcoders.language_models import load_model, load_tokenizer, tokenize
from delta_transcoders.own_study import expand
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.study.__main__ import main
from delta_transcoders.tasks.paragraphs import Paragraphs

pytestmark = pytest.mark.slow

FAST = {
    "split": {"n_evaluation": 6},
    "delta": {
        "model.d_new": [6],
        "model.l0": 2,
        "model.warmup_steps": 2,
        "data.batch_tokens": 128,
        "data.passes": 2,
        "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 4,
    },
    "behaviour": {"model.max_new_tokens": 8},
    "exp2a": {"model.max_new_tokens": 8},
    "exp2b": {"model.max_new_tokens": 8},
    "all": {"trainer.accelerator": "cpu"},
}


def run(content: dict, monkeypatch, leave_out: Collection[str] = ()) -> dict:
    """Run the stages of a study file, as `study.py` does; the study."""
    Path("mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    study = expand(content, Path("mine.yaml"), Path("mine"), 0)
    for path, text in study["files"].items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    for name, stage in study["stages"].items():
        if name in leave_out:
            continue
        if stage["run"] in ("train", "evaluate"):
            quiet = ["--trainer.enable_progress_bar=false"]
            main = {"train": train, "evaluate": evaluate}[stage["run"]].main
            main([f"--config={stage['config']}", *quiet])
        else:
            monkeypatch.setattr(sys, "argv", [stage["run"], *stage["arguments"]])
            importlib.import_module(stage["run"]).main()
        assert all(Path(path).exists() for path in stage.get("writes", ()))
    return study


def test_an_adapter_without_dictionaries(own_content, study, monkeypatch):
    adapter = str(study / "finetune" / "adapter")
    expanded = run(own_content | FAST | {"finetuned_model": adapter}, monkeypatch)
    assert list(expanded["stages"])[:2] == ["model", "split"]

    # Merged here as where it was trained, bit for bit.
    ours, theirs = (load_model(str(m)) for m in ("mine/finetuned_model", study / "finetune/merged"))
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name

    configs = [json.loads(p.read_text()) for p in Path("mine/delta").glob("layer_*/config.json")]
    assert {config["target"] for config in configs} == {"mlp_difference"}
    exp2a = read_metrics("mine/exp2a/metrics.csv")
    assert {row["layer"] for row in exp2a} == {"", "0", "1", "all"}
    assert max(int(row["n_examples"]) for row in exp2a) == 6

    # Spillover, against the plain models on the same text.
    base = load_model(own_content["base_model"])
    tokenizer = load_tokenizer(own_content["base_model"])
    nlls, kls, n = {"raw": 0.0, "base_model": 0.0}, 0.0, 0
    for row in tokenize(tokenizer, Paragraphs(), Paragraphs().read("general.txt").values()):
        target_ids = row.target_ids[:-1]  # EOS is no part of a text
        ids = torch.tensor([[*row.prompt_ids, *target_ids]])
        with torch.no_grad():
            logprobs = {
                name: model(ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
                for name, model in (("raw", ours), ("base_model", base))
            }
        labels = torch.tensor(target_ids)[:, None]
        for name, found in logprobs.items():
            nlls[name] -= found.gather(1, labels).sum().item()
        p = logprobs["base_model"]
        kls += (p.exp() * (p - logprobs["raw"])).sum().item()
        n += len(labels)
    table = {row["condition"]: row for row in read_metrics("mine/spillover/metrics.csv")}
    assert list(table) == ["base_model", "raw", "no_delta", "full"]
    assert table["raw"]["n_tokens"] == str(n)
    for name, nll in nlls.items():
        assert float(table[name]["mean_ce"]) == pytest.approx(nll / n, rel=1e-5)
    assert float(table["raw"]["mean_kl"]) == pytest.approx(kls / n, rel=1e-4, abs=1e-7)
    dce = (nlls["raw"] - nlls["base_model"]) / n
    assert float(table["raw"]["dce"]) == pytest.approx(dce, rel=1e-3, abs=1e-6)
    assert float(table["base_model"]["mean_kl"]) == float(table["base_model"]["dce"]) == 0

    page = Path("mine/report/index.html").read_text()
    assert "Spillover: general text" in page and "MLPs put back into" in page
    assert "What deltas were trained on" in page and "exact_match_rate" in page

    out = export("mine", "deltas", "out")
    card = (out / "README.md").read_text()
    assert "`finetuned_model`, brought to this study" in card
    for part in ("merged", "adapter", "base_model"):
        with pytest.raises(
            ValueError, match=f"{part} is a part that a study trains itself: mine was"
        ):
            export("mine", part, "part")
    assert "intervals are over wordings, then their examples: copy 6 examples of 6 wordings" in page


def test_dictionaries_and_some_layers(own_content, dictionaries, monkeypatch):
    for part in ("base_model", "base_transcoders"):
        shutil.copytree(dictionaries / part, part)
    shutil.copytree(dictionaries / "finetune" / "merged", "finetuned")
    content = own_content | FAST | {"base_model": "base_model", "finetuned_model": "finetuned"}
    content |= {"dictionaries": "base_transcoders", "layers": [1], "ranking": {}}
    content |= {"corrections": {"model.towards": "tool", "model.away": "copy"}}
    content["delta"] = content["delta"] | {"data.n_check_examples": 8}
    study = run(content, monkeypatch)
    assert "ranking" in study["stages"]
    assert [path.name for path in Path("mine/delta").glob("layer_*")] == ["layer_1"]
    exp2a = read_metrics("mine/exp2a/metrics.csv")
    assert {row["layer"] for row in exp2a} == {"", "1"}
    assert {"base_mlp", "dictionary_error"} <= {row["condition"] for row in exp2a}
    controls = read_metrics("mine/controls/metrics.csv")
    assert {"steering", "ridge", "full"} <= {row["condition"] for row in controls}
    page = Path("mine/report/index.html").read_text()
    spillover = [row["condition"] for row in read_metrics("mine/spillover/metrics.csv")]
    assert spillover[2:] == ["no_delta", "full", "base_mlp", "dictionary_error"]
    assert "which may also repair the dictionaries" in page
    assert "split into finetuning and the dictionary" in page
    out = export("mine", "saelens", "out")
    assert json.loads((out / "export.json").read_text())["model"] == "finetuned"


def test_a_llama_and_what_was_made_of_it(own_content, tokenizer, monkeypatch):
    """Random weights; the "finetune" has another MLP in its upper layer alone."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 400}
    config = LlamaConfig(**shape, num_attention_heads=4, max_position_embeddings=256)
    model = LlamaForCausalLM(config)
    for name in ("base", "finetuned"):
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.mul_(-3)
    content = own_content | FAST | {"base_model": "base", "finetuned_model": "finetuned"}
    study = run(content, monkeypatch, leave_out=["exp1", "exp2b"])
    assert "left out, their MLPs are the base model's: layers 0" in study["notes"]
    table = {row["condition"]: row for row in read_metrics("mine/spillover/metrics.csv")}
    assert float(table["raw"]["mean_kl"]) > 1e-4
    # All that the finetune changed is put back: after the last layer no position reads another.
    assert float(table["no_delta"]["mean_kl"]) == pytest.approx(0, abs=1e-7)
    assert float(table["no_delta"]["dce"]) == pytest.approx(0, abs=1e-6)
    assert Path("mine/report/index.html").is_file()


def test_through_study_py(own_content, tmp_path, pytestconfig, monkeypatch, capfd):
    """Its own commands in their own processes, with a judge that stands beside the study file."""
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "loud_judge.py").write_text(
        "from delta_transcoders.tasks.examples import Examples\n\n"
        "class Loud(Examples):\n"
        "    def __init__(self, jsonl: str):\n"
        "        super().__init__(jsonl, 'exact')\n"
        "    def judge(self, text, example):\n"
        "        return {'loud': text.isupper()}\n"
    )

    def planned(change: dict, *args: str) -> dict[str, str]:
        """Run a study file; the stages of its plan, with why."""
        path = tmp_path / "files" / "mine.yaml"
        path.write_text(yaml.safe_dump(own_content | FAST | change))
        capfd.readouterr()
        main(["--config", str(path), *args])
        lines = capfd.readouterr().out.split("stages are to run\n\n")[-1].split("\n\n")[0]
        rows = [re.split(r"  +", line.strip()) for line in lines.splitlines()]
        stages = [row for row in rows if len(row) >= 4 and row[0] not in ("stage", "together")]
        return {row[0]: row[-1] for row in stages}

    judge = {"judge": {"class_path": "loud_judge.Loud"}}
    everything = planned(judge, "--dry-run")
    assert not Path("mine").exists()
    assert set(everything.values()) == {"never run"} and len(everything) == 12
    assert list(planned(judge, "--until", "delta")) == ["split", "activations", "delta"]
    assert Path("mine/delta/layer_1/config.json").is_file()
    assert planned(judge, "--until", "delta") == {}

    faster = FAST["delta"] | {"model.lr": 0.25}
    assert planned(judge | {"delta": faster}, "--until", "exp2a", "--dry-run") == {
        "delta": "model.lr 0.005 → 0.25",
        "exp2a": "never run",
    }
