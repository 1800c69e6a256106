"""End-to-end deltas: what a run writes, what it is identical to, and what it refuses."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import train
from callbacks.rng_state import RngState
from datamodules.end_to_end_data import EndToEndData
from delta_transcoders.dictionaries.delta import load_delta, load_deltas, save_delta
from delta_transcoders.dictionaries.files.exported import load_export
from delta_transcoders.export import export
from delta_transcoders.interventions.loading import load_delta_set, load_mlps
from delta_transcoders.language_models import load_model, load_tokenizer, supervised_logits
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tiny_gemma import train_tokenizer
from lightning_modules.end_to_end_delta import EndToEndDelta

QUICK = {
    "data.batch_size": 8,
    "data.n_train": 32,
    "data.n_validation": 8,
    "model.d_new": 4,
    "model.budgets": "[5, 2]",
    "model.attribution_examples": 6,
    "model.attribution_steps": 2,
    "trainer.max_steps": 12,
    "trainer.val_check_interval": 2,
    "trainer.log_every_n_steps": 2,
}


@pytest.fixture(scope="module")
def trained(study, arguments, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("end_to_end") / "deltas"
    options = QUICK | {"model.output": output, "trainer.default_root_dir": output.parent / "logs"}
    train.main(arguments("tiny/delta_end_to_end.yaml", study, options))
    return output


@pytest.fixture
def make(study, tmp_path):
    """A module and its data; options of the module."""

    def build(**options):
        merged, data = str(study / "finetune/merged"), study / "finetune/data"
        given = {"base_model": str(study / "base_model"), "output": str(tmp_path / "out")}
        given |= {"d_new": 4, "attribution_examples": 6, "attribution_steps": 2}
        files = {"train": str(data / "train.jsonl"), "validation": str(data / "validation.jsonl")}
        return (
            EndToEndDelta(model=merged, **(given | options)),
            EndToEndData(merged, Calculator(), **files, n_train=32, n_validation=8, batch_size=8),
        )

    return build


@pytest.fixture
def fit(tmp_path):
    def run(module, data, max_steps: int, ckpt_path=None, callbacks=(), **options):
        lightning.seed_everything(0, verbose=False)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=max_steps,
            logger=False,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            check_val_every_n_epoch=None,
            enable_checkpointing=bool(callbacks),
            **({"val_check_interval": 2} | options),
        )
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


def weights_of(folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    return {layer: delta.state_dict() for layer, (_, delta, _) in load_deltas(folder).items()}


# What is written


def test_every_budget_is_written_with_the_features_that_are_left(trained):
    assert sorted(p.name for p in trained.glob("n*")) == ["n2", "n5", "n8"]
    for n in (8, 5, 2):
        deltas = load_deltas(trained / f"n{n}")
        assert list(deltas) == [0, 1]
        live = sum(
            bool((d.W_enc != 0).any(0)[f])
            for _, d, _ in deltas.values()
            for f in range(d.n_features)
        )
        assert live == n
        for _, delta, config in deltas.values():
            assert config.target == "end_to_end_transplant"
            assert config.sparsity == {"mode": "budget", "n_features": n, "nmse_weight": 1.0}
            assert not delta.b_dec.any()
            assert not delta.threshold.any()
            kl = [config.measured[f"kl_{subset}"] for subset in ("tool", "copy")]
            assert config.measured["worst_kl"] == max(kl)
            assert {"nmse", "l0_delta", "dead_fraction"} < config.measured.keys()


def test_a_written_set_is_loaded_as_any_other(trained, study):
    model = load_model(str(study / "finetune/merged"))
    mlps = lambda site: load_mlps(str(study / "base_model"), "float32", site)  # noqa: E731
    loaded = load_delta_set(trained / "n5", None, model, mlps)
    assert (loaded.label, loaded.d_new) == ("n5_end_to_end_transplant", 5)
    assert type(loaded.sources["base"][0]).__name__ == "MLPSource"


def test_it_is_exported_as_any_other(trained, study, tmp_path):
    export(study, "deltas", tmp_path / "deltas", deltas=trained / "n5")
    assert weights_of(tmp_path / "deltas").keys() == {0, 1}
    out = export(study, "saelens", tmp_path / "saelens", deltas=trained / "n5", delta_only=True)
    card = (out / "README.md").read_text()
    assert "5 features over all layers" in card
    with pytest.raises(ValueError, match="--delta-only"):
        export(study, "saelens", tmp_path / "joined", deltas=trained / "n5")


# What it is identical to


def test_all_features_and_no_nmse_are_plain_kl(make, fit, study):
    module, data = make(lr=1e-2, warmup_steps=0, decay_fraction=0.0)
    fit(module, data, max_steps=4, val_check_interval=4)
    written = weights_of(Path(module.hparams.output) / "n8")

    module, data = make()
    fit(module, data, max_steps=1, val_check_interval=1, limit_train_batches=1)
    student = module.student
    for layer, first in module.start.deltas.items():
        module.transcoders[layer].load_state_dict(first.state_dict())
    optimizer = torch.optim.Adam(module.deltas.parameters(), lr=1e-2, betas=(0.9, 0.99))
    teacher = load_model(str(study / "finetune/merged"))
    data._position = 0
    for batch in data.train_dataloader():
        ids = [batch[name] for name in ("input_ids", "attention_mask", "labels")]
        with torch.no_grad():
            p_NV = supervised_logits(teacher, *ids)[0].log_softmax(-1)
        with student.applied(len(ids[0])):
            q_NV = supervised_logits(student.engine.model, *ids)[0].log_softmax(-1)
        optimizer.zero_grad()
        (p_NV.exp() * (p_NV - q_NV)).sum(-1).mean().backward()
        optimizer.step()
    for layer, delta in module.transcoders.items():
        for name, tensor in written[layer].items():
            torch.testing.assert_close(getattr(delta, name).detach(), tensor, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(make, fit, tmp_path):
    """Stopped in the second of three phases, after its first features are gone."""
    options = {"budgets": [5, 2], "nmse_weight": 1.0}
    module, data = make(**options, output=str(tmp_path / "whole"))
    fit(module, data, max_steps=12, callbacks=[RngState()])

    keep = ModelCheckpoint(dirpath=tmp_path / "kept", every_n_train_steps=6, save_top_k=-1)
    module, data = make(**options, output=str(tmp_path / "first"))
    fit(module, data, max_steps=12, callbacks=[RngState(), keep])
    (path,) = (tmp_path / "kept").glob("*step=6.ckpt")
    module, data = make(**options, output=str(tmp_path / "resumed"))
    fit(module, data, max_steps=12, ckpt_path=path, callbacks=[RngState()])
    for n in (8, 5, 2):
        whole, resumed = (weights_of(tmp_path / f / f"n{n}") for f in ("whole", "resumed"))
        for layer, tensors in whole.items():
            for name, tensor in tensors.items():
                assert torch.equal(resumed[layer][name], tensor), (n, layer, name)

    checkpoint = torch.load(path, weights_only=True)
    assert all(name.startswith("deltas.") for name in checkpoint["state_dict"])
    module, data = make(**options | {"budgets": [4, 2]}, output=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"phases of \[8, 4, 2\] features, .* \[8, 5, 2\]"):
        fit(module, data, max_steps=12, ckpt_path=path, callbacks=[RngState()])
    module, data = make(**options | {"d_new": 5}, output=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"phases of \[10, 5, 2\] features, .* \[8, 5, 2\]"):
        fit(module, data, max_steps=12, ckpt_path=path, callbacks=[RngState()])
    module, data = make(**options, output=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="phases of 8 steps, the checkpoint's have 4: give 12, or"):
        fit(module, data, max_steps=24, ckpt_path=path, callbacks=[RngState()])
    torch.save(checkpoint | {"hyper_parameters": {"student": "dictionary"}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"student is transplant, .* trained with dictionary"):
        fit(module, data, max_steps=12, ckpt_path=tmp_path / "x.ckpt", callbacks=[RngState()])


def test_a_training_that_ends_in_an_earlier_phase_says_so(make, fit, tmp_path):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 5

    module, data = make(budgets=[5, 2])
    problem = "ended while there were 5 features, before those of 2, and so nothing is written"
    with pytest.raises(ValueError, match=problem):
        fit(module, data, max_steps=12, callbacks=[Stop()])
    assert not (tmp_path / "out").exists()


def test_without_training_a_warm_start_is_written_as_it_was(dictionaries, arguments, tmp_path):
    options = QUICK | {
        "model.student": "dictionary",
        "model.warm_start": dictionaries / "delta",
        "model.base_transcoders": dictionaries / "base_transcoders",
        "model.bridging": "true",
        "model.lr": 0,
        "model.output": tmp_path / "deltas",
        "trainer.default_root_dir": tmp_path,
    }
    train.main(arguments("tiny/delta_end_to_end.yaml", dictionaries, options))
    local = load_deltas(dictionaries / "delta")
    for layer, (_, delta, config) in load_deltas(tmp_path / "deltas" / "n12").items():
        assert torch.equal(delta.W_dec, local[layer][1].W_dec)
        assert torch.equal(delta.threshold, local[layer][1].threshold)
        assert config.target == "end_to_end_dictionary"
        assert config.base_hash == local[layer][2].base_hash
        assert config.percentile == 0.5
    # Joined with the dictionaries that they correct, as residual deltas are.
    few = tmp_path / "deltas" / "n5"
    out = export(dictionaries, "gemma_scope", tmp_path / "joined", deltas=few)
    card, joined = load_export(out)
    model = load_model(str(dictionaries / "finetune/merged"))
    sources = load_delta_set(few, str(dictionaries / "base_transcoders"), model).sources
    x_ND = torch.randn(30, joined[0].d_in)
    for layer, whole in joined.items():
        ours_ND = sum(sources[name][layer](x_ND, None)[0] for name in ("base", "delta"))
        torch.testing.assert_close(whole(x_ND), ours_ND, rtol=1e-4, atol=1e-4)
        first, end = card.layers[layer].delta_features
        assert end - first == sources["delta"][layer].n_features


@pytest.mark.slow
def test_two_processes_choose_the_same_features_as_one(
    dictionaries, arguments, tmp_path, pytestconfig
):
    """Each attributes half of the examples; at a rate of zero nothing else can differ."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    common = QUICK | {
        "model.student": "dictionary",
        "model.warm_start": dictionaries / "delta",
        "model.base_transcoders": dictionaries / "base_transcoders",
        "model.lr": 0,
        "trainer.max_steps": 6,
    }
    for name, more in (("one", {}), ("two", {"trainer.devices": 2, "trainer.strategy": "ddp"})):
        options = common | more | {"model.output": tmp_path / name}
        options |= {"trainer.default_root_dir": tmp_path / f"{name}_logs"}
        args = arguments("tiny/delta_end_to_end.yaml", dictionaries, options)
        if not more:
            train.main(args)
            continue
        script = tmp_path / "two.py"  # Lightning starts it again for the second process
        script.write_text(f"import train\ntrain.main({args})\n")
        subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=300,
        )
    for n in (12, 5, 2):
        one, two = (load_deltas(tmp_path / name / f"n{n}") for name in ("one", "two"))
        for layer, (_, delta, config) in one.items():
            assert torch.equal(delta.W_enc, two[layer][1].W_enc)
            for name, value in config.measured.items():
                assert two[layer][2].measured[name] == pytest.approx(value, rel=1e-4), name


# What it refuses


@pytest.fixture
def refused(arguments, tmp_path):
    """`refused(study, options, message)`, of a training from the command line."""

    def check(study, options, message):
        output = {"model.output": tmp_path / "out", "trainer.default_root_dir": tmp_path / "logs"}
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train.main(arguments("tiny/delta_end_to_end.yaml", study, QUICK | output | options))
        assert not (tmp_path / "out").exists()

    return check


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.nmse_weight": -1}, "nmse_weight is -1, expected >=0"),
        ({"model.budgets": "[2, 5]"}, r"budgets are \[2, 5\], expected descending"),
        ({"model.budgets": "[9]"}, r"budgets begin with 9 features, there are 8 \(2 layers of 4\)"),
        ({"model.warm_start": "absent/folder/here"}, "there is no local delta to start from"),
        ({"model.student": "dictionary"}, "student: dictionary needs base_transcoders"),
        ({"model.bridging": "true"}, "bridging needs student: dictionary"),
        ({"trainer.max_steps": 13}, "has 13 steps, and there are 3 phases .*max_steps of 3, or a"),
        ({"trainer.max_steps": 0}, "has 0 steps, and there are 3 phases"),
        ({"trainer.val_check_interval": 3}, "val_check_interval is 3: a phase has 4 steps"),
        ({"trainer.accumulate_grad_batches": 2}, "phases count batches, so give a larger"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(refused, study, options, message):
    refused(study, options, message)


def test_a_folder_without_a_local_delta(refused, study, tmp_path):
    (tmp_path / "empty").mkdir()
    message = r"no local delta to start from: .*empty holds no layer_L folders.* Train one \(delta"
    refused(study, {"model.warm_start": tmp_path / "empty"}, message)


def test_a_transplant_of_residual_deltas(refused, dictionaries):
    message = "has the target 'residual': it also repairs what a dictionary gets wrong"
    refused(dictionaries, {"model.warm_start": dictionaries / "delta"}, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "base_hash",
            "was trained with another base model: hash xxxxxxxxxxxx…, the base model has",
        ),
        ("model_fingerprint", "was trained on another model: hash xxxxxxxxxxxx…, this model has"),
    ],
)
def test_a_transplant_of_deltas_of_other_models(refused, study, trained, tmp_path, name, message):
    for path in (trained / "n8").iterdir():
        delta, config = load_delta(path)
        save_delta(tmp_path / "n8" / path.name, delta, replace(config, **{name: "x" * 64}))
    refused(study, {"model.warm_start": tmp_path / "n8"}, message)


def test_more_features_than_the_delta_to_start_from_has(refused, study, trained):
    options = {"model.warm_start": trained / "n5", "model.budgets": "[9]"}
    refused(study, options, "begin with 9 features, there are 5 .* or a larger delta to start from")


def test_deltas_of_a_dictionary_that_correct_none(refused, study, trained, tmp_path):
    options = {"model.warm_start": trained / "n8", "model.student": "dictionary"}
    options["model.base_transcoders"] = tmp_path
    refused(study, options, r"n8 corrects no dictionary \(target 'end_to_end_transplant'\)")


def test_a_teacher_of_another_vocabulary(refused, study, tmp_path):
    """More entries, or others."""
    model = load_model(str(study / "finetune/merged"))
    tokenizer = load_tokenizer(str(study / "finetune/merged"))
    other = train_tokenizer(["Something else entirely, again and again."] * 50, vocab_size=400)
    model.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    model.resize_token_embeddings(448)
    model.save_pretrained(tmp_path / "larger")
    tokenizer.save_pretrained(tmp_path / "larger")
    for name, message in (
        ("larger", "its vocab_size is 448, the base model's 400"),
        ("other", "has another tokenizer than"),
    ):
        refused(study, dict.fromkeys(("model.model", "data.model"), tmp_path / name), message)
