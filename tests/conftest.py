"""A tiny random Gemma 2 with its tokenizer, on disk; nothing here touches the network."""

import itertools
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tiny_gemma import build_tiny_gemma, train_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """A Hugging Face folder: random weights (seed 0), d_model 32, 3 layers, context 128."""
    folder = tmp_path_factory.mktemp("tiny_gemma")
    texts = [f"{a}\n{b}" for a, b in itertools.islice(base_documents(0), 500)]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_tiny_gemma(tokenizer, d_model=32, n_layers=3, d_mlp=64, context=128)
        for parameter in model.parameters():  # the default scale leaves logits almost flat
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(model_folder):
    return load_tokenizer(model_folder)


@pytest.fixture
def model(model_folder):
    return load_model(model_folder)


@pytest.fixture(scope="session")
def arguments(pytestconfig):
    """A quiet command line on the CPU: `arguments("tiny/lora.yaml", study, {"model.lr": 1e-3})`."""

    def make(config: str, study, options: dict | None = None) -> list[str]:
        quiet = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
        path = pytestconfig.rootpath / "configs" / config
        given = {"config": path, "study": study} | quiet | (options or {})
        return [f"--{key}={value}" for key, value in given.items()]

    return make


@pytest.fixture(scope="session")
def study(tmp_path_factory, arguments):
    """A study folder after two steps of the tiny base model and four of the finetune; read only."""
    import train

    folder = tmp_path_factory.mktemp("study")
    trainer = {"trainer.val_check_interval": 2, "trainer.log_every_n_steps": 1}
    shape = {"model.d_model": 32, "model.n_layers": 2, "model.d_mlp": 64, "data.vocab_size": 400}
    base_data = {"data.n_documents": 48, "data.n_validation": 8}
    calls = {"data.n_train": 64, "data.n_validation": 15, "data.n_evaluation": 5}
    for config, options in (
        ("base_model", shape | base_data | {"trainer.max_steps": 2}),
        ("lora", calls | {"data.batch_size": 8, "trainer.max_steps": 4, "model.lora_dropout": 0.1}),
    ):
        train.main(arguments(f"tiny/{config}.yaml", folder, trainer | options))
    return folder


@pytest.fixture
def own_content(study, tmp_path, monkeypatch) -> dict:
    """What the study file of a working directory says, with 60 prompts of three subsets and a text."""
    monkeypatch.chdir(tmp_path)
    splits = Calculator().generate(60, 3, 15, seed=11)
    rows = [e for part in splits.values() for e in part if e.subset != "tool_ood_numbers"]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(
            json.dumps({"prompt": e.prompt, "target": e.target, "subset": e.subset}) + "\n"
            for e in rows
        )
    )
    documents = (f"{a} {b}" for a, b in itertools.islice(base_documents(5), 40))
    (tmp_path / "general.txt").write_text("\n\n".join(documents))
    return {
        "study": "mine",
        "base_model": str(study / "base_model"),
        "finetuned_model": str(study / "finetune" / "merged"),
        "examples": "prompts.jsonl",
        "judge": "exact",
        "layers": "all",
        "text": "general.txt",
    }


@pytest.fixture(scope="session")
def files_in():
    def read(folder: Path) -> dict[str, bytes]:
        """What a study holds, logs aside."""
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).parts[0] != "logs"
        }

    return read


@pytest.fixture
def copied_study(study, tmp_path):
    return shutil.copytree(study, tmp_path / "study")


@pytest.fixture(scope="session")
def delta_options():
    """Options of `configs/tiny/delta.yaml` for a training of seconds."""
    return {
        "data.batch_tokens": 128,
        "data.passes": 4,
        "data.n_check_examples": 8,
        "model.d_new": "[6]",
        "model.l0": 2,
        "model.warmup_steps": 2,
        "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 4,
    }


@pytest.fixture(scope="session")
def dictionaries(study, arguments, delta_options, tmp_path_factory):
    """A copy of the study with caches, base dictionaries and deltas; read only."""
    import evaluate
    import train

    folder = shutil.copytree(study, tmp_path_factory.mktemp("dictionaries") / "study")
    for name in ("base_model", "finetune/merged"):
        model = load_model(str(folder / name))
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.data *= 5  # undone by the norm after it: the site matters
        model.save_pretrained(folder / name)
    base = {
        "data.batch_tokens": 128,
        "data.passes": 60,
        "model.width": 128,
        "model.l0": "[16]",
        "trainer.log_every_n_steps": 10,
    }
    texts = {"data.n_train": 48, "data.n_validation": 16}
    evaluate.main(arguments("tiny/base_activations.yaml", folder, texts))
    train.main(arguments("tiny/base_transcoder.yaml", folder, base))
    evaluate.main(arguments("tiny/activations.yaml", folder))
    train.main(arguments("tiny/delta.yaml", folder, delta_options))
    return folder


@pytest.fixture(scope="session")
def one_and_two_processes(tmp_path_factory, pytestconfig, study, arguments):
    """Two studies, each one step of the finetune and the behaviour: by one process, and by two.

    A step of one process accumulates the two batches that the two processes share out.
    """
    import subprocess
    import sys

    import evaluate
    import train
    from delta_transcoders.tasks.calculator.grammar import OPEN

    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    both = tmp_path_factory.mktemp("processes")
    # With a louder `<` the random model opens some of its answers with the call's first token.
    tokenizer = load_tokenizer(str(study / "base_model"))
    model = load_model(str(study / "base_model"))
    call_token = tokenizer(OPEN, add_special_tokens=False).input_ids[0]
    model.model.embed_tokens.weight.data[call_token] *= 8
    for name in ("one", "two"):
        model.save_pretrained(both / name / "base_model")
        tokenizer.save_pretrained(both / name / "base_model")

    finetune = {
        "data.n_train": 60,
        "data.n_validation": 33,
        "data.n_evaluation": 7,
        "data.batch_size": 8,
        "model.lr": 1e-3,
        "trainer.max_steps": 1,
        "trainer.log_every_n_steps": 1,
    }
    accumulate = {"trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 2}
    ddp = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    behaviour = {"data.batch_size": 5, "model.max_new_tokens": 12}
    train.main(arguments("tiny/lora.yaml", both / "one", finetune | accumulate))
    evaluate.main(arguments("tiny/behaviour.yaml", both / "one", behaviour))

    share_out = finetune | ddp | {"trainer.val_check_interval": 1}
    stages = [
        ("train", arguments("tiny/lora.yaml", both / "two", share_out)),
        ("evaluate", arguments("tiny/behaviour.yaml", both / "two", behaviour | ddp)),
    ]
    script = both / "two_stages.py"  # Lightning starts it again for the second process
    script.write_text("".join(f"import {name}\n{name}.main({args})\n" for name, args in stages))
    subprocess.run(
        [sys.executable, str(script)],
        cwd=both,
        env=os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return both / "one", both / "two"


@pytest.fixture(scope="session")
def inspectable_study(tmp_path_factory, pytestconfig, model_folder) -> Path:
    """A study folder of random parts, with its record; read only. The middle layer of three has no delta."""
    from delta_transcoders.dictionaries.delta import DeltaConfig, save_delta
    from delta_transcoders.dictionaries.files.gemma_scope import params_path, save_base
    from delta_transcoders.dictionaries.transcoder import Transcoder
    from delta_transcoders.families.sites import GEMMA_SCOPE
    from delta_transcoders.fingerprints import hash_tensors, model_fingerprint
    from delta_transcoders.study.plan import Graph, outputs_of, recorded
    from delta_transcoders.study.records import Record
    from delta_transcoders.study.study_file import read_study

    folder = tmp_path_factory.mktemp("inspectable") / "study"
    merged, task = folder / "finetune" / "merged", Calculator()
    shutil.copytree(model_folder, merged)
    task.write(folder / "finetune/data/evaluation.jsonl", task.generate(9, 3, 6, 0)["evaluation"])
    generator = torch.Generator().manual_seed(0)
    model = load_model(model_folder)
    fingerprint = model_fingerprint(model)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.save_pretrained(folder / "base_model")
    load_tokenizer(model_folder).save_pretrained(folder / "base_model")

    def random_dictionary(n_features: int, size: float) -> Transcoder:
        W_enc_FD, W_dec_FD = torch.randn(2, n_features, 32, generator=generator)
        threshold = torch.full((n_features,), 0.3)
        tensors = {"b_enc": torch.zeros(n_features), "b_dec": torch.zeros(32)}
        return Transcoder(
            W_enc=W_enc_FD.T.contiguous() / 6, W_dec=size * W_dec_FD, threshold=threshold, **tensors
        )

    for layer in range(3):
        base = random_dictionary(40, 0.3)
        save_base(folder / "base_transcoders", layer, base, 8)
        hook_in, hook_out = GEMMA_SCOPE.names(layer)
        config = DeltaConfig(
            layer=layer,
            d_in=32,
            d_out=32,
            d_new=6,
            base_id=f"{folder}/base_transcoders/{params_path(layer, 40, 8)}",
            base_hash=hash_tensors(base.state_dict()),
            model_fingerprint=fingerprint,
            hook_site="gemma_scope",
            hook_in=hook_in,
            hook_out=hook_out,
            sparsity={"mode": "batch_topk", "l0": 2},
            target="residual",
            percentile=0.5,
            average_l0_base=8,
            seed=0,
            measured={},
        )
        if layer != 1:
            save_delta(folder / "delta" / f"layer_{layer}", random_dictionary(6, 0.6), config)

    file = str(pytestconfig.rootpath / "configs/tiny/study.yaml")
    short = {"exp2a": {"model.max_new_tokens": 16}}
    graph = Graph(read_study(file, folder=str(folder), options=short))
    record = Record(str(folder), file)
    for name in ("base_model", "finetune", "base_transcoders", "delta", "exp2a"):
        step = graph.steps[name]
        record.start(name, {"run": name, "command": "", "began": 0.0, **recorded(step)})
        record.finish(name, {"outputs": outputs_of(step), "seconds": 0.0, "megabytes": 0.0})
    return folder


@pytest.fixture(scope="session")
def inspector(inspectable_study):
    """The study above, opened."""
    from delta_transcoders.inspector.session import Session

    return Session(str(inspectable_study))
